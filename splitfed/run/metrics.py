"""What a finished round is reported as: a line of `metrics.csv`."""

from dataclasses import MISSING, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from splitfed.run.journal import count, read_table

NAME = "metrics.csv"
RECALL = "memory"  # the phase of a round that is a pass over memory


@dataclass(frozen=True, slots=True)
class Metrics:
    """One round. Bytes and seconds are cumulative, bytes without what was wasted, so that an interruption leaves no
    trace in them. Accuracy is a share in [0, 1]; `eval_*` are measured on the validation split and are None in rounds
    without evaluation. Learning rates are those used in the round. `clients` were taken, and `lost` sampled but not
    taken; where none was taken there is no `train_loss`. `simulated_seconds` are cumulative, and None where nothing
    tells them. `clients_accuracy` is the mean, by examples, of what clients found on images that they hold out,
    `*_client` the accuracy of one client; None in rounds where none did. `phase` is what taught the
    front; `memory` is a pass over memory, in which no client has a part.

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


def _text(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else repr(value)


def _value(kind: Any, text: str) -> Any:
    if kind is int:
        return count(text)
    if kind is str:
        return text
    return None if text == "" and kind == (float | None) else float(text)
