"""Blocks that torch compiles, each for itself: they are alike, so that is done once, and what runs, cuts, averages or
evaluates them need not know."""

import importlib.util
import os
import shutil
import time
from collections.abc import Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from splitfed.compression.expect import Geometry
from splitfed.errors import ModelError
from splitfed.model.forward import autocast
from splitfed.waiting import waiting

Module = TypeVar("Module", bound=nn.Module)
_COMPILERS = ("g++", "clang++", "c++")


def compile_blocks(blocks: Sequence[nn.Module], side: str, geometry: Geometry, precision: str) -> float:
    """Compile the blocks of a part of the model that is the `side`'s, for activations as at the cut, and return the
    seconds that it took.

    What is compiled is the same whichever mini-batch comes first, so that a run that is interrupted goes on bit by bit.
    Raises ModelError where torch finds nothing to compile with.
    """
    if not blocks:
        return 0.0
    device = next(blocks[0].parameters()).device
    check_compiler(side, device)
    began = time.perf_counter()
    for block in blocks:
        block.compile(dynamic=True)
    with waiting("compiling the blocks"), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for images in {geometry.batch: 0, max(1, geometry.batch // 2): 0}:  # the second is for all other numbers
            given = torch.randn(images, geometry.tokens, geometry.width, device=device, requires_grad=True)
            with autocast(precision, device):
                made = blocks[0](given)
            made.float().sum().backward()
    blocks[0].zero_grad(set_to_none=True)
    return time.perf_counter() - began


def copied(part: Module) -> Module:
    """Return a copy of a part of the model, whose blocks are compiled where they are in the part."""
    copy = deepcopy(part)
    for own, other in zip(part.modules(), copy.modules(), strict=True):
        if own._compiled_call_impl is not None:  # torch has no public way to ask, and its copies forget it
            other.compile(dynamic=True)
    return copy


def check_compiler(side: str, device: torch.device) -> None:
    """Raise ModelError where torch finds nothing to compile with for a device: on a CPU a compiler of C++, on a GPU
    Triton."""
    key = f"training.{side}.compile"
    if device.type == "cpu":
        if not any(shutil.which(one) for one in (os.environ.get("CXX"), *_COMPILERS) if one):
            raise ModelError(f"{key}: torch needs a compiler of C++, and finds none: install g++, or set it to false")
    elif device.type != "cuda":
        raise ModelError(f"{key}: torch does not compile for {device.type}: set it to false, or another device")
    elif importlib.util.find_spec("triton") is None:
        raise ModelError(f"{key}: torch needs Triton, which is not installed: install it, or set it to false")
