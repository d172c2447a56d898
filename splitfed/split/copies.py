"""Copies of what has crossed the cut: both ends keep the last reconstruction of each sample, and send what is new.

For sample s, in the variant that it shows, m(s) is what both ends have of it, 0 at first. The sender encodes x - m(s),
decodes its own frame, and both ends set m(s) to m(s) + Q(x - m(s)); the receiver goes on with this m(s) (AQ-SGD, arXiv
2206.01299). What rounding took from one visit is in the difference of the next. A sample that has hardly changed need
not be sent at all: its copy is used (SplitCom, arXiv 2602.10564).

Copies are float16, and what the receiver goes on with is what is stored, so that nothing is lost in between. What
crosses is decoded as float64, in which a sum of few-bit numbers is exact, whatever its order, so that both ends have
the same bits on any processor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from splitfed.compression.codecs.base import Codec, Packet
from splitfed.compression.codecs.decoders import decode
from splitfed.compression.codecs.integers import IntegerCodec
from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.lossless import Lossless
from splitfed.compression.reducers.base import Plan, Reducer
from splitfed.errors import WireError

if TYPE_CHECKING:
    from splitfed.scenario.compression import Compression

# Of one sample and variant, by role: float16 `[N, ...]`, every row in its place.
Entry = dict[str, Tensor]

IDS, SKIPPED, PLACES = "ids", "ids/skipped", "ids/places"
# A sample's gradient is small: in units of 2**-10, float16 holds it well.
_UNIT = 2.0**10
_LARGEST = torch.finfo(torch.float16).max


class Copies:
    """What one client and the server both keep of its samples, at one end and in one round: `kept`, by id, stays as it
    is, and `now` is what this round makes of it. At `most` so many samples are kept; those that come when it is `full`
    are not."""

    def __init__(self, kept: Mapping[int, Entry], most: int) -> None:
        self.now, self._most = dict(kept), most
        self.full = False

    def known(self, role: str, ids: Tensor) -> Tensor:
        """Tell of which of these samples there is a copy, bool `[B]`."""
        return torch.tensor([role in self.now.get(one, ()) for one in ids.tolist()], dtype=torch.bool)

    def read(self, role: str, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the copies of these samples, float16 `[B, *shape]`, zeros where there is none."""
        nothing = torch.zeros(shape, dtype=torch.float16)
        return torch.stack([self.now.get(one, {}).get(role, nothing) for one in ids.tolist()])

    def keep(self, role: str, ids: Tensor, copies: Tensor) -> None:
        """Keep these, float16 `[B, *shape]`, in the place of what was kept of the same samples."""
        for one, copy in zip(ids.tolist(), copies.unbind(), strict=True):
            if one in self.now or len(self.now) < self._most:
                # In memory of its own: a view would hold on to the whole mini-batch.
                self.now[one] = {**self.now.get(one, {}), role: copy.clone()}
            else:
                self.full = True


def flat(kept: Mapping[int, Entry]) -> dict[str, Tensor]:
    """Return copies as tensors: `ids`, int64 `[M]`, and each role's, float16 `[M, ...]`; of a role that not all have,
    as not every step is answered with a gradient, those alone that have it, whose ids are `<role>/ids`."""
    found = {IDS: torch.tensor(sorted(kept), dtype=torch.int64)}
    for role in sorted({role for entry in kept.values() for role in entry}):
        ids = [one for one in sorted(kept) if role in kept[one]]
        found[role] = torch.stack([kept[one][role] for one in ids])
        if len(ids) < len(kept):
            found[f"{role}/{IDS}"] = torch.tensor(ids, dtype=torch.int64)
    return found


def unflat(tensors: Mapping[str, Tensor]) -> dict[int, Entry]:
    """Undo `flat`. Raises KeyError and ValueError for what it does not make."""
    found: dict[int, Entry] = {one: {} for one in tensors[IDS].tolist()}
    for role, rows in tensors.items():
        if not role.endswith(IDS):
            for one, row in zip(tensors.get(f"{role}/{IDS}", tensors[IDS]).tolist(), rows.unbind(), strict=True):
                found[one][role] = row
    return found


