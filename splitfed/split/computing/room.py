"""Whether a memory holds what a client needs, and if not, with which chunk, mini-batch or cut it would."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch

from splitfed.compression.expect import Geometry
from splitfed.errors import SplitfedError
from splitfed.model.parts import Parts
from splitfed.scenario import Scenario
from splitfed.split.assembly import assemble, check_model
from splitfed.split.computing.footprint import Side, carried, foresee

_MORE = 3  # images, to tell what one takes from what all take together


@dataclass(frozen=True, slots=True)
class Need:
    """The bytes that a client needs: `fixed` and `once` whatever its mini-batches are, the latter only while one is
    computed, and of each of their images what it `saved` for backward, if that is computed, and what is `carried` where
    not all of them are computed at a time."""

    fixed: int
    once: float
    saved: float
    carried: int

    @classmethod
    def of(cls, scenario: Scenario, parts: Parts, geometry: Geometry) -> Self:
        """Foresee it, but for copies of samples and what a reducer saves."""
        one, more = (foresee(scenario, parts, images) for images in (1, 1 + _MORE))
        each = (more.activations - one.activations) / _MORE
        return cls(one.state, max(0.0, one.activations - each), each, carried(scenario, geometry))

    def as_measured(self, side: Side, batch: int) -> Self:
        """Return it as a client's memory with mini-batches of so many images was measured."""
        saved = max(0.0, side.activations - self.once) / batch
        return replace(self, fixed=side.state + side.copies, saved=saved)

    def activations(self, batch: int, chunk: int | None = None) -> int:
        """Return what there is of a mini-batch that is computed in such chunks."""
        computed = min(batch, chunk or batch)
        return round(self.once + self.saved * computed + (self.carried * batch if computed < batch else 0))

    def total(self, batch: int, chunk: int | None = None) -> int:
        """Return what a client needs with such mini-batches."""
        return self.fixed + self.activations(batch, chunk)


def ways(
    scenario: Scenario, classes: int, need: Need, batch: int, memory: int, copies: int = 0, profile: str = ""
) -> Iterator[tuple[str, int]]:  # fmt: skip
    """Yield the keys of a scenario with which this much memory would do for a client of a profile, each with the
    largest value at which it does, where mini-batches have `batch` images and more is needed, of which so many bytes
    are for `copies` of samples."""
    chunk = scenario.training.client.chunk
    fits = _most(batch - 1, lambda images: need.total(batch, images) <= memory)
    if fits and (chunk is not None or _valid(scenario, "training.client.chunk", fits)):
        yield "training.client.chunk", fits
    if fits := _most(batch - 1, lambda images: need.total(images, chunk) <= memory):
        yield "training.batch_size", fits
    if not scenario.federation.splits:
        return
    own = profile and scenario.federation.profiles[profile].cut is not None
    key = f"federation.profiles.{profile}.cut" if own else "model.cut"
    cuts = [cut for cut in range(1, scenario.cut_of(profile)) if _valid(scenario, key, cut)]

    def fitting(number: int) -> bool:
        lower = scenario.with_([f"{key}={cuts[number - 1]}"]).cut_as(profile)
        return needed(lower, classes).total(batch, chunk) <= memory - copies

    if number := _most(len(cuts), fitting):
        yield key, cuts[number - 1]


def needed(scenario: Scenario, classes: int) -> Need:
    """Return what a client of a scenario needs, but for copies of samples."""
    parts = assemble(scenario, classes, pretrained=False).to(torch.device("cpu"), scenario.training.precision)
    return Need.of(scenario, parts, parts.front.geometry(1, classes))


def _valid(scenario: Scenario, key: str, value: int) -> bool:
    try:
        check_model(scenario.with_([f"{key}={value}"]))
    except SplitfedError:
        return False
    return True


def _most(most: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number from 1 to `most` that fits, where all below one that does fit too; 0 if none does."""
    low, high = 0, max(0, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
