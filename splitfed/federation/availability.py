"""Who is there in a round, when, how fast, and for how long: what a simulation assumes of its clients.

Phones come late, are slow and go away. A simulation's time is its own: a client has finished its round `late` seconds
after the round's start, and `step_seconds` for each of its mini-batches.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from splitfed.config import Config, kind_shorthand
from splitfed.federation.trace import Presence, Table, read_trace
from splitfed.files import write
from splitfed.link.distributions import ConstantSeconds, SecondsDrawn
from splitfed.seeds import Key

TRACE = "trace.csv"  # a run's own copy, in its folder


class Availability(Protocol):
    """What becomes of each client in each round; the same whoever else is sampled, and however often it is asked."""

    @property
    def tells_seconds(self) -> bool:
        """Whether it tells what a mini-batch takes."""
        ...

    def away(self, round: int, client: int) -> bool:
        """Return whether a client cannot be sampled."""
        ...

    def presence(self, round: int, client: int, steps: int) -> Presence:
        """Return how a client fares that has so many mini-batches to train."""
        ...


class AvailabilitySettings(Config, ABC):
    """The base of what a scenario says of its clients' availability; `timed` where it tells how long they take."""

    timed: ClassVar[bool] = True

    kind: str

    def check(self, clients: int) -> None:
        """Raise ScenarioError, with every problem, where what the scenario names cannot be used."""

    @abstractmethod
    def open(self, key: Key, clients: int, folder: Path) -> Availability:
        """Return what a run in this folder asks, drawn from this key. Raises ScenarioError as `check` does."""


class Always(AvailabilitySettings):
    """Every client is there in every round, and stays to its end; nothing tells how long it takes."""

    timed: ClassVar[bool] = False

    kind: Literal["none"] = "none"

    def open(self, key: Key, clients: int, folder: Path) -> Availability:
        """Return what says so."""
        return Table({})


class Drawn(AvailabilitySettings):
    """Drawn from the seed: who is away in a round, who comes late, who is slow, and who vanishes.

    Seconds are numbers, or distributions: constant, uniform, exponential, lognormal.
    """

    kind: Literal["drawn"] = "drawn"
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a client that is sampled vanishes in the round, at a mini-batch that is drawn uniformly."""
    away: float = Field(0.0, ge=0, lt=1)
    """Probability that a client cannot be sampled in a round."""
    late: SecondsDrawn = ConstantSeconds(value=0.0)
    """Seconds that pass before a client begins, drawn in each round."""
    step_seconds: SecondsDrawn | None = None
    """Seconds that a client takes for a mini-batch, drawn once for each client: a slow phone stays slow. Null is one
    second, or what the operations of a mini-batch take on the device of the client's profile, where that says its
    `flops`."""

    def open(self, key: Key, clients: int, folder: Path) -> Availability:
        """Return what draws, always from this key."""
        return _Draws(self, key)


@dataclass(frozen=True, slots=True)
class _Draws:
    settings: Drawn
    key: Key

    @property
    def tells_seconds(self) -> bool:
        return self.settings.step_seconds is not None

    def away(self, round: int, client: int) -> bool:
        return _share(self.key.at(round, client, "away")) < self.settings.away

    def presence(self, round: int, client: int, steps: int) -> Presence:
        key = self.key.at(round, client)
        steps_take = self.settings.step_seconds
        vanishes = _share(key.at("dropout")) < self.settings.dropout
        return Presence(
            self.settings.late.draw(key.at("late")),
            None if steps_take is None else steps_take.draw(self.key.at("step_seconds", client)),
            int(_share(key.at("moment")) * steps) if vanishes else None,
        )


class Trace(AvailabilitySettings):
    """Read from a file that lists clients. Who is not listed for a round is there at once, takes a second for a
    mini-batch, and stays."""

    kind: Literal["trace"] = "trace"
    file: str = Field(min_length=1)
    """A CSV with a header and the columns client, round (empty: every round), away (0 or 1), late and step_seconds
    (seconds), and vanishes_after (mini-batches; empty: it stays). All but the first may be left out. A run keeps a copy
    of it."""

    def check(self, clients: int) -> None:
        """Raise ScenarioError, with every problem and its line, where the file cannot be read."""
        read_trace(Path(self.file), clients)

    def open(self, key: Key, clients: int, folder: Path) -> Availability:
        """Read the run's own copy of the file, which is made at its start: a resumed run goes by the same."""
        kept = folder / TRACE
        if not kept.exists():
            self.check(clients)
            write(kept, Path(self.file).read_bytes())
        return read_trace(kept, clients)


def _share(key: Key) -> float:
    """Draw from [0, 1)."""
    return (key.integer() >> 10) / 2**53  # 63 bits, of which a float holds 53


AvailabilityConfig = Annotated[Always | Drawn | Trace, Field(discriminator="kind"), kind_shorthand]
