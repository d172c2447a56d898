"""The crossing of images that are only looked at: what clients send when they evaluate, and what they hear.

    client                                               server
    front -> encoder -> codec -> zstd ==> zstd -> codec -> decoder -> back -> loss, number right
       loss, number right  <================================================='

Frames up are `look` (one mini-batch) and `end` (the client's own count of bytes); down come `seen` and `done`. A
reducer takes no part, but for its encoder and decoder, which belong to the model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitfed.compression.reducer import expected_targets
from splitfed.cut import Cut, check_labels, most_bytes
from splitfed.errors import WireError
from splitfed.expect import Expect, Geometry
from splitfed.ledger import Sizes
from splitfed.seeds import Key
from splitfed.wire import Frame, Packed, pack, unpack

ROLE = "evaluation"
_SMASHED, _TARGETS = f"{ROLE}/smashed", f"{ROLE}/targets"
_ANSWER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Seen:
    """What the back made of some images: the sum of their losses, and how many are right."""

    loss: float
    right: int


class Looks:
    """Packs and unpacks the frames of an evaluation over a cut, whose front ends in this `encoder`; holds no state
    between calls."""

    def __init__(self, cut: Cut, encoder: nn.Module) -> None:
        self.cut = cut
        sizes = _sizes(encoder, cut.geometry, cut.device)
        smashed = Expect.floats((1, cut.geometry.batch), *sizes)
        self.expected = {_SMASHED: (smashed,), _TARGETS: expected_targets(cut.geometry)}
        self.most_bytes = most_bytes(self.expected)

    def pack(self, smashed: Tensor, labels: Tensor, key: Key, round: int, client: int, step: int) -> Packed:
        """Encode a mini-batch of what the encoder made, `[B, ...]`, and its labels `[B]`. Raises CodecError for what
        cannot be sent."""
        where = f"the evaluation of round {round}, client {client}, step {step}"
        packets = self.cut.encode({"smashed": smashed.float(), "targets": labels}, key, where)
        return pack("look", round, client, step, {f"{ROLE}/{name}": packet for name, packet in packets.items()})

    def unpack_up(self, buffer: bytes) -> Frame:
        """Decode a client's frame, `look` or `end`. Raises WireError for anything else."""
        kinds = {"look": self.expected, "end": {}}
        return unpack(buffer, kinds, device=self.cut.device, max_bytes=self.most_bytes)

    def batch(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Check what a `look` frame says beyond shapes, and return what is smashed, and labels. Raises WireError."""
        smashed, labels = frame.tensors[_SMASHED], frame.tensors[_TARGETS]
        if len(smashed) != len(labels):
            raise WireError(f"{len(labels)} labels for {len(smashed)} images")
        check_labels(labels, self.cut.geometry.classes)
        return smashed, labels

    def answer(self, frame: Frame, seen: Seen) -> Packed:
        """Encode what answers a `look` frame. Raises CodecError for a loss that is not finite."""
        return pack("seen", frame.round, frame.client, frame.step, {}, {"loss": seen.loss, "right": seen.right})

    def unpack_answer(self, buffer: bytes, step: int, images: int) -> Seen:
        """Decode the answer to this step, of so many images. Raises WireError for anything else."""
        frame = unpack(buffer, {"seen": {}}, max_bytes=_ANSWER_BYTES)
        loss, right = frame.meta.get("loss"), frame.meta.get("right")
        if frame.step != step or type(loss) is not float or type(right) is not int:
            raise WireError(f"what answers step {step} of an evaluation says {frame.meta} of step {frame.step}")
        if loss < 0 or not 0 <= right <= images:
            raise WireError(f"a loss of {loss} and {right} right of {images} images")
        return Seen(loss, right)

    def sizes(self, packed: Packed | Frame, examples: int) -> dict[str, Sizes]:
        """Return what a frame adds to the ledger: both tensors as one role, and its envelope."""
        geometry, found = self.cut.geometry, packed.sizes.get(ROLE)
        raw = examples * (4 * geometry.tokens * geometry.width + 8)
        rows = {ROLE: Sizes(raw, found.reduced, found.coded, found.sent)} if found else {}
        return rows | {"envelope": Sizes(sent=packed.envelope)}


@torch.no_grad()
def seen(logits: Tensor, labels: Tensor) -> Seen:
    """Compare logits `[B, classes]` to labels `[B]`."""
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return Seen(float(loss), int((logits.argmax(1) == labels).sum()))


def mean(parts: list[Seen], images: int) -> tuple[float, float]:
    """Return the mean loss and the share that is right over all `images` of these parts."""
    return math.fsum(part.loss for part in parts) / images, sum(part.right for part in parts) / images


@torch.no_grad()
def _sizes(encoder: nn.Module, geometry: Geometry, device: torch.device) -> torch.Size:
    """Return the shape that the encoder makes of one image's activations."""
    training = encoder.training
    encoder.eval()
    made = encoder(torch.zeros(1, geometry.tokens, geometry.width, device=device))
    encoder.train(training)
    return made.shape[1:]
