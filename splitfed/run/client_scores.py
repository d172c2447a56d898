"""What clients found on the images that they hold out: the lines of `clients.csv`, and what they come to."""

import csv
import math
import os
from collections import defaultdict
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Self

from splitfed.errors import RunError

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


HEADER = ",".join(field.name for field in fields(Score)) + "\n"


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


def append_scores(folder: Path, scores: list[Score]) -> None:
    """Add rows to a run's `clients.csv`; they are on disk when this returns. The first ones make the file."""
    if not scores:
        return
    path = folder / NAME
    with open(path, "a") as file:
        file.write(("" if file.tell() else HEADER) + "".join(score.line() for score in scores))
        file.flush()
        os.fsync(file.fileno())


def length(folder: Path) -> int:
    """Return the bytes of a run's `clients.csv`; 0 where no client was asked yet."""
    path = folder / NAME
    return path.stat().st_size if path.exists() else 0


def read_scores(folder: Path) -> dict[int, list[Score]]:
    """Read a run's `clients.csv` by round, without a last line that is still being written; nothing where no client
    was asked. Raises RunError where it is broken."""
    path = folder / NAME
    found: dict[int, list[Score]] = defaultdict(list)
    if not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    try:
        for row in csv.DictReader(lines):
            values = {field.name: (float if field.type is float else int)(row[field.name]) for field in fields(Score)}
            found[int(values["round"])].append(Score(**values))  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: broken ({error})") from error
    return dict(found)
