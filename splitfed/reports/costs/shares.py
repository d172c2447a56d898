"""Who holds how many images, before a run begins: what each client trains on, and what it holds out."""

from collections import Counter
from dataclasses import dataclass
from typing import Self

from splitfed.data.batches import count_batches
from splitfed.data.sources.opening import place_of
from splitfed.data.stratify import count_held_out
from splitfed.run.origin import load_data
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.waiting import waiting


@dataclass(frozen=True, slots=True)
class Shares:
    """Images that each client trains on (who has none is never drawn, and not in the list) and that those hold out who
    do; all `images` of the data set, those of its `validation` split, and its classes. `assumed`: nothing was
    loaded. `notes` are what a user should know of the data, and `images_bytes` what the clients' images weigh as they
    are stored, None where nothing was loaded."""

    trained: list[int]
    held_out: list[int]
    images: int
    validation: int
    classes: int
    assumed: bool
    notes: tuple[str, ...] = ()
    images_bytes: int | None = None

    @classmethod
    def of(cls, scenario: Scenario, key: Key) -> Self:
        """Count them. Where `data.expect` says what the data set holds, it is loaded only from a place on this machine,
        or for a budget that is a multiple of what it weighs; else clients are taken to hold equal shares. Raises
        SplitfedError as a run would."""
        clients = scenario.federation.clients
        notes: tuple[str, ...] = ()
        images_bytes = None
        expect = None if _is_here(scenario) or scenario.budget.kind == "images" else scenario.data.expect
        if expect is not None:
            counts, classes = scenario.data.counts(expect.train, expect.test), expect.classes
            share, left = divmod(counts.train, clients)
            each = [share + (client < left) for client in range(clients)]
            images, validation = counts.train + counts.validation + counts.test, counts.validation
        else:
            with waiting("loading the data"):
                data = load_data(scenario)
                images_bytes = data.images_bytes
            notes = tuple(data.notes)
            each, classes = [len(rows) for rows in data.partitions], len(data.classes)
            images, validation = len(data.train) + len(data.validation) + len(data.test), len(data.validation)
        out = [count_held_out(own, scenario.evaluation.held_out) for own in each]
        trained = [own - aside for own, aside in zip(each, out, strict=True) if own > aside]
        return cls(
            trained, [aside for aside in out if aside], images, validation, classes, expect is not None, notes,
            images_bytes,
        )  # fmt: skip

    def cohort(self, scenario: Scenario) -> int:
        """Return how many clients train in a round, as if all of them stayed."""
        return min(scenario.federation.sampled, len(self.trained))

    def drawn(self, scenario: Scenario) -> float:
        """Return the share of its rounds in which a client trains."""
        return self.cohort(scenario) / len(self.trained)

    def batches(self, scenario: Scenario, every: int | None = 1) -> Counter[int]:
        """Return how many mini-batches of which size there are in a round in which every client trains; of a client's
        the first of `every` so many alone (None: none)."""
        federation, size = scenario.federation, scenario.training.batch_size
        sizes: Counter[int] = Counter()
        for images in self.trained:
            count = count_batches(images, size, federation.local_steps, federation.local_epochs)
            if every != 1:
                each = -(-images // size)
                ends = (number % each == each - 1 for number in (range(0, count, every) if every else ()))
                sizes.update((images % size or size) if end else size for end in ends)
                continue
            passes = count // -(-images // size)  # each ends with a batch of what is left
            sizes[min(images, size)] += count - passes
            sizes[images % size or size] += passes
        return +sizes

    def stored(self, scenario: Scenario) -> Counter[int]:
        """Return how many mini-batches of which size memory takes of all clients."""
        size, variants = scenario.training.batch_size, scenario.stored_variants
        sizes: Counter[int] = Counter()
        for images in self.trained:
            sizes[size] += variants * (images // size)
            sizes[images % size] += variants
        del sizes[0]
        return +sizes

    def evaluated(self, batch_size: int) -> Counter[int]:
        """Return how many mini-batches of which size there are where every client evaluates that can."""
        sizes: Counter[int] = Counter()
        for images in self.held_out:
            sizes[batch_size] += images // batch_size
            sizes[images % batch_size] += 1
        del sizes[0]
        return +sizes


def _is_here(scenario: Scenario) -> bool:
    """Tell whether the data set lies on this machine, so that nothing is downloaded to look at it."""
    return scenario.data.path == "digits" or place_of(scenario.data.path).exists()
