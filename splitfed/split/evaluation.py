"""The crossing of images that the model is only evaluated on: what clients send when they evaluate, and what they hear.

    client                                               server
    front -> encoder -> codec -> zstd ==> zstd -> codec -> decoder -> back -> loss, number right
       loss, number right  <================================================='

Frames up are `look` (one mini-batch) and `end` (the client's own count of bytes); down come `seen` and `done`. A
reducer takes no part, but for its encoder and decoder, which belong to the model.

Where labels are private none go up. `look` is answered with `features`, the activations at the second cut, from which
tail and loss go on at the client.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import expected_targets
from splitfed.errors import WireError
from splitfed.run.ledger import Sizes
from splitfed.seeds import Key
from splitfed.split.bounds import check_bounds, check_number
from splitfed.split.computing.rehearsal import PLACE, Crossed, RandomBatch
from splitfed.split.cut import Cut, check_labels, most_bytes
from splitfed.split.ending import ENDING
from splitfed.wire.frame import Frame, Packed, Place, pack, unpack

EVALUATION = "evaluation"
_SMASHED, _TARGETS, _FEATURES = (f"{EVALUATION}/{name}" for name in ("smashed", "targets", "tail_smashed"))
_ANSWER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the model made of some images: the sum of their losses, and how many are right."""

    loss: float
    right: int

    def check(self, where: str, images: int) -> None:
        """Raise Diverged where the mean loss of so many images is not finite, or absurd."""
        check_number("the loss", self.loss / images, where)


class EvaluationCut:
    """Packs and unpacks the frames of an evaluation over a cut, whose front ends in this `encoder`; holds no state
    between calls."""

    def __init__(self, cut: Cut, encoder: nn.Module) -> None:
        self.cut, geometry = cut, cut.geometry
        smashed = Expect.floats((1, geometry.batch), *_sizes(encoder, geometry, cut.device))
        self.expected: Expected = {_SMASHED: (smashed,)}
        if not cut.private:
            self.expected = {**self.expected, _TARGETS: expected_targets(geometry)}
        self.most_bytes = max(most_bytes(self.expected), most_bytes(self._features(geometry.batch)))

    def _features(self, images: int) -> Expected:
        return {_FEATURES: (Expect.floats(images, self.cut.geometry.tokens, self.cut.geometry.width),)}

    def _pack(self, kind: str, tensors: dict[str, Tensor], key: Key, place: Place) -> Packed:
        packets = self.cut.encode(tensors, key, self._where(place))
        return pack(kind, *place, {f"{EVALUATION}/{name}": packet for name, packet in packets.items()})

    @staticmethod
    def _where(place: Place) -> str:
        return f"the evaluation of {place}"

    def pack(self, smashed: Tensor, labels: Tensor, key: Key, place: Place) -> Packed:
        """Encode a mini-batch of what the encoder made, `[B, ...]`, and, unless they are private, its labels `[B]`.
        Raises CodecError for what cannot be sent."""
        tensors = {"smashed": smashed.float()} | ({} if self.cut.private else {"targets": labels})
        return self._pack("look", tensors, key, place)

    def unpack_up(self, buffer: bytes) -> Frame:
        """Decode a client's frame, `look` or `end`. Raises WireError for anything else."""
        kinds = {"look": self.expected, **ENDING}
        return unpack(buffer, kinds, device=self.cut.device, max_bytes=self.most_bytes)

    def batch(self, frame: Frame) -> tuple[Tensor, Tensor | None]:
        """Check what a `look` frame says beyond shapes, and return what is smashed, and labels where these are not
        private. Raises WireError, and Diverged for numbers that no training makes."""
        smashed, labels = frame.tensors[_SMASHED], frame.tensors.get(_TARGETS)
        check_bounds("smashed", smashed, self._where(frame.place))
        if labels is not None:
            if len(smashed) != len(labels):
                raise WireError(f"{len(labels)} labels for {len(smashed)} images")
            check_labels(labels, self.cut.geometry.classes)
        return smashed, labels

    def answer(self, frame: Frame, found: Evaluated) -> Packed:
        """Encode what answers a `look` frame. Raises Diverged for a loss that is not finite, or absurd."""
        found.check(self._where(frame.place), len(frame.tensors[_SMASHED]))
        return pack("seen", *frame.place, {}, {"loss": found.loss, "right": found.right})

    def answer_private(self, frame: Frame, features: Tensor, key: Key) -> Packed:
        """Encode the activations at the second cut, `[B, n, D]`, which answer a `look` frame without labels. Raises
        CodecError for what cannot be sent."""
        check_bounds("tail_smashed", features, self._where(frame.place))
        tensors = {"tail_smashed": features.float()}
        return self._pack("features", tensors, key, frame.place)

    def unpack_features(self, buffer: bytes, step: int, images: int) -> Tensor:
        """Decode the activations that answer this step, of so many images. Raises WireError for anything else."""
        kinds = {"features": self._features(images)}
        frame = unpack(buffer, kinds, device=self.cut.device, max_bytes=self.most_bytes)
        if frame.step != step:
            raise WireError(f"what answers step {step} of an evaluation is of step {frame.step}")
        return frame.tensors[_FEATURES]

    def unpack_answer(self, buffer: bytes, step: int, images: int) -> Evaluated:
        """Decode the answer to this step, of so many images. Raises WireError for anything else."""
        frame = unpack(buffer, {"seen": {}}, max_bytes=_ANSWER_BYTES)
        loss, right = frame.meta.get("loss"), frame.meta.get("right")
        if frame.step != step or type(loss) is not float or type(right) is not int:
            said = str(frame.meta)[:100]
            raise WireError(f"what answers step {step} of an evaluation says {said} of step {frame.step}")
        if loss < 0 or not 0 <= right <= images:
            raise WireError(f"a loss of {loss} and {right} right of {images} images")
        return Evaluated(loss, right)

    def sizes(self, packed: Packed | Frame, examples: int) -> dict[str, Sizes]:
        """Return what a frame adds to the ledger: its tensors as one role, and its envelope."""
        geometry, found = self.cut.geometry, packed.sizes.get(EVALUATION)
        raw = examples * (4 * geometry.tokens * geometry.width + (0 if self.cut.private else 8))
        rows = {EVALUATION: Sizes(raw, found.reduced, found.coded, found.sent)} if found else {}
        return rows | {"envelope": Sizes(sent=packed.envelope)}

    @torch.no_grad()
    def rehearse(self, batch: RandomBatch, key: Key, encoder: nn.Module) -> list[Crossed]:
        """Return which way the two frames of a mini-batch go, and what each adds to the ledger."""
        packed = self.pack(encoder(batch.activations), batch.labels, key, PLACE)
        frame = self.unpack_up(packed.buffer)
        if self.cut.private:
            answer = self.answer_private(frame, batch.activations, key)
        else:
            answer = self.answer(frame, Evaluated(1.0, len(batch)))
        return [("up", self.sizes(packed, len(batch))), ("down", self.sizes(answer, len(batch)))]


@torch.no_grad()
def evaluated(logits: Tensor, labels: Tensor) -> Evaluated:
    """Compare logits `[B, classes]` to labels `[B]`."""
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return Evaluated(float(loss), int((logits.argmax(1) == labels).sum()))


def mean(parts: list[Evaluated], images: int) -> tuple[float, float]:
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
