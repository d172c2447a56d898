"""At which rate a mini-batch is sent, so that bytes a second keep to a target: the controller of training rounds, on
mini-batches.

Rates are good for as much as their place among those that the server names, the best first; to send nothing, and let
the last exit answer, is good for nothing, and costs nothing.
"""

import time
from collections.abc import Callable, Mapping

from pydantic import TypeAdapter, ValidationError

from splitfed.config import Bytes
from splitfed.errors import SplitfedError
from splitfed.federation.control.account import RateAccount, Spent
from splitfed.federation.control.base import Option
from splitfed.federation.control.drift_plus_penalty import DriftPlusPenalty

# How much a better rate counts against the queue of what was sent over the target, in units of the first mini-batch:
# the more, the more may be sent beyond the target before it holds.
_V = 0.5
_PACE = 0.3  # how much of the mean bytes of a rate the newest mini-batch is
_ME = 0


def bytes_a_second(text: str) -> float:
    """Read `20kB/s`. Raises SplitfedError."""
    number, slash, unit = text.partition("/")
    try:
        if (slash, unit.strip()) != ("/", "s"):
            raise ValueError
        return float(TypeAdapter(Bytes).validate_python(number))
    except (ValueError, ValidationError):
        raise SplitfedError(f"a target of {text[:40]!r}: write bytes a second, such as 20kB/s") from None


class Pacing:
    """Chooses rates, whose bytes of an image both ways are about `sizes`, for a `target` in bytes a second of `clock`;
    with `alone` also to send nothing."""

    def __init__(
        self, target: float, sizes: Mapping[str, float], alone: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._started = clock, clock()
        self._account, self._controller = RateAccount(target), DriftPlusPenalty(_V)
        self._sizes: dict[str | None, float] = {name: size for name, size in sizes.items()}  # noqa: C416 - for its type
        self._useful: dict[str | None, float] = {name: 1 - place / len(sizes) for place, name in enumerate(sizes)}
        if alone:
            self._sizes[None] = self._useful[None] = 0.0
        self._images = 1.0  # of a mini-batch that are sent, about
        self._round = 0

    def choose(self) -> str | None:
        """Return the rate of the next mini-batch; None is to send nothing."""
        options = []
        for name, size in self._sizes.items():
            spent = Spent(size * self._images, 0.0)
            options.append(Option(name or "", spent.bytes, None, self._account.cost(spent), self._useful[name]))
        queue = self._account.queue(_ME)
        return self._controller.choose(self._round, _ME, queue, options) or None

    def learn(self, rate: str | None, images: int, sent: int) -> None:
        """Hear how many images of a mini-batch left, and how many bytes that took, both ways."""
        self._round += 1
        self._images += (_PACE if self._round > 1 else 1.0) * (images - self._images)
        if rate is not None and images:
            self._sizes[rate] += _PACE * (sent / images - self._sizes[rate])
        self._account.close({_ME: Spent(sent)}, self._round, self._clock() - self._started)
