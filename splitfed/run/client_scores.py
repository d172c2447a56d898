"""What clients found on the images that they hold out: the lines of `clients.csv`, and what they come to."""

import math
from collections import defaultdict
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Self

from splitfed.run.journal import count, read_table

NAME = "clients.csv"


@dataclass(frozen=True, slots=True)
class Score:
    """One client after one round: how many images it holds out, their mean loss, and the share that is right."""

    round: int
    client: int
    examples: int
    loss: float
    accuracy: float

    def line(self) -> str:
        """Return the row as a line of CSV; floats read back as the same bits."""
        return ",".join(map(repr, astuple(self))) + "\n"


COLUMNS = tuple(field.name for field in fields(Score))
HEADER = ",".join(COLUMNS) + "\n"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the clients' scores of a round come to: the mean accuracy, by examples, and that of the worst, the median
    and the best client, each counting once; the median of two in the middle is their mean."""

    clients_accuracy: float
    worst_client: float
    median_client: float
    best_client: float

    @classmethod
    def of(cls, scores: list[Score]) -> Self | None:
        """Sum up scores; None where there are none."""
        if not scores:
            return None
        each = [score.accuracy for score in scores]
        right = math.fsum(score.accuracy * score.examples for score in scores)
        return cls(right / sum(score.examples for score in scores), min(each), median(each), max(each))


# As `metrics.csv` and the summary have it.
STANDING = tuple(field.name for field in fields(Standing))
CLIENTS = ("worst_client", "median_client", "best_client")


def read_scores(folder: Path) -> dict[int, list[Score]]:
    """Read a run's `clients.csv` by round, without a last line that is still being written; nothing where no client
    was asked. Raises RunError where it is broken."""
    path = folder / NAME
    found: dict[int, list[Score]] = defaultdict(list)
    for score in read_table(path, _row, COLUMNS) if path.exists() else ():
        found[score.round].append(score)
    return dict(found)


def _row(line: dict[str, str]) -> Score:
    values = {field.name: (float if field.type is float else count)(line[field.name]) for field in fields(Score)}
    return Score(**values)  # type: ignore[arg-type]
