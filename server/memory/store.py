"""What clients sent of a frozen front, on disk: segments that only grow, one for each client and round.

A checkpoint names the segments with the length and SHA-256 of each, which was hashed once, when its round ended. What
no checkpoint names is what an interrupted round has left, and is deleted.
"""

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from io import BufferedRandom
from logging import getLogger
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors.torch import load, save

from splitfed.compression.reducers.base import Reducer
from splitfed.errors import RunError, WireError
from splitfed.files import reason, sync, told
from splitfed.split.cut import Arrived, Cut
from splitfed.wire.frame import Frame, Place

log = getLogger("splitfed")

_META = "meta"


@dataclass(slots=True)
class Segment:
    """What a client sent in a round: a file of frames one after the other, with the bytes and the smashed samples of
    each. `sha256` is empty while it grows."""

    client: int
    round: int
    lengths: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    sha256: str = ""

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"client-{self.client:06d}-round-{self.round:06d}.bin"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a mini-batch lies: in which segment's file, from where, how long, and of how many samples."""

    segment: Segment
    start: int
    length: int
    samples: int


class Store:
    """Keeps mini-batches, which crossed this `cut`, in a `folder`, at most `disk` bytes of them: as their frames came
    (`coded`), or decoded in 16 bits. Safe to call from threads between `open` and `close`, where each client has one
    thread.

    A file that is forgotten stays for `checkpoints` rounds more, as a run may go on from one of so many. Raises
    WriteError where the disk takes no more.
    """

    def __init__(self, folder: Path, cut: Cut, disk: int, coded: bool, checkpoints: int = 1) -> None:
        self._folder, self.cut, self._disk, self._coded, self._checkpoints = folder, cut, disk, coded, checkpoints
        self._segments: list[Segment] = []
        self._forgotten: dict[str, int] = {}  # names of files, and the round in which they were forgotten
        self._bytes = 0  # of segments, those that grow too
        self._left_out: dict[int, int] = {}  # mini-batches of each client for which there was no room
        self._open: dict[int, tuple[Segment, BufferedRandom]] = {}
        self._round = 0
        self._lock = Lock()

    @property
    def size(self) -> int:
        """What is kept, in bytes on disk."""
        return self._bytes

    @property
    def growing(self) -> bool:
        """Whether something has come in the open round."""
        return bool(self._open)

    @property
    def samples(self) -> int:
        """How many smashed samples are kept."""
        return sum(sum(segment.samples) for segment in self._segments)

    def batches(self, client: int) -> int:
        """Return how many of a client's mini-batches have come in rounds that are closed, also without room for
        them."""
        kept = sum(len(segment.lengths) for segment in self._segments if segment.client == client)
        return kept + self._left_out.get(client, 0)

    def open(self, round: int) -> None:
        """Begin a round in which clients send."""
        self._abandon()
        self._round = round
        with told(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)  # images can be seen in what it holds
        self._tidy()

    def add(self, client: int, buffer: bytes, batch: Arrived) -> None:
        """Keep a mini-batch, as it came in a frame and as that was decoded."""
        content = buffer if self._coded else _pack(batch)
        with self._lock:
            if self._bytes + len(content) > self._disk:
                if not self._left_out:
                    log.warning(
                        "round %d: memory is full: memory.disk allows %d bytes, so what comes from now on is not kept; "
                        "more room, or stronger compression, keeps more", self._round, self._disk,
                    )  # fmt: skip
                self._left_out[client] = self._left_out.get(client, 0) + 1
                return
            segment, file = self._opened(client)
            segment.lengths.append(len(content))
            segment.samples.append(len(batch.targets))
            self._bytes += len(content)
        with told(self._folder / segment.name):
            file.write(content)

    def _opened(self, client: int) -> tuple[Segment, BufferedRandom]:
        if client not in self._open:
            segment = Segment(client, self._round)
            with told(path := self._folder / segment.name):
                self._open[client] = segment, open(path, "w+b")  # noqa: SIM115 - it is closed with the round
        return self._open[client]

    def drop(self, client: int) -> None:
        """Keep nothing of what a client has sent in the open round."""
        with self._lock:
            if opened := self._open.pop(client, None):
                opened[1].close()
                self._count()

    def close(self) -> None:
        """End a round: what has come is on disk when this returns."""
        for client in sorted(self._open):
            segment, file = self._open[client]
            with told(self._folder / segment.name):
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                segment.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                file.close()
            self._segments.append(segment)
        self._open = {}
        with told(self._folder):
            sync(self._folder)

    def forget(self, clients: Collection[int], round: int) -> None:
        """Forget, from a round on, what these clients have sent."""
        gone = [segment.name for segment in self._segments if segment.client in clients]
        self._segments = [segment for segment in self._segments if segment.client not in clients]
        self._forgotten |= dict.fromkeys(gone, round)
        for client in clients:
            self._left_out.pop(client, None)
        self._count()

    def expire(self, round: int) -> None:
        """Delete, as a round begins, what was forgotten so long ago that no checkpoint needs it."""
        gone = {name for name, since in self._forgotten.items() if since <= round - self._checkpoints}
        self._forgotten = {name: since for name, since in self._forgotten.items() if name not in gone}
        for name in gone:
            (self._folder / name).unlink(missing_ok=True)

    def places(self) -> list[Stored]:
        """Return where each mini-batch lies, by round, client and order of arrival."""
        found = []
        for segment in sorted(self._segments, key=lambda one: (one.round, one.client)):
            start = 0
            for length, samples in zip(segment.lengths, segment.samples, strict=True):
                found.append(Stored(segment, start, length, samples))
                start += length
        return found

    def read(self, place: Stored) -> Arrived:
        """Return a mini-batch as it came, or as 16 bits have kept it. Raises RunError for a file that is damaged."""
        path = self._folder / place.segment.name
        try:
            with open(path, "rb") as file:
                file.seek(place.start)
                content = file.read(place.length)
            if self._coded:
                return self.cut.batch(self.cut.unpack_up(content), answered=False)
            return _unpack(content, self.cut.reducer, self.cut.device)
        except (OSError, ValueError, KeyError, WireError) as error:
            raise RunError(f"{path}: memory is damaged ({reason(error)}): {_OUT}") from error

    def state_dict(self) -> dict[str, Any]:
        """Return which segments there are, and what each holds."""
        if not (self._segments or self._left_out or self._forgotten):
            return {}
        return {
            "segments": [asdict(segment) for segment in self._segments],
            "left_out": sorted(map(list, self._left_out.items())),
            "forgotten": dict(self._forgotten),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what an earlier attempt's `state_dict` returned. Raises RunError where a file is missing, or other
        than it was."""
        self._abandon()
        self._segments = [Segment(**segment) for segment in state.get("segments", ())]
        self._left_out = dict(state.get("left_out", ()))
        self._forgotten = dict(state.get("forgotten", {}))
        self._count()
        for segment in self._segments:
            _check(self._folder / segment.name, segment)

    def delete(self) -> None:
        """Delete all that is kept, as nobody needs it any more."""
        self._abandon()
        self._segments, self._forgotten = [], {}
        self._tidy()
        with suppress(OSError):  # it holds what is not of memory, or is not there
            self._folder.rmdir()

    def _tidy(self) -> None:
        """Delete what an interrupted round has left."""
        keep = {segment.name for segment in self._segments} | self._forgotten.keys()
        for path in self._folder.glob("client-*.bin"):
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def _count(self) -> None:
        grown = [*self._segments, *(segment for segment, _ in self._open.values())]
        self._bytes = sum(sum(segment.lengths) for segment in grown)

    def _abandon(self) -> None:
        """Let go of what an open round has brought."""
        for _, file in self._open.values():
            file.close()
        self._open = {}
        self._count()


_OUT = "bring the file back, or go on from a checkpoint of an earlier phase"


def _check(path: Path, segment: Segment) -> None:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path}: memory cannot be read ({reason(error)}): {_OUT}") from error
    if found != segment.sha256:
        raise RunError(f"{path}: memory is damaged (it is not what was written): {_OUT}")


def _pack(batch: Arrived) -> bytes:
    tensors = {"smashed": batch.smashed.detach().half(), "targets": batch.targets}
    tensors |= {f"side/{name}": tensor for name, tensor in batch.side.items()}
    here = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    place = [*batch.frame.place]
    return save(here, {_META: json.dumps([place, batch.examples, batch.frame.meta])})


def _unpack(content: bytes, reducer: Reducer, device: torch.device) -> Arrived:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    place, examples, meta = json.loads(header["__metadata__"][_META])
    tensors = {name: tensor.to(device) for name, tensor in load(content).items()}
    side = {name.split("/")[1]: tensor for name, tensor in tensors.items() if name.startswith("side/")}
    frame = Frame({}, 0, "step", *Place(*place), meta, {})
    lengths = reducer.lengths(side)
    return Arrived(frame, tensors["smashed"].float(), tensors["targets"], side, examples, None, False, lengths)
