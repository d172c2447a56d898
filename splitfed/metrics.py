"""What a finished round is reported as: a line of `metrics.csv`."""

import csv
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from splitfed.errors import RunError


@dataclass(frozen=True, slots=True)
class Metrics:
    """One round. Bytes and seconds are cumulative, bytes without what was wasted, so that an interruption leaves no
    trace in them. Accuracy is a share in [0, 1]; `eval_*` are measured on the validation split and are None in rounds
    without evaluation. Learning rates are those used in the round."""

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

    def line(self) -> str:
        """Return the row as a line of CSV; None is an empty field, and floats read back as the same bits."""
        return ",".join("" if value is None else repr(value) for value in astuple(self)) + "\n"


HEADER = ",".join(field.name for field in fields(Metrics)) + "\n"


def read_metrics(path: Path) -> list[Metrics]:
    """Read `metrics.csv`, without a last line that is still being written. Raises RunError where it is broken."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    try:
        return [
            Metrics(**{field.name: _value(field.type, line[field.name]) for field in fields(Metrics)})
            for line in csv.DictReader(lines)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: broken ({error})") from error


def _value(kind: Any, text: str) -> Any:
    if kind is int:
        return int(text)
    return None if text == "" and kind == (float | None) else float(text)
