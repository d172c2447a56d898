"""An optimiser's tensors as plain data: to copy, average, store and put back."""

import torch
from torch import Tensor

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
