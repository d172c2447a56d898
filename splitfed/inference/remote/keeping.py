"""The crossing of images that a client keeps for the server to adapt by: as JPEG files, one in a frame, on a stream of
their own. What is lost on the way is not sent again."""

import logging
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from splitfed.compression.codecs.integers import encode_integers
from splitfed.compression.expect import Expect, Expected
from splitfed.compression.lossless import NoStage
from splitfed.errors import Unreached, WireError
from splitfed.inference.remote.line import Line, Reply
from splitfed.inference.remote.selecting import Selector
from splitfed.inference.remote.walking import Walked
from splitfed.wire.answers import ADAPT_KEY, BUSY, TAKEN
from splitfed.wire.frame import Packed, pack, unpack

log = logging.getLogger(__name__)

_KEEP, _IMAGE = "keep", "kept/image"
_QUALITY = 90
_UNDER_WAY = 64  # images whose taking is not confirmed yet: of more none is sent
_SLACK = 1 << 12
_SECONDS = 5.0
TAKING: dict[str, Expected] = {TAKEN: {}}


def pack_image(image: Tensor, number: int) -> Packed:
    """Encode an image, uint8 `[3, S, S]`, as number `number` of those that a client keeps."""
    file = BytesIO()
    shown = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    shown.save(file, "JPEG", quality=_QUALITY, optimize=True)
    content = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8).long()
    return pack(_KEEP, 0, 0, number, {_IMAGE: (encode_integers(content), NoStage())})


def most_bytes(side: int) -> int:
    """Return the bytes that a frame of an image of that side takes at most."""
    return _most_content(side) + _SLACK


def unpack_image(buffer: bytes, side: int) -> tuple[Packed, int, bytes]:
    """Return what a frame adds to the ledger, its number, and the file of an image of that side, which is not opened.
    Raises WireError for anything else."""
    kinds = {_KEEP: {_IMAGE: (Expect.integers((1, _most_content(side))),)}}
    frame = unpack(buffer, kinds, max_bytes=most_bytes(side))
    content = frame.tensors[_IMAGE]
    if int(content.max()) > 255:
        raise WireError("a kept image whose bytes are larger than bytes")
    return Packed(frame.sizes, frame.total, buffer), frame.step, content.to(torch.uint8).numpy().tobytes()


def _most_content(side: int) -> int:
    return 3 * side * side + _SLACK


@dataclass(frozen=True, slots=True)
class Count:
    """How many images were `seen`, how many of them `kept`, and how many of these `lost`, as there was no way or no
    room for them."""

    seen: int
    kept: int
    lost: int


class Keeping:
    """Keeps images for the server as `select` says: on a `line` of their own as files, or where there is none as marks
    of what is sent to be answered; `adapts` is which norms the server has said to adapt, None where it was silent."""

    def __init__(self, select: Selector, line: Line | None, adapts: str | None) -> None:
        self._select, self._line, self._adapts = select, line, adapts
        self._under_way: list[Future[Reply]] = []
        self._number = self._lost = 0
        self._problem: str | None = None

    @property
    def count(self) -> Count:
        """What has become of images so far."""
        return Count(self._select.seen, self._select.kept, self._lost)

    def marks(self, line: Line | None) -> Selector | None:
        """Return what tells which images are to be marked as kept on a line; None where they are not, as the server
        there learns nothing from marks."""
        if self._line is not None or line is None:
            return None
        return self._select if line.said.get(ADAPT_KEY, self._adapts) == "back" else None

    def send(self, walked: Walked) -> None:
        """Send the images of a mini-batch that are kept, by what the last exit said of each; nothing waits for that."""
        if self._line is None:
            return
        rows = torch.tensor([row for row, last in enumerate(walked.last) if last is not None], dtype=torch.int64)
        if not len(rows):
            return
        said = walked.answered.probabilities[rows.to(walked.answered.probabilities.device)]
        for row in rows[self._select(said)].tolist():
            if self._problem is not None or len(self._under_way) >= _UNDER_WAY:
                self._lost += 1
                continue
            self._number += 1
            try:
                self._under_way.append(self._line.send(self._number, pack_image(walked.pixels[row], self._number)))
            except Unreached:
                self._lost += 1
            except WireError as error:
                self._refused(error)

    def served(self) -> str | None:
        """Return the beginning of the name of the front that is served now, if the server has told one since it was
        last asked."""
        found: str | None = None
        for future in [one for one in self._under_way if one.done()]:
            self._under_way.remove(future)
            try:
                header, _ = future.result()
            except Unreached:
                self._lost += 1
            except WireError as error:
                self._refused(error)
            else:
                self._lost += header.kind == BUSY
                found = str(header.meta.get("model", "")) or found
        return found

    def _refused(self, error: WireError) -> None:
        self._lost += 1
        if self._problem is None:
            self._problem = str(error)
            log.warning("images are kept for nobody any more: %s", error)

    def close(self) -> None:
        """Wait for some seconds until what is under way has been taken, and end the stream."""
        until = time.monotonic() + _SECONDS
        for future in self._under_way:
            with suppress(WireError, TimeoutError):
                future.result(max(0.0, until - time.monotonic()))
        self.served()
        if self._line is not None:
            self._line.close()
