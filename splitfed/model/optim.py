"""Devices to train on, and the state of optimisers: how it is read, written and named."""

import torch
from torch import Tensor

from splitfed.errors import RunError


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate: that of a group of classifiers is so many `times` as high."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("times", 1.0)


def pick_device(name: str) -> torch.device:
    """Turn a device name of a scenario into a device: `auto` is CUDA, then Apple's GPU, then the CPU. Raises RunError
    for a device that this machine does not have."""
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            reason = str(error).splitlines()[0].rstrip(".")
            raise RunError(f"training: device {name!r} cannot be used: {reason}; try --device auto") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


OptimiserState = dict[int, dict[str, Tensor]]


def read_optimiser(optimiser: torch.optim.Optimizer) -> OptimiserState:
    """Copy an optimiser's tensors by parameter number; learning rates are the scenario's and not part of it."""
    state = optimiser.state_dict()["state"]
    return {
        number: {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}
        for number, values in state.items()
    }


def write_optimiser(optimiser: torch.optim.Optimizer, state: OptimiserState) -> None:
    """Give an optimiser a copy of these tensors; an empty state starts it anew."""
    groups = optimiser.state_dict()["param_groups"]
    copies = {number: {name: value.clone() for name, value in values.items()} for number, values in state.items()}
    optimiser.load_state_dict({"state": copies, "param_groups": groups})


def flatten(state: OptimiserState) -> dict[str, Tensor]:
    """Name each tensor `<parameter number>/<moment>`."""
    return {f"{number}/{name}": tensor for number, values in state.items() for name, tensor in values.items()}


def unflatten(tensors: dict[str, Tensor]) -> OptimiserState:
    """Undo `flatten`."""
    state: OptimiserState = {}
    for name, tensor in tensors.items():
        number, moment = name.split("/")
        state.setdefault(int(number), {})[moment] = tensor
    return state
