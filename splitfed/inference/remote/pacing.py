"""At which rate a mini-batch is sent, so that bytes a second, or the seconds of an answer, keep to a target: the
controller of training rounds, on mini-batches.

Rates are good for as much as their place among those that the server names, the best first; to send nothing, and let
the last exit answer, is good for nothing, and costs nothing.
"""

import time
from collections.abc import Callable, Mapping

from pydantic import TypeAdapter, ValidationError

from splitfed.config import Bytes
from splitfed.errors import SplitfedError
from splitfed.federation.control.account import Account, RateAccount, RoundAccount, Spent
from splitfed.federation.control.base import Option
from splitfed.federation.control.drift_plus_penalty import DriftPlusPenalty
from splitfed.link.quantities import read_seconds

# How much a better rate counts against the queue of what was sent over the target, in units of the first mini-batch:
# the more, the more may be sent beyond the target before it holds.
_V = 0.5
_PACE = 0.3  # how much of the mean bytes of a rate the newest mini-batch is
_ME = 0


def account_of(target: str) -> Account:
    """Read a target: `20kB/s`, or `200ms` from when a mini-batch is sent until the last of its answers is there. Raises
    SplitfedError."""
    number, slash, unit = target.partition("/")
    try:
        if slash:
            if unit.strip() != "s":
                raise ValueError
            return RateAccount(float(TypeAdapter(Bytes).validate_python(number)))
        if not (seconds := read_seconds(target)) > 0:
            raise ValueError
        return RoundAccount(seconds)
    except (ValueError, ValidationError):
        raise SplitfedError(
            f"a target of {target[:40]!r}: write bytes a second, such as 20kB/s, or a mini-batch's time, such as 200ms"
        ) from None


class Pacing:
    """Chooses rates, whose bytes of an image both ways are about `sizes`, so that what is spent keeps to an `account`
    of bytes by `clock`, or of seconds; with `alone` also to send nothing."""

    def __init__(
        self, account: Account, sizes: Mapping[str, float], alone: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._started = clock, clock()
        self._account, self._controller = account, DriftPlusPenalty(_V)
        self._sizes: dict[str | None, float] = {name: size for name, size in sizes.items()}  # noqa: C416 - for its type
        self._useful: dict[str | None, float] = {name: 1 - place / len(sizes) for place, name in enumerate(sizes)}
        if alone:
            self._sizes[None] = self._useful[None] = 0.0
        self._seconds: dict[str, float] = {}  # of a mini-batch at each rate that was tried
        self._images = 1.0  # of a mini-batch that are sent, about
        self._round = 0

    def choose(self) -> str | None:
        """Return the rate of the next mini-batch; None is to send nothing."""
        options = []
        for name, size in self._sizes.items():
            spent = Spent(size * self._images, self._expected(name))
            options.append(Option(name or "", spent.bytes, None, self._account.cost(spent), self._useful[name]))
        queue = self._account.queue(_ME)
        return self._controller.choose(self._round, _ME, queue, options) or None

    def learn(self, rate: str | None, images: int, sent: int, seconds: float = 0.0) -> None:
        """Hear how many images of a mini-batch left, how many bytes that took, both ways, and how long."""
        self._round += 1
        self._images += (_PACE if self._round > 1 else 1.0) * (images - self._images)
        if rate is not None and images:
            self._sizes[rate] += _PACE * (sent / images - self._sizes[rate])
            before = self._seconds.get(rate, seconds)
            self._seconds[rate] = before + _PACE * (seconds - before)
        self._account.close({_ME: Spent(sent, seconds)}, self._round, self._clock() - self._started)

    @property
    def came_to(self) -> float | None:
        """Bytes a second, or seconds of a mini-batch, in the mean so far; None before the first."""
        return self._account.came_to()

    @property
    def held(self) -> bool | None:
        """Whether that keeps to the target."""
        return None if (spent := self.came_to) is None else spent <= self._account.allowed

    def _expected(self, name: str | None) -> float:
        """Return the seconds of a mini-batch at a rate; one that was not tried is to take as long for its bytes as the
        fastest of the others."""
        if name is None or isinstance(self._account, RateAccount):
            return 0.0
        if name in self._seconds:
            return self._seconds[name]
        return min((self._sizes[name] * took / self._sizes[tried] for tried, took in self._seconds.items()), default=0)
