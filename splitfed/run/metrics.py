"""What a finished round is reported as: a line of `metrics.csv`, and one of `exits.csv` for each exit that is trained
with the model, where the validation split was looked at."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import MISSING, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from splitfed.run.journal import count, read_table

NAME, EXITS = "metrics.csv", "exits.csv"
RECALL = "memory"  # the phase of a round that is a pass over memory


@dataclass(frozen=True, slots=True)
class Metrics:
    """One round. Bytes and seconds are cumulative, bytes without what was wasted, so that an interruption leaves no
    trace in them. Accuracy is a share in [0, 1]; `eval_*` are measured on the validation split and are None in rounds
    without evaluation. Learning rates are those used in the round. `clients` were taken, and `lost` sampled but not
    taken; where none was taken there is no `train_loss`. `simulated_seconds` are cumulative, and None where nothing
    tells them. `clients_accuracy` is the mean, by examples, of what clients found on images that they hold out,
    `*_client` the accuracy of one client; None in rounds where none did. `phase` is what taught the
    front; `memory` is a pass over memory, in which no client has a part. Where blocks have budgets, `cut_tokens` is how
    many tokens of a sample were left at the cut, on average, `unanswered` the share of mini-batches of which no
    gradient came down, and `*_operations` what a side computed for an image, reducers and tails left out; else None.

    Fields with a default may be missing in a file, as in those of earlier versions."""

    round: int
    train_loss: float | None
    eval_loss: float | None
    eval_accuracy: float | None
    cut_bytes: int
    total_bytes: int
    seconds: float
    cut_raw_bytes: int
    total_raw_bytes: int
    examples: int
    clients: int
    client_lr: float
    server_lr: float
    lost: int = 0
    simulated_seconds: float | None = None
    clients_accuracy: float | None = None
    worst_client: float | None = None
    median_client: float | None = None
    best_client: float | None = None
    phase: str = "gradient"
    cut_tokens: float | None = None
    unanswered: float | None = None
    client_operations: float | None = None
    server_operations: float | None = None

    def line(self) -> str:
        """Return the row as a line of CSV; None is an empty field, and floats read back as the same bits."""
        return ",".join(map(_text, astuple(self))) + "\n"


HEADER = ",".join(field.name for field in fields(Metrics)) + "\n"
_ALWAYS = tuple(field.name for field in fields(Metrics) if field.default is MISSING)


def read_metrics(path: Path) -> list[Metrics]:
    """Read `metrics.csv`, without a last line that is still being written. Raises RunError where it is broken."""
    return list(read_table(path, _row, _ALWAYS))


def _row(line: dict[str, str]) -> Metrics:
    return Metrics(
        **{field.name: _value(field.type, line[field.name]) for field in fields(Metrics) if field.name in line}
    )


_OF_AN_EXIT = ("round", "block", "accuracy")
EXITS_HEADER = ",".join(_OF_AN_EXIT) + "\n"


def exit_lines(round: int, accuracies: Mapping[int, float]) -> str:
    """Return the lines of a round: by block, the share of the validation split that its exit answers rightly."""
    return "".join(f"{round},{block},{accuracy!r}\n" for block, accuracy in accuracies.items())


def read_exits(folder: Path) -> dict[int, dict[int, float]]:
    """Read a run's `exits.csv`: by round, the accuracies by block; nothing where no exits are trained with the model.
    Raises RunError where it is broken."""
    path, found = folder / EXITS, defaultdict[int, dict[int, float]](dict)
    for round, block, accuracy in read_table(path, _exit, _OF_AN_EXIT) if path.exists() else ():
        found[round][block] = accuracy
    return dict(found)


def _exit(line: dict[str, str]) -> tuple[int, int, float]:
    return count(line["round"]), count(line["block"]), float(line["accuracy"])


def _text(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else repr(value)


def _value(kind: Any, text: str) -> Any:
    if kind is int:
        return count(text)
    if kind is str:
        return text
    return None if text == "" and kind == (float | None) else float(text)
