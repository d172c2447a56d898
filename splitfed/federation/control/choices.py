"""What a controller chose: the lines of `control.csv`, one for each client of a round."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from typing import Any, Self

NAME = "control.csv"


@dataclass(frozen=True, slots=True)
class Choice:
    """One client in one round: its operating point, the target's queue before it was chosen, the bytes and seconds that
    were expected of it, those that it took, and its training loss. Seconds are simulated, or in a deployment those from
    the server's order to the client's answer; None where nothing tells them. A client without a loss was not taken."""

    round: int
    client: int
    point: str
    queue: float
    expected_bytes: int
    expected_seconds: float | None
    bytes: int
    seconds: float | None
    loss: float | None

    def line(self) -> str:
        """Return the row as a line of CSV; None is an empty field, and floats read back as the same bits."""
        return (
            ",".join("" if one is None else one if isinstance(one, str) else repr(one) for one in astuple(self)) + "\n"
        )

    @classmethod
    def of(cls, line: dict[str, str]) -> Self:
        """Read a line's fields. Raises ValueError for what is no such line."""
        values = {name: _READ[str(kind)](line[name]) for name, kind in _KINDS.items()}
        return cls(**values)


_KINDS = {field.name: field.type for field in fields(Choice)}
_READ: dict[str, Callable[[str], Any]] = {
    "<class 'int'>": int, "<class 'str'>": str, "<class 'float'>": float,
    "float | None": lambda text: float(text) if text else None,
}  # fmt: skip
COLUMNS = tuple(_KINDS)
HEADER = ",".join(COLUMNS) + "\n"
