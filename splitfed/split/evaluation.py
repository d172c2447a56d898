"""The crossing of images that the model is only evaluated on: what clients send when they evaluate, and what they hear.

    client                                               server
    front -> encoder -> codec -> zstd ==> zstd -> codec -> decoder -> back -> loss, number right
       loss, number right  <================================================='

Frames up are `look` (one mini-batch) and `end` (the client's own count of bytes); down come `seen` and `done`. A
reducer takes no part, but for its layers, which belong to the model, and unless these close tokens there too
(`Reducer.evaluates`): then it stands where the encoder does.

Where labels are private none go up. `look` is answered with `features`, the activations at the second cut, from which
tail and loss go on at the client.
"""

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import View, expected_targets
from splitfed.compression.reducers.tokens.ragged import flat, padded
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


@dataclass(frozen=True, slots=True)
class Looked:
    """A mini-batch as it arrives to be evaluated: the back's input `[B, k, ...]`, labels `[B]` where these are not
    private, and how many tokens each sample has, where they differ."""

    smashed: Tensor
    labels: Tensor | None
    lengths: Tensor | None


class EvaluationCut:
    """Packs and unpacks the frames of an evaluation over a cut, whose front ends in this `encoder`; holds no state
    between calls."""

    def __init__(self, cut: Cut, encoder: nn.Module) -> None:
        self._of_encoder = _sizes(encoder, cut.geometry, cut.device)
        self._cross(cut)

    def across(self, cut: Cut) -> Self:
        """Return the same over another cut, of the same front."""
        other = copy(self)
        other._cross(cut)
        return other

    def _cross(self, cut: Cut) -> None:
        self.cut, geometry = cut, cut.geometry
        smashed = Expect.floats((1, geometry.batch), *self._of_encoder)
        expected = {"smashed": (smashed,), "targets": expected_targets(geometry)}
        if cut.reducer.evaluates:
            expected = dict(cut.reducer.expected(geometry))
        if cut.private:
            del expected["targets"]
        self.expected: Expected = {f"{EVALUATION}/{name}": bounds for name, bounds in expected.items()}
        self.most_bytes = max(most_bytes(self.expected), most_bytes(self._features(geometry.batch)))

    def _features(self, images: int, lengths: Tensor | None = None) -> Expected:
        tokens, width = self.cut.geometry.tokens, self.cut.geometry.width
        shape = (images, tokens, width) if lengths is None else (int(lengths.sum()), width)
        return {_FEATURES: (Expect.floats(*shape),)}

    def _pack(self, kind: str, tensors: Mapping[str, Tensor], key: Key, place: Place) -> Packed:
        packets = self.cut.encode(tensors, key, self._where(place))
        return pack(kind, *place, {f"{EVALUATION}/{name}": packet for name, packet in packets.items()})

    @staticmethod
    def _where(place: Place) -> str:
        return f"the evaluation of {place}"

    def pack(self, smashed: Tensor, labels: Tensor, key: Key, place: Place) -> Packed:
        """Encode a mini-batch of what the encoder made, `[B, ...]`, and, unless they are private, its labels `[B]`.
        Raises CodecError for what cannot be sent."""
        made, side = self._reduced(smashed, key)
        tensors = {"smashed": made.float()} | ({} if self.cut.private else {"targets": labels})
        return self._pack("look", tensors | {f"side/{name}": tensor for name, tensor in side.items()}, key, place)

    def _reduced(self, activations: Tensor, key: Key) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is sent of the activations, and what travels beside it."""
        reducer = self.cut.reducer
        if not reducer.evaluates:
            return activations, {}
        plan = reducer.plan(View(activations, self.cut.geometry.prefix, _blind), key.at("plan"))
        return plan.reduce(activations), plan.side

    def lengths(self, smashed: Tensor, key: Key) -> Tensor | None:
        """Return how many tokens of each sample `pack` sends; None where that is one number for all."""
        return self.cut.reducer.lengths(self._reduced(smashed, key)[1]) if self.cut.reducer.ragged else None

    def unpack_up(self, buffer: bytes) -> Frame:
        """Decode a client's frame, `look` or `end`. Raises WireError for anything else."""
        kinds = {"look": self.expected, **ENDING}
        return unpack(buffer, kinds, device=self.cut.device, max_bytes=self.most_bytes)

    def batch(self, frame: Frame) -> "Looked":
        """Check what a `look` frame says beyond shapes, and return what is to be evaluated. Raises WireError, and
        Diverged for numbers that no training makes."""
        smashed, labels, reducer = frame.tensors[_SMASHED], frame.tensors.get(_TARGETS), self.cut.reducer
        check_bounds("smashed", smashed, self._where(frame.place))
        lengths = None
        if reducer.evaluates:
            begin = f"{EVALUATION}/side/"
            found = {name.removeprefix(begin): one for name, one in frame.tensors.items() if name.startswith(begin)}
            side = {name: tensor.to(self.cut.device) for name, tensor in found.items()}
            lengths = reducer.lengths(side)
            samples = len(smashed) if lengths is None else len(lengths)
            reducer.check(smashed, labels if labels is not None else smashed.new_zeros(samples), side, frame.meta,
                          self.cut.geometry)  # fmt: skip
            smashed = reducer.restore(smashed, side, frame.meta)
        if labels is not None:
            if len(smashed) != len(labels):
                raise WireError(f"{len(labels)} labels for {len(smashed)} images")
            check_labels(labels, self.cut.geometry.classes)
        return Looked(smashed, labels, lengths)

    def answer(self, frame: Frame, found: Evaluated, images: int) -> Packed:
        """Encode what answers a `look` frame of so many images. Raises Diverged for a loss that is not finite, or
        absurd."""
        found.check(self._where(frame.place), images)
        return pack("seen", *frame.place, {}, {"loss": found.loss, "right": found.right})

    def answer_private(self, frame: Frame, features: Tensor, key: Key, lengths: Tensor | None = None) -> Packed:
        """Encode the activations at the second cut, `[B, n, D]`, which answer a `look` frame without labels, of samples
        of such `lengths`. Raises CodecError for what cannot be sent."""
        check_bounds("tail_smashed", features, self._where(frame.place))
        features = features if lengths is None else flat(features, lengths)
        tensors = {"tail_smashed": features.float()}
        return self._pack("features", tensors, key, frame.place)

    def unpack_features(self, buffer: bytes, step: int, images: int, lengths: Tensor | None = None) -> Tensor:
        """Decode the activations that answer this step, of so many images of such `lengths`, filled up with zeros.
        Raises WireError for anything else."""
        kinds = {"features": self._features(images, lengths)}
        frame = unpack(buffer, kinds, device=self.cut.device, max_bytes=self.most_bytes)
        if frame.step != step:
            raise WireError(f"what answers step {step} of an evaluation is of step {frame.step}")
        features = frame.tensors[_FEATURES]
        return features if lengths is None else padded(features, lengths)

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
        made = self.cut.reducer.stand_in(batch.activations, self.cut.geometry.prefix, key, training=False)
        packed = self.pack(encoder(made), batch.labels, key, PLACE)
        frame = self.unpack_up(packed.buffer)
        looked = self.batch(frame)
        if self.cut.private:
            features = batch.activations if looked.lengths is None else looked.smashed
            answer = self.answer_private(frame, features, key, looked.lengths)
        else:
            answer = self.answer(frame, Evaluated(1.0, len(batch)), len(batch))
        return [("up", self.sizes(packed, len(batch))), ("down", self.sizes(answer, len(batch)))]


@torch.no_grad()
def evaluated(logits: Tensor, labels: Tensor) -> Evaluated:
    """Compare logits `[B, classes]` to labels `[B]`."""
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return Evaluated(float(loss), int((logits.argmax(1) == labels).sum()))


def mean(parts: list[Evaluated], images: int) -> tuple[float, float]:
    """Return the mean loss and the share that is right over all `images` of these parts."""
    return math.fsum(part.loss for part in parts) / images, sum(part.right for part in parts) / images


def _blind() -> Tensor:
    raise RuntimeError("attention is not read where a model is only evaluated")


@torch.no_grad()
def _sizes(encoder: nn.Module, geometry: Geometry, device: torch.device) -> torch.Size:
    """Return the shape that the encoder makes of one image's activations."""
    training = encoder.training
    encoder.eval()
    made = encoder(torch.zeros(1, geometry.tokens, geometry.width, device=device))
    encoder.train(training)
    return made.shape[1:]
