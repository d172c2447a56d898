"""What a controller keeps to in the long run: the `target` of the section `control`."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from splitfed.config import Broken, Bytes, Config
from splitfed.link.quantities import MOST_SECONDS, read_seconds

if TYPE_CHECKING:
    from splitfed.federation.control.account import Account

_Positive = Annotated[float, Field(gt=0, le=MOST_SECONDS)]
# `90s`, `2min` or a plain number of seconds, and not none.
_Seconds = Annotated[float, BeforeValidator(read_seconds, json_schema_input_type=_Positive | str), Field(gt=0)]


class RoundSeconds(Config):
    """Each client's rounds last so long in the mean, or less."""

    timed: ClassVar[bool] = True

    kind: Literal["seconds_per_round"] = "seconds_per_round"
    seconds: _Seconds
    """Seconds from when a client is called to when its answer is there: `20s`, `2min` or a number."""

    @property
    def allowed(self) -> float:
        """The seconds."""
        return self.seconds

    def build(self, rounds: int) -> "Account":
        """Return what keeps account of it, in a run of so many `rounds`."""
        from splitfed.federation.control.account import RoundAccount

        return RoundAccount(self.seconds)


class ByteRate(Config):
    """Each client sends and is sent so many bytes a second in the mean, or fewer, over the time of the whole run."""

    timed: ClassVar[bool] = True

    kind: Literal["bytes_per_second"] = "bytes_per_second"
    bytes: Bytes
    """Bytes a second, both ways together, such as `20kB`."""

    @property
    def allowed(self) -> float:
        """The bytes a second."""
        return self.bytes

    def build(self, rounds: int) -> "Account":
        """Return what keeps account of it."""
        from splitfed.federation.control.account import RateAccount

        return RateAccount(self.bytes)


class AllBytes(Config):
    """All clients together send and are sent so many bytes, or fewer, by a round or a time."""

    kind: Literal["all_bytes"] = "all_bytes"
    bytes: Bytes
    """Bytes of the run until then, both ways and both planes together, such as `50MB`."""
    rounds: PositiveInt | None = None
    """The round by whose end they may be sent; null is the last one, unless `seconds` is set."""
    seconds: _Seconds | None = None
    """The time by which they may be sent, from the run's beginning, such as `10min`; null goes by rounds."""

    @property
    def allowed(self) -> float:
        """The bytes."""
        return self.bytes

    @property
    def until(self) -> str | None:
        """The round or the time by which they count; None where that is the run's end."""
        if self.seconds is not None:
            return f"{self.seconds:g} s"
        return None if self.rounds is None else f"round {self.rounds}"

    @property
    def timed(self) -> bool:
        """Whether it takes something that tells the time."""
        return self.seconds is not None

    @model_validator(mode="after")
    def _by_one_of_both(self) -> "AllBytes":
        if self.rounds is not None and self.seconds is not None:
            raise Broken(("seconds", "rounds is set too: keep one of them"))
        return self

    def build(self, rounds: int) -> "Account":
        """Return what keeps account of it."""
        from splitfed.federation.control.account import TotalAccount

        return TotalAccount(self.bytes, None if self.seconds else self.rounds or rounds, self.seconds)


Target = Annotated[RoundSeconds | ByteRate | AllBytes, Field(discriminator="kind")]
