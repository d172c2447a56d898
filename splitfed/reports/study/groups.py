"""Runs that differ in nothing but their seed, taken together: a mean, and the lowest and the highest of them."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from splitfed.errors import ScenarioError
from splitfed.reports import units
from splitfed.reports.study.labels import distinct
from splitfed.run.client_scores import CLIENTS
from splitfed.run.journal import check_finished
from splitfed.run.ledger import Totals, totals_by_round
from splitfed.run.metrics import Metrics, read_metrics
from splitfed.run.summary import Summary
from splitfed.scenario.budget import Counted
from splitfed.scenario.document import read

Axis = Counted | Literal["simulated"]
"""What a run has spent: bytes of the cut, of both planes (`total`), or simulated seconds."""

# What may differ between runs of the same experiment.
_ASIDE = ("seed", "name", "engine", "checkpoints")


@dataclass(frozen=True, slots=True)
class Spread:
    """The mean of some values, the lowest and the highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Sum up one value or more."""
        found = list(values)
        low, high = min(found), max(found)
        # Rounded: the last bits of a mean are noise, and would show in a CSV.
        return cls(min(max(round(math.fsum(found) / len(found), 12), low), high), low, high)


def spent(amount: float, of: Axis) -> str:
    """Return bytes, or simulated seconds, as people read them."""
    return units.duration(amount) if of == "simulated" else units.size(round(amount))


def so_far(row: Metrics, of: Axis) -> float:
    """Return the bytes that were sent up to the end of a round, or the simulated seconds that passed. No round counts
    what was wasted, so that an interruption leaves no step in a curve; `total_bytes` of a summary contains it."""
    if of == "simulated":
        return row.simulated_seconds or 0.0
    return row.cut_bytes if of == "cut" else row.total_bytes


class Run:
    """A finished run: its summary, and what its folder holds beside it, read when asked for."""

    def __init__(self, folder: Path, summary: Summary) -> None:
        self.folder, self.summary = folder, summary

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The run's scenario as `{"compression.reducer.kind": "adc", ...}`, without what may differ between runs of the
        same experiment; for a folder without a readable scenario, something that no other run has."""
        path = self.folder / "scenario.yaml"
        try:
            data = read(path.read_text(encoding="utf-8"), path.name).data
        except (OSError, ValueError, ScenarioError):
            return {"folder": str(self.folder)}
        return dict(flat({key: value for key, value in data.items() if key not in _ASIDE}))

    @cached_property
    def rounds(self) -> list[Metrics]:
        """The finished rounds. Raises RunError where they cannot be read."""
        return read_metrics(self.folder / "metrics.csv")

    @cached_property
    def totals(self) -> Totals:
        """Bytes of all finished rounds. Raises RunError where the ledger cannot be read."""
        return sum(totals_by_round(self.folder / "ledger.csv").values(), Totals())

    def check(self) -> None:
        """Read all of it. Raises RunError where something cannot be read, or is not what the run wrote."""
        check_finished(self.folder, "metrics.csv")
        # A deployment says goodbye to its clients after the last round.
        check_finished(self.folder, "ledger.csv", more=self.summary.engine == "deployment")
        _ = self.rounds, self.totals

    @property
    def ratio(self) -> float | None:
        """What papers call the ratio: bytes after the codec over uncompressed ones, indices with the activations that
        need them, averaged over the two directions; None where nothing crossed."""
        shares = []
        for direction, roles in (("up", ("smashed", "side")), ("down", ("cut_gradient",))):
            sizes = [self.totals.select(plane="data", direction=direction, role=role) for role in roles]
            if not sizes[0].raw:
                return None
            shares.append(sum(size.coded for size in sizes) / sizes[0].raw)
        return Spread.of(shares).mean

    def at(self, sent: float, of: Axis = "cut") -> float | None:
        """Return the accuracy on the validation split after so much was spent, on a straight line between the rounds
        around them that were evaluated: methods whose rounds differ in bytes are so compared at the same bytes. None
        before the first such round and after the last."""
        points = self._evaluated(of)
        # The first twice: it is a line of its own where there is no other.
        for (before, low), (after, high) in pairwise([*points[:1], *points]):
            if before <= sent <= after:
                return low + (high - low) * ((sent - before) / (after - before) if after > before else 1.0)
        return None

    def why_not_at(self, sent: float, of: Axis = "cut") -> str:
        """Return why there is no accuracy after so much was spent."""
        points = self._evaluated(of)
        if not points:
            return "never evaluated on the validation split"
        (first, _), (last, _) = points[0], points[-1]
        if not last:
            return "has no simulated time" if of == "simulated" else "has no cut to send bytes across"
        return (
            f"first evaluated after {spent(first, of)}"
            if sent < first
            else f"shorter, last evaluated after {spent(last, of)}"
        )

    def _evaluated(self, of: Axis) -> list[tuple[float, float]]:
        return [(so_far(row, of), row.eval_accuracy) for row in self.rounds if row.eval_accuracy is not None]


