"""The crossing between front and back: reducer, codecs and frames of the data plane, the same object at both ends.

    client                                         server
    front -> plan -> reduce -> codec -> zstd  ==>  zstd -> codec -> restore -> back -> loss
    front <- autograd <------- codec <- zstd  <==  zstd <- codec <- cut gradient <---'

Frames up are `step` (one mini-batch) and `end` (the client's own count of bytes); down come `gradient` and `done`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splitfed.compression.codec import Packet
from splitfed.compression.integers import IntegerCodec
from splitfed.compression.lossless import Lossless
from splitfed.compression.reducer import Plan
from splitfed.errors import CodecError, WireError
from splitfed.expect import Expect, Expected, Geometry
from splitfed.ledger import Sizes
from splitfed.seeds import Key
from splitfed.wire import Frame, Packed, pack, unpack

if TYPE_CHECKING:
    from splitfed.scenario_sections import Compression

# Header and checksums of a frame, and the worst case of a codec that keeps a scale for every number.
_SLACK_BYTES, _MOST_BYTES_A_NUMBER = 1 << 17, 16


@dataclass(frozen=True, slots=True)
class Batch:
    """A mini-batch as it arrives: what the back is trained on and the images that it stands for."""

    frame: Frame
    smashed: Tensor
    targets: Tensor
    side: dict[str, Tensor]
    examples: int


class Cut:
    """Packs and unpacks the frames of one cut; holds no state between calls, so both ends and all clients share it."""

    def __init__(self, config: "Compression", geometry: Geometry, device: torch.device) -> None:
        self.reducer = config.reducer.build()
        self.geometry, self.device = geometry, device
        self._crossings = {
            "smashed": config.smashed, "targets": config.targets, "cut_gradient": config.cut_gradient,
        }  # fmt: skip
        self._stages = {role: (c.codec.build(), c.lossless.build()) for role, c in self._crossings.items()}
        self._stages["side"] = (IntegerCodec(), config.targets.lossless.build())
        self.expected_up = self.reducer.expected(geometry)
        self.most_bytes = most_bytes(self.expected_up)

    def encode(self, tensors: Mapping[str, Tensor], key: Key, where: str) -> dict[str, tuple[Packet, Lossless]]:
        """Encode each tensor with the codec of its role, and give it its lossless stage. Raises CodecError, which names
        the tensor and `where` it is, for what cannot be sent."""
        packets = {}
        for name, tensor in tensors.items():
            codec, lossless = self._stages[name.split("/")[0]]
            try:
                packets[name] = (codec.encode(tensor, key.at(name)), lossless)
            except CodecError as error:
                raise CodecError(f"{name} at {where} cannot be sent: {error}") from error
        return packets

    def pack_step(
        self, plan: Plan, smashed: Tensor, targets: Tensor, examples: int, key: Key, round: int, client: int, step: int
    ) -> Packed:
        """Encode a mini-batch of `examples` images. Raises CodecError for what cannot be sent."""
        tensors = {"smashed": smashed.detach().float(), "targets": targets.detach()}
        tensors |= {f"side/{name}": tensor for name, tensor in plan.side.items()}
        packets = self.encode(tensors, key, f"round {round}, client {client}, step {step}")
        return pack("step", round, client, step, packets, {**plan.meta, "examples": examples})

    def unpack_up(self, buffer: bytes) -> Frame:
        """Decode a client's frame, `step` or `end`. Raises WireError for anything else."""
        return unpack(
            buffer, {"step": self.expected_up, "end": {}}, device=self.device, max_bytes=self.most_bytes
        )  # fmt: skip

    def batch(self, frame: Frame) -> Batch:
        """Check what a `step` frame says beyond shapes. Raises WireError."""
        examples, targets = frame.meta.pop("examples", None), frame.tensors["targets"]
        if type(examples) is not int or not 1 <= examples <= self.geometry.batch:
            raise WireError(f"a step of {examples!r} examples, where 1 to {self.geometry.batch} are allowed")
        if not targets.is_floating_point():
            check_labels(targets, self.geometry.classes)
        smashed = frame.tensors["smashed"]
        side = {name.split("/")[1]: tensor for name, tensor in frame.tensors.items() if name.startswith("side/")}
        self.reducer.check(smashed, targets, side, frame.meta, self.geometry)
        return Batch(frame, smashed, targets, side, examples)

    def pack_gradient(self, frame: Frame, gradient: Tensor, loss: float, key: Key) -> Packed:
        """Encode the cut gradient that answers a `step` frame. Raises CodecError for what cannot be sent."""
        where = f"round {frame.round}, client {frame.client}, step {frame.step}"
        packets = self.encode({"cut_gradient": gradient.detach().float()}, key, where)
        return pack("gradient", frame.round, frame.client, frame.step, packets, {"loss": loss})

    def unpack_gradient(self, buffer: bytes, smashed: Tensor) -> Frame:
        """Decode the gradient of what was sent. Raises WireError for anything else."""
        expected = {"cut_gradient": (Expect.floats(*smashed.shape),)}
        frame = unpack(buffer, {"gradient": expected}, device=self.device, max_bytes=self.most_bytes)
        if type(frame.meta.get("loss")) is not float:
            raise WireError("a gradient without its loss")
        return frame

    def corrected(self, gradient: Tensor, smashed: Tensor, packed: Packed) -> Tensor:
        """Return the gradient of what the client computed, from that of what the server saw: what the `packed` step
        holds. The same, but for a codec that asks for a correction."""
        codec, _ = self._stages["smashed"]
        if not codec.correction:
            return gradient
        seen = self.unpack_up(packed.buffer).tensors["smashed"]
        return gradient + codec.correction * (smashed.detach().float() - seen)

    def raw(self, role: str, examples: int) -> int:
        """Return the bytes that a role would take in float32 without reduction, for a batch of `examples` images."""
        if role in ("smashed", "cut_gradient"):
            return 4 * examples * self.geometry.tokens * self.geometry.width
        return 8 * examples if role == "targets" else 0

    def sizes(self, packed: Packed | Frame, examples: int) -> dict[str, Sizes]:
        """Return what a frame adds to the ledger: its roles, then its envelope, which no uncompressed method needs."""
        rows = {
            role: Sizes(self.raw(role, examples), part.reduced, part.coded, part.sent)
            for role, part in packed.sizes.items()
        }
        return rows | {"envelope": Sizes(sent=packed.envelope)}


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise WireError for labels (int64 `[B]`, one at least) that no class has."""
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= classes:
        raise WireError(f"labels from {low} to {high}, where there are {classes} classes")


def most_bytes(expected: Expected) -> int:
    """Return the bytes that a frame of these tensors takes at most, whatever their codecs."""
    numbers = sum(max(_largest(expect) for expect in choices) for choices in expected.values())
    return _SLACK_BYTES + _MOST_BYTES_A_NUMBER * numbers


def _largest(expect: Expect) -> int:
    numbers = 1
    for _, high in expect.dims:
        numbers *= high
    return numbers
