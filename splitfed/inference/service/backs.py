"""The backs that are served: the run's newest, and for a while those that it has replaced."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from splitfed.errors import RunError
from splitfed.inference.asking import MODEL, Asking
from splitfed.inference.exits import NAME as EXITS
from splitfed.inference.exits import Exits, Judged, load
from splitfed.inference.rates import Rate, one_by_one, rates
from splitfed.inference.remote.bundle import name_of, pack_bundle
from splitfed.inference.run_model import RunModel
from splitfed.run.checkpoint import Checkpoints

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Back:
    """What a run has learnt after a round, ready to go on with what clients ask at any of its rates, by their names.
    `bundle` is what a client needs for it, and `name` the SHA-256 of that."""

    name: str
    round: int
    bundle: bytes
    asking: dict[str, Asking]


class Backs:
    """Reads the back of a `run`, after a `round` or the newest, and anew when it is told to. The one before stays for
    another `keep_old` seconds, for clients that have its front; who holds it longer finishes with it.

    `named` are the rates that clients may send at, as the function `rates` takes them, and `most` how many images a
    request may hold. Raises a SplitfedError as `RunModel.read` does, and for a rate that merges samples. Safe to call
    from threads.
    """

    def __init__(
        self, run: Path, *, named: Sequence[str] = (), most: int = 64, round: int | None = None,
        device: str | None = None, keep_old: float = 60.0, overrides: list[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._run, self._named, self._most, self._round, self._device = run, named, most, round, device
        self._keep, self._overrides, self._clock = keep_old, overrides, clock
        self._old: dict[str, tuple[Back, float]] = {}  # until when
        self._lock, self._reading = Lock(), Lock()
        self._now = self._read(round)

    @property
    def now(self) -> Back:
        """The one whose front is handed out."""
        return self._now

    @property
    def most_bytes(self) -> int:
        """No request has more, at any rate."""
        return max(asking.most_bytes for asking in self._now.asking.values())

    def named(self, model: str) -> Back | None:
        """Return the back that belongs to a front, by the first letters of its name; None where it is not served any
        more."""
        with self._lock:
            now = self._clock()
            self._old = {key: (back, until) for key, (back, until) in self._old.items() if until > now}
            if model == self._now.name[:MODEL]:
                return self._now
            return self._old[model][0] if model in self._old else None

    def newer(self) -> bool:
        """Tell whether the run has a newer checkpoint than that which is served, where none is named."""
        rounds = Checkpoints(self._run).rounds()
        return self._round is None and bool(rounds) and rounds[-1] != self._now.round

    def reload(self) -> bool:
        """Read the run anew, and return whether what is served is another. Raises a SplitfedError where it cannot be
        read; the one that is served stays."""
        with self._reading:
            found = self._read(self._round)
            with self._lock:
                before, self._now = self._now, found
                self._old.pop(found.name[:MODEL], None)
                if before.name != found.name:
                    self._old[before.name[:MODEL]] = before, self._clock() + self._keep
        return (before.name, before.round) != (found.name, found.round)

    def _read(self, round: int | None) -> Back:
        model = RunModel.read(self._run, round=round, device=self._device, overrides=self._overrides)
        exits, judged = _exits(model)
        taken = self._rates(model)
        trunk = model.trunk
        geometry = trunk.front.geometry(self._most, len(model.classes))
        asking = {rate.name: Asking(rate.compression, trunk, geometry, model.device) for rate in taken}
        bundle = pack_bundle(model, exits, judged, taken, self._most)
        return Back(name_of(bundle), model.round, bundle, asking)

    def _rates(self, model: RunModel) -> list[Rate]:
        own = model.scenario.compression
        if not self._named and not one_by_one(own):
            raise RunError(
                f"compression.reducer: {own.reducer.kind} merges samples, and an answer is for one image: name how "
                "images are sent, for instance with --rate '3 bits={reducer: none, smashed: {codec: {kind: uniform, "
                "bits: 3}}}'"
            )
        return rates(own, self._named or ["run"])


def _exits(model: RunModel) -> tuple[Exits | None, Judged | None]:
    """Return a run's exits and how they do, where it has some."""
    if not (model.folder / EXITS).exists():
        return None, None
    exits, _, judged = load(model)
    return exits, judged
