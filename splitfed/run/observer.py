"""Who watches a run: consoles, TensorBoard, a notebook, a test. The training code reports and knows nothing of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitfed.federation.control.choices import Choice
from splitfed.run.client_scores import Score
from splitfed.run.ledger import Totals
from splitfed.run.metrics import Metrics
from splitfed.run.summary import Summary
from splitfed.scenario.budget import Counted


@dataclass(frozen=True, slots=True)
class Figures:
    """What changes while a run goes on and stands in no row: the `budget`, where clients may join, bytes that were
    `wasted`, and bytes that the clients' images weigh (None: nothing tells)."""

    budget: int | None = None
    wasted: int = 0
    images_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """What is known before the first round. `resumed` is the last finished round of an earlier attempt, `history` its
    rounds with the bytes of each, and `budget` the bytes after which no round starts, `budget_of` the cut, or in all.
    `asks`: clients are asked how the model does on images that they hold out. `notes` are what a user should know of
    data and model. `figures` tells what may be another at the end of each round.
    `loaded`: clients have what the run begins with from the model's own file; `own_norms`: each has norms of its own,
    and the model that is tested those that the run began with."""

    scenario: str
    folder: Path
    rounds: int
    engine: str
    resumed: int
    history: list[tuple[Metrics, Totals]]
    budget: int | None
    asks: bool = False
    notes: tuple[str, ...] = ()
    budget_of: Counted = "cut"
    figures: Callable[[], Figures] = Figures
    loaded: bool = False
    own_norms: bool = False


class Observer:
    """Watches a run; every method may be left as it is."""

    def serving(self, folder: Path, address: str, split_port: int | None, clients: int) -> None:
        """So many clients may join at `address` (host:port); mini-batches, if any cross, have a port of their own. Only
        in a deployment."""

    def joined(self, client: int, examples: int, missing: list[int]) -> None:
        """A client that holds so many images is there; `missing` are those that are not. Only in a deployment."""

    def started(self, info: Started) -> None:
        """The run begins, or goes on."""

    def progress(self, round: int, share: float) -> None:
        """A part of the open round, in [0, 1], is done."""

    def evaluated(self, round: int, scores: list[Score]) -> None:
        """Clients were asked how the model does on images that they hold out, after this round, which is reported next;
        those who answered, in order."""

    def steered(self, round: int, chosen: Sequence[Choice]) -> None:
        """A controller has chosen these operating points for this round, which is reported next."""

    def exited(self, round: int, accuracies: Mapping[int, float]) -> None:
        """By block, the share of the validation split that exits answer rightly after this round, which is reported
        next."""

    def round(self, metrics: Metrics, sent: Totals, finished: Totals) -> None:
        """A round ended; `sent` are its bytes and `finished` those of all rounds so far."""

    def finished(self, summary: Summary, totals: Totals) -> None:
        """The run is complete."""

    def interrupted(self, folder: Path, round: int, totals: Totals) -> None:
        """The run was stopped by the user; `round` is the last one that a resumed run builds on."""

    def close(self) -> None:
        """The run is over, however it ended: give back what is held; called last."""


class Observers(Observer):
    """Several as one, in their order."""

    def __init__(self, watching: Iterable[Observer]) -> None:
        self._watching = tuple(watching)

    def serving(self, folder: Path, address: str, split_port: int | None, clients: int) -> None:
        """Tell all."""
        for one in self._watching:
            one.serving(folder, address, split_port, clients)

    def joined(self, client: int, examples: int, missing: list[int]) -> None:
        """Tell all."""
        for one in self._watching:
            one.joined(client, examples, missing)

    def started(self, info: Started) -> None:
        """Tell all."""
        for one in self._watching:
            one.started(info)

    def progress(self, round: int, share: float) -> None:
        """Tell all."""
        for one in self._watching:
            one.progress(round, share)

    def evaluated(self, round: int, scores: list[Score]) -> None:
        """Tell all."""
        for one in self._watching:
            one.evaluated(round, scores)

    def steered(self, round: int, chosen: Sequence[Choice]) -> None:
        """Tell all."""
        for one in self._watching:
            one.steered(round, chosen)

    def exited(self, round: int, accuracies: Mapping[int, float]) -> None:
        """Tell all."""
        for one in self._watching:
            one.exited(round, accuracies)

    def round(self, metrics: Metrics, sent: Totals, finished: Totals) -> None:
        """Tell all."""
        for one in self._watching:
            one.round(metrics, sent, finished)

    def finished(self, summary: Summary, totals: Totals) -> None:
        """Tell all."""
        for one in self._watching:
            one.finished(summary, totals)

    def interrupted(self, folder: Path, round: int, totals: Totals) -> None:
        """Tell all."""
        for one in self._watching:
            one.interrupted(folder, round, totals)

    def close(self) -> None:
        """Tell all."""
        for one in self._watching:
            one.close()
