"""The LayerNorms of a model in parts: which ones learn, models that share all else, and their numbers by name."""

import copy
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from splitfed.compression.reducers.trained.layers import ENCODER, GATES
from splitfed.errors import RunError
from splitfed.model.exits.heads import EXITS
from splitfed.model.parts import Parts

# What a reducer or an exit has of its own in a part is no part of the model.
_OTHERS = (ENCODER, GATES, "decoder.", EXITS)
AFFINE = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def learning(parts: Parts, which: Literal["back", "whole"]) -> dict[str, nn.Parameter]:
    """Return what learns of a model, by names that begin with `front.`, `back.` or `tail.`: scales and shifts of the
    back's LayerNorms, or of those of the whole model. Raises RunError where one of these parts has none."""
    found: dict[str, nn.Parameter] = {}
    for part in Parts._fields if which == "whole" else ("back",):
        module = getattr(parts, part)
        here = {
            f"{part}.{name}": parameter for name, parameter in affine(module, (nn.LayerNorm,))
            if not name.startswith(_OTHERS)
        }  # fmt: skip
        if not here and part != "tail":
            raise RunError(f"--adapt: norms are what learns, and the model's {part} has no LayerNorm")
        found |= here
    return found


def affine(module: nn.Module, kinds: tuple[type[nn.Module], ...] = AFFINE) -> list[tuple[str, nn.Parameter]]:
    """Return scales and shifts of a module's norms, by their names."""
    return [
        (f"{name}.{own}" if name else own, parameter)
        for name, norm in module.named_modules() if isinstance(norm, kinds)
        for own, parameter in norm.named_parameters(recurse=False)
    ]  # fmt: skip


def apart(parts: Parts, which: Literal["back", "whole"]) -> tuple[Parts, dict[str, nn.Parameter]]:
    """Return a model that has such norms of its own, and shares all else with `parts`; and these norms."""
    made = sharing(parts, learning(parts, which).values())
    return made, learning(made, which)


M = TypeVar("M", bound=nn.Module | Parts)


def sharing(modules: M, own: Iterable[Tensor]) -> M:
    """Return a copy of modules that has these of their tensors for itself, and shares all others."""
    copied = {id(tensor) for tensor in own}
    every = modules if isinstance(modules, tuple) else (modules,)
    tensors = [tensor for module in every for tensor in [*module.parameters(), *module.buffers()]]
    return copy.deepcopy(modules, {id(tensor): tensor for tensor in tensors if id(tensor) not in copied})


@torch.no_grad()
def take(norms: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Take over numbers by their names. Raises KeyError and RuntimeError for those of another model."""
    if norms.keys() != values.keys():
        raise KeyError("other norms")
    for name, parameter in norms.items():
        if parameter.shape != values[name].shape or not bool(values[name].isfinite().all()):
            raise RuntimeError(f"{name} has another shape, or is not finite")
        parameter.copy_(values[name])


def numbers(norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of norms' numbers, float32 on the CPU."""
    return {name: tensor.detach().float().cpu().clone() for name, tensor in norms.items()}
