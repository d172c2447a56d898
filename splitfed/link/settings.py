"""What a scenario says of its clients' links, and of the server's."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from splitfed.config import Broken, Config, kind_shorthand
from splitfed.errors import ScenarioError
from splitfed.files import write
from splitfed.link.connection import Link, Recorded, Steady
from splitfed.link.distributions import ConstantRate, ConstantSeconds, LogNormalRate, RateDrawn, SecondsDrawn
from splitfed.link.quantities import MOST_LATENCY, Latency, Loss, Rate
from splitfed.link.trace import read_recording
from splitfed.seeds import Key

RECORDING = ".trace"  # how the names of a run's own copies of recordings end

Links = Callable[[int], Link | None]
"""The link of each client, the same whenever it is asked for; None where bytes take no time."""


class LinkSettings(Config, ABC):
    """The base of what a scenario says of a link."""

    timed: ClassVar[bool] = True  # whether bytes take time

    kind: str

    def check(self) -> None:
        """Raise ScenarioError, as `key: file:line: reason`, where a file that is named cannot be used."""

    @abstractmethod
    def open(self, key: Key, folder: Path, name: str) -> Links:
        """Return the links of a run in this folder, drawn from this key; `name` is for its own copies of files. Raises
        ScenarioError as `check` does."""


class IdealLink(LinkSettings):
    """Bytes take no time."""

    timed: ClassVar[bool] = False

    kind: Literal["ideal"] = "ideal"

    def open(self, key: Key, folder: Path, name: str) -> Links:
        """Return no links."""
        return lambda client: None


class _Line(LinkSettings):
    """What all links have that take time."""

    jitter: Latency = 0.0
    """By how much the latency of a frame is more or less at most: each has its own, drawn uniformly."""
    loss: Loss = 0.0
    """Share of the packets that are lost above the radio, at random: TCP sends them again, and slows down."""


class FixedLink(_Line):
    """The same link for every client."""

    kind: Literal["fixed"] = "fixed"
    up: Rate
    """Bits a second from a client, such as 5Mbit."""
    down: Rate
    """Bits a second to a client."""
    latency: Latency = 0.0
    """Time that a bit is on its way, each way, such as 60ms: half of what `ping` shows."""

    @model_validator(mode="after")
    def _jitter_leaves_a_way(self) -> "FixedLink":
        _check_jitter(self.jitter, self.latency)
        return self

    def open(self, key: Key, folder: Path, name: str) -> Links:
        """Return the same link for all."""
        link = Link(Steady(self.up), Steady(self.down), self.latency, self.jitter, self.loss)
        return lambda client: link


class _Drawn(_Line):
    """What links have in common that are drawn for each client."""

    up: RateDrawn
    """Bits a second from a client."""
    down: RateDrawn
    """Bits a second to a client."""
    latency: SecondsDrawn = ConstantSeconds(value=0.0)
    """Time that a bit is on its way, each way; a minute at most is taken. A jitter of more is cut to it."""

    def open(self, key: Key, folder: Path, name: str) -> Links:
        """Return what draws, always from this key."""

        def link(client: int) -> Link:
            latency = min(MOST_LATENCY, self.latency.draw(key.at("latency", client)))
            up, down = (rate.draw(key.at(way, client)) for way, rate in (("up", self.up), ("down", self.down)))
            return Link(Steady(up), Steady(down), latency, min(self.jitter, latency), self.loss)

        return link


class DrawnLink(_Drawn):
    """A link for each client, drawn from the seed: a slow line stays slow.

    Rates are such as 5Mbit, or distributions: constant, uniform, lognormal; a latency is such as 60ms, or one of
    constant, uniform, exponential, lognormal.
    """

    kind: Literal["drawn"] = "drawn"


class LteLink(_Drawn):
    """Phones on LTE: 5 Mbit/s up and 18 down in the middle, a round trip of 60 ms; docs/links.md has the sources."""

    kind: Literal["lte"] = "lte"
    up: RateDrawn = LogNormalRate(median=5e6, sigma=0.6)
    """Bits a second from a client."""
    down: RateDrawn = LogNormalRate(median=18e6, sigma=0.6)
    """Bits a second to a client."""
    latency: SecondsDrawn = ConstantSeconds(value=0.03)
    """Time that a bit is on its way, each way; a minute at most is taken."""
    jitter: Latency = 0.01
    """By how much the latency of a frame is more or less at most: each has its own, drawn uniformly."""


class WifiLink(_Drawn):
    """Phones on the Wi-Fi of a home with cable: 10 Mbit/s up and 50 down in the middle, a round trip of 32 ms;
    docs/links.md has the sources."""

    kind: Literal["wifi"] = "wifi"
    up: RateDrawn = LogNormalRate(median=10e6, sigma=0.6)
    """Bits a second from a client."""
    down: RateDrawn = LogNormalRate(median=50e6, sigma=0.6)
    """Bits a second to a client."""
    latency: SecondsDrawn = ConstantSeconds(value=0.016)
    """Time that a bit is on its way, each way; a minute at most is taken."""
    jitter: Latency = 0.004
    """By how much the latency of a frame is more or less at most: each has its own, drawn uniformly."""


class DslLink(_Drawn):
    """Lines of ADSL: 1 Mbit/s up and 10 down in the middle, a round trip of 44 ms; docs/links.md has the sources."""

    kind: Literal["dsl"] = "dsl"
    up: RateDrawn = LogNormalRate(median=1e6, sigma=0.4)
    """Bits a second from a client."""
    down: RateDrawn = LogNormalRate(median=10e6, sigma=0.4)
    """Bits a second to a client."""
    latency: SecondsDrawn = ConstantSeconds(value=0.022)
    """Time that a bit is on its way, each way; a minute at most is taken."""


class FibreLink(_Drawn):
    """Fibre to a house: 50 Mbit/s up and 100 down, a round trip of 17 ms; docs/links.md has the sources."""

    kind: Literal["fibre"] = "fibre"
    up: RateDrawn = ConstantRate(value=50e6)
    """Bits a second from a client."""
    down: RateDrawn = ConstantRate(value=100e6)
    """Bits a second to a client."""
    latency: SecondsDrawn = ConstantSeconds(value=0.0085)
    """Time that a bit is on its way, each way; a minute at most is taken."""


class TraceLink(_Line):
    """Recorded rates, that change in time: Mahimahi's files, with the milliseconds at which a packet of 1,500 bytes
    passes in lines, or such with seconds and Mbit/s in lines. They begin again at their end."""

    kind: Literal["trace"] = "trace"
    up: str = Field(min_length=1)
    """The file of what passes from a client. A run keeps a copy of it."""
    down: str = Field(min_length=1)
    """The file of what passes to a client."""
    latency: Latency = 0.0
    """Time that a bit is on its way, each way, beside what it waits in the recording."""
    begin: Literal["drawn", "together"] = "drawn"
    """Where in the recording a client is when the run begins: at a place of its own, drawn from the seed, or all are at
    its beginning."""

    @model_validator(mode="after")
    def _jitter_leaves_a_way(self) -> "TraceLink":
        _check_jitter(self.jitter, self.latency)
        return self

    def check(self) -> None:
        """Raise ScenarioError where a file cannot be read."""
        for way, file in (("up", self.up), ("down", self.down)):
            try:
                read_recording(Path(file))
            except ScenarioError as error:
                raise ScenarioError([f"{way}: {problem}" for problem in error.problems]) from None

    def open(self, key: Key, folder: Path, name: str) -> Links:
        """Read the run's own copies of the files, which are made at its start."""
        lines = []
        for way, file in (("up", self.up), ("down", self.down)):
            kept = folder / f"{name}-{way}{RECORDING}"
            if not kept.exists():
                self.check()
                write(kept, Path(file).read_bytes())
            lines.append(read_recording(kept))
        longest = max(line.length for line in lines)

        def link(client: int) -> Link:
            share = float(key.at("begin", client).numpy().random()) if self.begin == "drawn" else 0.0
            up, down = (Recorded(line, share * longest) for line in lines)
            return Link(up, down, self.latency, self.jitter, self.loss)

        return link


def _check_jitter(jitter: float, latency: float) -> None:
    if jitter > latency:
        raise Broken(("jitter", f"{jitter:g} s is more than the latency, {latency:g} s: lower it"))


LinkConfig = Annotated[
    IdealLink | FixedLink | DrawnLink | TraceLink | LteLink | WifiLink | DslLink | FibreLink,
    Field(discriminator="kind"),
    kind_shorthand,
]


class ServerLink(Config):
    """The server's own link, which those share who use it at the same time, each as much as its own lets through."""

    up: Rate | None = None
    """Bits a second to the server, of all clients together; null is no bound."""
    down: Rate | None = None
    """Bits a second from the server, to all clients together; null is no bound."""
