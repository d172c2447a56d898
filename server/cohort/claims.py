"""How many images a client holds: what it claims, what of that the server can see, and what it weighs for it.

Where every image crosses the cut in a round, a claim shows in the stream. Where not all do, or none, the server knows
the share that it deals to each client itself; a claim of any other number of images weighs no more than `MOST_TIMES`
that of the cohort's middle client.
"""

from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import NamedTuple

from splitfed.data.batches import count_batches
from splitfed.data.stratify import count_held_out
from splitfed.errors import WireError
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment

MOST_TIMES = 10


class Crossed(NamedTuple):
    """How many mini-batches a client's stream carried in a round, and how many images in them."""

    steps: int
    images: int


class Claims:
    """Knows the scenario's plan and how many images it `deals` to each client."""

    def __init__(self, scenario: Scenario, dealt: Sequence[int]) -> None:
        federation, share = scenario.federation, scenario.evaluation.held_out
        self._trains = [images - count_held_out(images, share) for images in dealt]
        self._simulated = not isinstance(scenario.engine, Deployment)
        self._splits, self._batch = federation.splits, scenario.training.batch_size
        self._steps, self._epochs = federation.local_steps, federation.local_epochs
        self._variants = scenario.stored_variants

    def check(self, client: int, examples: int) -> None:
        """Raise WireError where a client of a simulation, which holds what it was dealt, claims anything else."""
        if self._simulated and examples != self._trains[client]:
            raise WireError(
                f"client {client} says that it trains on {examples} images, where it has {self._trains[client]}"
            )

    def planned(self, examples: int, every: int | None = 1) -> Crossed:
        """Return what a client that trains on so many images sends in a round, where it sends the first of `every` so
        many mini-batches; None is none of them."""
        steps = count_batches(examples, self._batch, self._steps, self._epochs)
        if every != 1:
            sent = range(0, steps, every) if every else range(0)
            each = -(-examples // self._batch)
            last = (examples - 1) % self._batch + 1  # in the last mini-batch of each pass over its images
            return Crossed(len(sent), sum(last if step % each == each - 1 else self._batch for step in sent))
        passes, rest = divmod(steps, -(-examples // self._batch))
        return Crossed(steps, passes * examples + min(examples, rest * self._batch))

    def to_store(self, examples: int, stored: int = 0) -> Crossed:
        """Return what a client that trains on so many images sends of what memory keeps, after the first `stored`
        mini-batches."""
        each = count_batches(examples, self._batch, None, 1)
        variants, rest = divmod(min(stored, self._variants * each), max(1, each))
        images = self._variants * examples - variants * examples - min(examples, rest * self._batch)
        return Crossed(max(0, self._variants * each - stored), images)

    def weights(self, examples: Mapping[int, int], every: int | None = 1) -> dict[int, int]:
        """Return what each client of a round, which trains on so many images, weighs in averages: the images that it
        has shown, or that the server believes. `every` is as in `planned`."""
        believed = self.believed(examples)
        shown = self._splits and every == 1
        return {c: n if shown and self.planned(n).images >= n else believed[c] for c, n in examples.items()}

    def believed(self, examples: Mapping[int, int]) -> dict[int, int]:
        """Return how many of the images that clients claim are taken for true as long as they have not crossed."""
        held = [number for number in examples.values() if number]  # who has none is no measure of others
        most = MOST_TIMES * median_low(held) if held else 0
        return {c: n if n == self._trains[c] else min(n, most) for c, n in examples.items()}
