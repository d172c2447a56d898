"""The arithmetic of forward passes: float32, or bfloat16 through autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context of a forward pass in this precision; weights and what is sent stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))