@dataclass(frozen=True)
class Group:
    """Runs of one experiment under several seeds, or once; `label` tells it from the other groups."""

    label: str
    runs: list[Run]

    def spread(self, value: Callable[[Run], float]) -> Spread:
        """Sum up something over the runs."""
        return Spread.of(value(run) for run in self.runs)

    def mean(self, value: Callable[[Summary], float]) -> int:
        """Return the mean of a figure of the summaries, rounded."""
        return round(Spread.of(value(run.summary) for run in self.runs).mean)

    def sent(self, of: Counted) -> int:
        """Return the mean of the bytes that were sent; those of both planes contain what was wasted."""
        return self.mean(lambda summary: summary.cut_bytes if of == "cut" else summary.total_bytes)

    def raw(self, of: Counted) -> int:
        """Return the mean of the bytes that would have been sent uncompressed."""
        return self.mean(lambda summary: summary.raw_bytes if of == "cut" else summary.total_raw_bytes)

    @property
    def images_bytes(self) -> int | None:
        """The mean of what the images weigh that clients held, or None where a run does not tell."""
        weights = [run.summary.images_bytes for run in self.runs]
        return None if None in weights else round(Spread.of(one for one in weights if one is not None).mean)

    @property
    def images_factor(self) -> float | None:
        """The mean of how many times what the images weigh was sent in all, or None where a run does not tell."""
        factors = [run.summary.images_factor for run in self.runs]
        return None if None in factors else Spread.of(one for one in factors if one is not None).mean

    @property
    def accuracy(self) -> Spread:
        """Accuracy on the test split."""
        return self.spread(lambda run: run.summary.test_accuracy)

    @property
    def clients(self) -> dict[str, float | None]:
        """The mean accuracy of the worst, the median and the best client, by their names in a summary; None where those
        of a run were not asked."""
        found: dict[str, float | None] = {}
        for name in CLIENTS:
            each = [getattr(run.summary, name) for run in self.runs]
            found[name] = None if None in each else Spread.of(each).mean
        return found

    @property
    def ratio(self) -> float | None:
        """The mean of the runs' ratios, or None where one has none."""
        ratios = [run.ratio for run in self.runs]
        return None if None in ratios else Spread.of(ratio for ratio in ratios if ratio is not None).mean

    @property
    def simulated(self) -> float | None:
        """The mean of the runs' simulated seconds, or None where one has none."""
        seconds = [run.summary.simulated_seconds for run in self.runs]
        return None if None in seconds else Spread.of(one for one in seconds if one is not None).mean

    def at(self, sent: float, of: Axis = "cut") -> Spread | None:
        """Return the runs' accuracy on the validation split after so much was spent; None where one has none there."""
        found = [run.at(sent, of) for run in self.runs]
        return None if None in found else Spread.of(one for one in found if one is not None)

    def why_not_at(self, sent: float, of: Axis = "cut") -> str:
        """Return why there is no accuracy after so much was spent: of the first run that has none there, which is named
        where there are several."""
        run = next(run for run in self.runs if run.at(sent, of) is None)
        return f"{f'seed {run.summary.seed} ' if len(self.runs) > 1 else ''}{run.why_not_at(sent, of)}"

    @property
    def settings(self) -> dict[str, Any]:
        """What the runs share."""
        return self.runs[0].settings

    @property
    def name(self) -> str:
        """What their scenario calls itself."""
        return self.runs[0].summary.scenario


def group(runs: list[Run]) -> list[Group]:
    """Put runs together that differ in their seed alone, in the order in which the first of each comes."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    names = [(members[0].summary.scenario, members[0].settings) for members in found.values()]
    return [Group(label, members) for label, members in zip(distinct(names), found.values(), strict=True)]


def flat(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the single values of nested sections and lists, each under its path, as in `a.b.0`."""
    if not isinstance(value, dict | list):
        yield path, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from flat(inner, f"{path}.{key}" if path else str(key))