@dataclass(slots=True)
class Visit:
    """The samples of a mini-batch at one end: their `ids`, int64 `[B]` on the CPU, and the client's copies. `places`,
    int64 `[B, k]`, says where each row of a smashed sample belongs in its copy, None where all do as they come; `seen`
    is what the server sees of what was smashed. Packing and unpacking fill in both."""

    ids: Tensor
    copies: Copies
    places: Tensor | None = None
    seen: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is sent of one role: tensors by name, and what its receiver makes the rest of: copies `base`, float16, of
    which `first` are sent as they are and `differ` as differences; bool `[B]`."""

    tensors: dict[str, Tensor]
    base: Tensor
    first: Tensor
    differ: Tensor


class Differences:
    """How one role crosses: the copy of a sample is of this `shape`. Samples that are known are sent as differences
    where `delta` says so, and not at all where the cosine between copy and sample is `skip` or more. What is kept is
    the number times `unit`."""

    def __init__(
        self, role: str, shape: tuple[int, ...], delta: bool, skip: float | None = None, unit: float = 1
    ) -> None:  # fmt: skip
        self.role, self.shape, self.delta, self.skip, self.unit = role, shape, delta, skip, unit

    @property
    def _difference(self) -> str:
        return f"{self.role}/delta"

    def expected(self, most: int, rows: tuple[int, ...]) -> Expected:
        """Return the bounds of what arrives for up to `most` samples, each of the shape `rows`."""
        some = (Expect(frozenset({"float64"}), ((0, most), *((size, size) for size in rows))),)
        found = {self.role: some} | ({self._difference: some} if self.delta else {})
        return found | ({SKIPPED: (Expect.integers((1, most)),)} if self.skip is not None else {})

    def send(self, visit: Visit, tensor: Tensor) -> Outgoing:
        """Return what is to be encoded of a tensor `[B, k, ...]`."""
        wanted = tensor.detach().cpu().double() * self.unit
        base, known = self._base(visit, wanted.shape), visit.copies.known(self.role, visit.ids)
        skipped = known & self._alike(wanted, base) if self.skip is not None else torch.zeros_like(known)
        first, differ = self._parts(known, skipped)
        tensors = {self.role: wanted[first]}
        if self.delta:
            tensors[self._difference] = wanted[differ] - base[differ].double()
        if self.skip is not None:
            tensors[SKIPPED] = skipped.long()
        return Outgoing(tensors, base, first, differ)

    def sent(self, visit: Visit, outgoing: Outgoing, packets: Mapping[str, tuple[Packet, Lossless]]) -> Tensor:
        """Keep what the other end will make of these packets; return it, float32 `[B, k, ...]`."""
        decoded = {name: decode(packets[name][0], "cpu") for name in outgoing.tensors}
        return self._keep(visit, outgoing.base, outgoing.first, outgoing.differ, decoded)

    def take(self, visit: Visit, rows: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Tensor:
        """Keep what a frame's tensors make of the copies of a mini-batch, each sample of the shape `rows`; return it,
        float32 `[B, *rows]`. Raises WireError, having kept nothing, for numbers of samples that are not theirs."""
        base, known = self._base(visit, (len(visit.ids), *rows)), visit.copies.known(self.role, visit.ids)
        skipped = torch.zeros_like(known)
        if self.skip is not None:
            if tensors[SKIPPED].shape != known.shape or int(tensors[SKIPPED].max()) > 1:
                raise WireError("what is skipped is not said of each sample")
            skipped = tensors[SKIPPED].bool()
            if bool((skipped & ~known).any()):
                raise WireError("a sample is skipped of which there is no copy")
        first, differ = self._parts(known, skipped)
        for name, which in ((self.role, first), (self._difference, differ)):
            if name in tensors and len(tensors[name]) != int(which.sum()):
                raise WireError(f"{len(tensors[name])} samples of {name}, where {int(which.sum())} are to come")
        return self._keep(visit, base, first, differ, tensors)

    def _parts(self, known: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
        return (~known, known & ~skipped) if self.delta else (~skipped, torch.zeros_like(known))

    def _alike(self, wanted: Tensor, base: Tensor) -> Tensor:
        assert self.skip is not None
        return torch.cosine_similarity(wanted.flatten(1), base.flatten(1).double(), dim=1) >= self.skip

    def _base(self, visit: Visit, shape: tuple[int, ...]) -> Tensor:
        whole = visit.copies.read(self.role, visit.ids, self.shape)
        return whole if visit.places is None else whole.gather(1, _spread(visit.places, shape))

    def _keep(self, visit: Visit, base: Tensor, first: Tensor, differ: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        made = base.clone()
        made[first] = _half(tensors[self.role])
        if self.delta:
            made[differ] = _half(base[differ].double() + tensors[self._difference])
        whole = made
        if visit.places is not None:
            copies = visit.copies.read(self.role, visit.ids, self.shape)
            whole = copies.scatter(1, _spread(visit.places, made.shape), made)
        visit.copies.keep(self.role, visit.ids, whole)
        return made.float() / self.unit


def _half(numbers: Tensor) -> Tensor:
    return numbers.clamp(-_LARGEST, _LARGEST).half()


def _spread(places: Tensor, shape: tuple[int, ...]) -> Tensor:
    return places.view(*places.shape, *[1] * (len(shape) - 2)).expand(shape)


class CutCopies:
    """What is kept of the samples that cross one cut: how `smashed` and `gradient` go on from that, None where they do
    not; the bounds (`expected`) and `stages` (codec and lossless) of what travels beside; how many bytes the copies of
    `each` sample take; and of how many samples of one client there is room for copies, at `most`."""

    def __init__(self, config: "Compression", reducer: Reducer, geometry: Geometry, sharing: int) -> None:
        (bounds,) = reducer.expected(geometry)["smashed"]
        self._rows = tuple(high for _, high in bounds.dims[1:])
        self._reducer, places, batch = reducer, reducer.places(geometry), (1, geometry.batch)
        self._marks = None if reducer.side_places else places
        shape = self._rows if places is None else (places, *self._rows[1:])
        delta, skip = bool(config.smashed.delta), config.smashed.skip
        self.smashed = Differences("smashed", shape, delta, skip) if delta or skip is not None else None
        self.gradient = Differences("cut_gradient", shape, True, unit=_UNIT) if config.cut_gradient.delta else None
        self.expected: dict[str, tuple[Expect, ...]] = {IDS: (Expect.integers(batch),)}
        if self._marks is not None:
            self.expected[PLACES] = (Expect.integers(batch, self._marks),)
        if self.smashed:
            self.expected |= self.smashed.expected(geometry.batch, self._rows)
        self.stages: dict[str, tuple[Codec, Lossless]] = {IDS: (IntegerCodec(), config.targets.lossless.build())}
        for role, packing in (("smashed", config.smashed), ("cut_gradient", config.cut_gradient)):
            codec = packing.codec if packing.delta is True else packing.delta
            if codec is not False:
                self.stages[f"{role}/delta"] = (codec.build(), packing.lossless.build())
        kept = sum(one is not None for one in (self.smashed, self.gradient))
        self.each = kept * 2 * prod(shape)
        self.most = config.cache.disk // (sharing * self.each)

    @classmethod
    def of(cls, config: "Compression", reducer: Reducer, geometry: Geometry, sharing: int) -> Self | None:
        """Return what a scenario keeps, None where it keeps nothing; a client has one in `sharing` of the disk."""
        return cls(config, reducer, geometry, sharing) if config.remembers else None

    def up(self, visit: Visit, plan: Plan, smashed: Tensor) -> tuple[dict[str, Tensor], Outgoing | None]:
        """Return what goes up of a mini-batch `[B, k, ...]` beside what always does, or in its place, and what of that
        `went_up` wants to hear of."""
        places = plan.where()
        visit.places = None if places is None else places.cpu()
        tensors = {IDS: visit.ids}
        if self._marks is not None and visit.places is not None:
            marks = torch.zeros(len(visit.ids), self._marks, dtype=torch.int64)
            tensors[PLACES] = marks.scatter_(1, visit.places, 1)
        outgoing = self.smashed.send(visit, smashed) if self.smashed else None
        return tensors | (outgoing.tensors if outgoing else {}), outgoing

    def went_up(
        self, visit: Visit, outgoing: Outgoing | None, packets: Mapping[str, tuple[Packet, Lossless]]
    ) -> None:  # fmt: skip
        """Keep what the server will make of these packets."""
        if self.smashed and outgoing:
            visit.seen = self.smashed.sent(visit, outgoing, packets)

    def visit(self, tensors: Mapping[str, Tensor], examples: int, copies: Copies) -> tuple[Visit, Tensor]:
        """Return the visit that a frame of so many images tells of, and a tensor of the shape of what was smashed, of
        which nothing but that is to be looked at. Raises WireError."""
        ids = tensors[IDS]
        if len(ids) != examples or len(ids.unique()) != len(ids):
            raise WireError(f"{len(ids)} ids, or one of them twice, for {examples} images")
        shaped = torch.zeros(()).expand(len(ids), *self._rows) if self.smashed else tensors["smashed"]
        return Visit(ids, copies), shaped

    def came_up(self, visit: Visit, tensors: Mapping[str, Tensor], side: Mapping[str, Tensor]) -> Tensor:
        """Return what was smashed, `[B, k, ...]`, from a frame's tensors and the client's copies, and keep it. Raises
        WireError, having kept nothing."""
        visit.places = self._reducer.where(side) if self._marks is None else self._marked(tensors[PLACES], visit)
        if not self.smashed:
            return tensors["smashed"]
        visit.seen = self.smashed.take(visit, self._rows, tensors)
        return visit.seen

    def _marked(self, marks: Tensor, visit: Visit) -> Tensor:
        rows = self._rows[0]
        if len(marks) != len(visit.ids) or int(marks.max()) > 1 or bool((marks.sum(1) != rows).any()):
            raise WireError(f"marks that are not of {rows} places for each sample")
        return marks.nonzero()[:, 1].view(len(marks), rows)
