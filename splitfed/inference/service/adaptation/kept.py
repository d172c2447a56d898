"""What clients kept for the server: images, or what a block of their front made of them; and what of it stays to be
learnt from again."""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from splitfed.errors import WireError
from splitfed.seeds import Key

Owner = int | None  # whose norms they teach: a client's, or everybody's
MOST_BYTES = 256_000_000


@dataclass(frozen=True, slots=True)
class Kept:
    """A sample: `content` is a JPEG file where `block` is 0, else what that block made of an image, `[k, D]`, as it has
    crossed."""

    block: int
    content: bytes | Tensor

    @property
    def size(self) -> int:
        """The bytes that it takes in memory."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes


def open_jpeg(content: bytes, side: int) -> Image.Image:
    """Open, without decoding it, what is said to be a JPEG file of a square image of that side in RGB. Raises WireError
    where it is not."""
    try:
        image = Image.open(BytesIO(content), formats=("JPEG",))
    except Exception:  # Pillow raises SyntaxError, struct.error and more
        raise WireError("a kept image that is no JPEG file") from None
    if image.size != (side, side) or image.mode != "RGB":
        raise WireError(f"a kept image of {image.size[0]} x {image.size[1]} pixels in {image.mode}, not {side} in RGB")
    return image


def pixels(content: bytes, side: int) -> Tensor:
    """Decode a kept image to uint8 `[3, S, S]`. Raises WireError where it is none."""
    try:
        return torch.from_numpy(np.array(open_jpeg(content, side))).permute(2, 0, 1)
    except WireError:
        raise
    except Exception:
        raise WireError("a kept image whose JPEG file is broken") from None


class Replay:
    """The newest samples of all owners, each with what the teacher said of it, probabilities `[C]`: `most` of them, and
    of no more than `most_bytes`."""

    def __init__(self, most: int, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes, self._bytes = most, most_bytes, 0
        self._order: deque[Owner] = deque()
        self._of: defaultdict[Owner, deque[tuple[Kept, Tensor]]] = defaultdict(deque)

    def __len__(self) -> int:
        return len(self._order)

    def add(self, owner: Owner, samples: Sequence[Kept], said: Tensor) -> None:
        """Take samples in, in place of the oldest."""
        for sample, answer in zip(samples, said, strict=True):
            self._of[owner].append((sample, answer))
            self._order.append(owner)
            self._bytes += _size(sample, answer)
            while len(self._order) > self._most or self._bytes > self._most_bytes:
                self._bytes -= _size(*self._of[self._order.popleft()].popleft())

    def draw(self, owner: Owner, count: int, key: Key) -> Iterator[tuple[Kept, Tensor]]:
        """Draw so many samples of an owner, each once, or all that there are."""
        own = list(self._of[owner])
        for place in torch.randperm(len(own), generator=key.generator())[:count].tolist():
            yield own[place]

    def forget(self, owner: Owner) -> None:
        """Let go of an owner's samples."""
        self._bytes -= sum(_size(*one) for one in self._of.pop(owner, ()))
        self._order = deque(one for one in self._order if one != owner)


def _size(sample: Kept, said: Tensor) -> int:
    return sample.size + said.nbytes
