"""Mini-batches out of memory, in an order that does not know which client sent them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from splitfed.seeds import Key
from splitfed.server.memory.store import Store
from splitfed.split.cut import Arrived
from splitfed.wire.frame import Frame, Place

# Bytes of decoded samples that are shuffled at a time: all of them up to this size.
WINDOW = 1 << 28


@dataclass(slots=True)
class _Pool:
    """Samples of one shape that wait to be dealt out: rows of `smashed`, of `targets` and of each side tensor."""

    smashed: Tensor
    targets: Tensor
    side: dict[str, Tensor]
    meta: dict

    @property
    def bytes(self) -> int:
        return self.smashed.nbytes

    def take(self, rows: Tensor | slice) -> "_Pool":
        return _Pool(
            self.smashed[rows], self.targets[rows], {name: one[rows] for name, one in self.side.items()}, self.meta
        )

    @staticmethod
    def of(pools: list["_Pool"]) -> "_Pool":
        side = {name: torch.cat([pool.side[name] for pool in pools]) for name in pools[0].side}
        smashed = torch.cat([pool.smashed for pool in pools])
        return _Pool(smashed, torch.cat([pool.targets for pool in pools]), side, pools[0].meta)


def replay(
    store: Store, batch: int, key: Key, round: int, *, separable: bool = True,
    order: Literal["shuffled", "arrival"] = "shuffled", window: int = WINDOW,
) -> Iterator[Arrived]:  # fmt: skip
    """Yield all that is kept once, in mini-batches of `batch` samples, the last one of each shape being short; in the
    order of `key`, or as it came.

    Where samples of a mini-batch are not `separable`, mini-batches are shuffled whole. Up to `window` bytes of decoded
    samples are mixed at a time; what is more is dealt to windows at random. Raises RunError for damaged memory.
    """
    places = store.places()
    if order == "arrival":
        for place in places:
            yield store.read(place)
        return
    turns = torch.randperm(len(places), generator=key.at("order").generator()).tolist()
    if not separable:
        for turn in turns:
            yield store.read(places[turn])
        return
    step, gathered, size, windows = 0, dict[tuple, list[_Pool]](), 0, 0

    def deal(last: bool) -> Iterator[Arrived]:
        """Shuffle what is gathered and deal it out, but for what makes no whole mini-batch as long as more comes."""
        nonlocal step, size
        size = 0
        for shape, pools in list(gathered.items()):
            whole = _Pool.of(pools)
            places = key.at("window", windows, *map(str, shape)).generator()
            rows = torch.randperm(len(whole.targets), generator=places)
            end = len(rows) if last else len(rows) - len(rows) % batch
            for start in range(0, end, batch):
                step += 1
                yield _arrived(whole.take(rows[start : start + batch]), Place(round, -1, step))
            gathered[shape] = [whole.take(rows[end:])]
            size += gathered[shape][0].bytes

    for turn in turns:
        came = store.read(places[turn])
        pool = _Pool(came.smashed.detach(), came.targets, came.side, came.frame.meta)
        gathered.setdefault((tuple(came.smashed.shape[1:]), came.targets.dim()), []).append(pool)
        size += pool.bytes
        if size > window:
            yield from deal(last=False)
            windows += 1
    yield from deal(last=True)


def _arrived(pool: _Pool, place: Place) -> Arrived:
    frame = Frame({}, 0, "step", *place, pool.meta, {})
    return Arrived(frame, pool.smashed, pool.targets, pool.side, len(pool.targets), answered=False)
