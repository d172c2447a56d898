"""The backs that are served: the run's newest, and for a while those that it has replaced."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from splitfed.errors import DataError, RunError
from splitfed.inference.asking import MODEL, Asking
from splitfed.inference.deciding import Judged
from splitfed.inference.exits import Exits, behind, fingerprint, has_exits, heads, load
from splitfed.inference.rates import Rate, one_by_one, rates
from splitfed.inference.remote.bundle import name_of, pack_bundle, patched
from splitfed.inference.run_model import RunModel
from splitfed.model.parts import Parts
from splitfed.run.checkpoint import Checkpoints

log = logging.getLogger(__name__)

_MOST_OLD, _MOST_ALIKE = 64, 64  # fronts that are still answered, and that a client may have all but the norms of


@dataclass(frozen=True, slots=True, eq=False)
class Back:
    """What a run has learnt after a round, ready to go on with what clients ask at any of its rates, by their names.
    `name` is the SHA-256 of what a client needs for it: `bundle`, with these `norms` in place of its own where there
    are some, by which alone it differs from other fronts of the same run. The `model` is the whole, its `weights` the
    SHA-256 of what was read, `exits` are those that it has, and `behind` those of them that answer here."""

    name: str
    round: int
    bundle: bytes
    asking: dict[str, Asking]
    model: RunModel
    weights: str
    exits: Exits | None
    behind: Exits | None
    norms: bytes = b""

    @property
    def content(self) -> bytes:
        """What a client needs for it."""
        return patched(self.bundle, self.norms) if self.norms else self.bundle


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
        self._base = self._now = self._read(round)
        self._own: dict[int, Back] = {}  # of clients whose norms are their own
        self._alike: dict[str, None] = {self._base.name: None}  # fronts that differ by norms alone, the newest last

    @property
    def now(self) -> Back:
        """The one whose front is handed out to all who have none of their own."""
        return self._now

    @property
    def base(self) -> Back:
        """The one that was read."""
        return self._base

    @property
    def alike(self) -> tuple[str, ...]:
        """The names of fronts that differ from the one that was read by norms alone."""
        with self._lock:
            return tuple(self._alike)

    def of(self, client: int) -> Back:
        """Return the one whose front is handed out to a client."""
        return self._own.get(client, self._now)

    @property
    def most_bytes(self) -> int:
        """No request has more, at any rate."""
        return max(asking.most_bytes for asking in self._now.asking.values())

    def named(self, model: str, client: int) -> Back | None:
        """Return the back that belongs to a front of a client's, by the first letters of its name; None where it is not
        served any more."""
        with self._lock:
            now = self._clock()
            self._old = {key: (back, until) for key, (back, until) in self._old.items() if until > now}
            for back in (self.of(client), self._now):
                if model == back.name[:MODEL]:
                    return back
            return self._old[model][0] if model in self._old else None

    def serve(self, base: Back, found: Back | None, client: int | None = None, alike: Iterable[str] = ()) -> None:
        """Serve what has come of `base` by adaptation, to all or to one `client`; None is `base` itself again. Nothing
        happens where another base is served by now. Fronts by the names `alike` differ from it by norms alone."""
        with self._lock:
            if base is not self._base:
                return
            self._alike |= dict.fromkeys([*alike, *([found.name] if found else [])])
            while len(self._alike) > _MOST_ALIKE:
                del self._alike[next(name for name in self._alike if name != base.name)]
            if client is None:
                before, self._now = self._now, found or base
            else:
                before = self.of(client)
                if found is not None:
                    self._own[client] = found
                else:
                    self._own.pop(client, None)
            self._retire(before)

    def _retire(self, before: Back) -> None:
        """Let the clients that have a front go on with it for a while."""
        self._old.pop(self._now.name[:MODEL], None)
        if before.name != self._now.name:
            self._old[before.name[:MODEL]] = before, self._clock() + self._keep
        while len(self._old) > _MOST_OLD:
            del self._old[next(iter(self._old))]

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
                before = self._base
                if (before.name, before.round, before.weights) == (found.name, found.round, found.weights):
                    return False  # what was adapted to it stays
                own, self._own = list(self._own.values()), {}
                now, self._base, self._now = self._now, found, found
                self._alike = {found.name: None}
                for back in (*own, now):
                    self._retire(back)
        return True

    def adapted(self, base: Back, parts: Parts, norms: bytes) -> Back:
        """Return what has come of `base`: a model in `parts`, whose front and tail, where there are `norms`, differ by
        these."""
        model = replace(base.model, parts=parts)
        asking = self._asking(model, base.behind, self._rates(model))
        found = replace(base, asking=asking, model=model, norms=norms)
        return replace(found, name=name_of(found.content))

    def _read(self, round: int | None) -> Back:
        model = RunModel.read(self._run, round=round, device=self._device, overrides=self._overrides)
        exits, judged = _exits(model)
        taken = self._rates(model)
        bundle = pack_bundle(model, exits, judged, taken, self._most)
        later, why = behind(model.trunk, exits)
        if why:
            log.warning("exits behind the cut take no part: %s", why)
        asking = self._asking(model, later, taken)
        return Back(name_of(bundle), model.round, bundle, asking, model, fingerprint(model), exits, later)

    def _asking(self, model: RunModel, later: Exits | None, taken: Sequence[Rate]) -> dict[str, Asking]:
        geometry = model.trunk.front.geometry(self._most, len(model.classes))
        return {rate.name: Asking(rate.compression, model.trunk, geometry, model.device, later) for rate in taken}

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
    """Return the exits of a run and how they do; None where it has none, and where neither its folder nor its data
    tell."""
    if not has_exits(model):
        return None, None
    try:
        exits, _, judged = load(model)
    except DataError as error:
        log.warning("clients cannot ask for an accuracy, as nothing tells how the exits do: %s", error)
        return heads(model), None
    return exits, judged
