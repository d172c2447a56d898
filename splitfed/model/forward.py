"""Forward passes: dropout by key, which torch draws from global state, so that this is set for one pass and put back;
the precision; and so many samples at a time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import TypeVar

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import torch
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splitfed.seeds import Key

T = TypeVar("T")
_generators = RLock()


def draws(module: nn.Module) -> bool:
    """Tell whether a module draws random numbers while it trains."""
    return any(
        (isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0)
        or (isinstance(m, DropPath) and m.drop_prob > 0)
        or (isinstance(m, PatchDropout) and m.prob > 0)
        for m in module.modules()
    )


@contextmanager
def keyed_rng(key: Key, device: torch.device, needed: bool = True) -> Iterator[None]:
    """Seed torch's global generators from `key` and restore them afterwards, for one thread at a time; does nothing
    where not `needed`."""
    if not needed:
        yield
        return
    with _generators, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key.integer())
        yield


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context of a forward pass in this precision; weights and what is sent stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def suit_attention(module: nn.Module, precision: str, device: torch.device) -> None:
    """Have timm's attention computed the way that is quicker in this precision: on a CPU in bfloat16, where the fused
    kernel is slow, as two products."""
    if precision == "float32" or device.type != "cpu":
        return
    for part in module.modules():
        if getattr(part, "fused_attn", False):
            part.fused_attn = False  # type: ignore[assignment]


def in_chunks(run: Callable[..., T], most: int | None, *given: Tensor) -> Iterator[T]:
    """Yield what `run` makes of tensors, of at most so many of their samples at a time; None is all at once. Of several
    chunks each is computed again on the way back, with the same random numbers, so that what one saves is all there is
    at a time."""
    if most is None or len(given[0]) <= most:
        yield run(*given)
        return
    for chunk in zip(*(one.split(most) for one in given), strict=True):
        yield checkpoint(run, *chunk, use_reentrant=False) if torch.is_grad_enabled() else run(*chunk)


def join_chunks(chunks: list[Tensor]) -> Tensor:
    """Return chunks as the whole that they are of."""
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)
