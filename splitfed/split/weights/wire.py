"""The control plane's payload: how all weights that cross with a round become one frame, whichever way they go. They
are those of front, back or tail, of exits, of what makes up features, and of a reducer's own layers.

Tensors are grouped by the length of their rows and each group is encoded as one matrix: per-row scales then fit the
weights, and a front of 150 tensors costs as little overhead as one of four. Names and shapes do not travel: both ends
hold the same parts. An encoder that a reducer brought is counted, and packed, apart.
"""

from collections.abc import Collection, Mapping
from copy import copy
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from splitfed.compression.expect import Expect
from splitfed.compression.reducers.trained.layers import DECODER, ENCODER, GATES
from splitfed.errors import CodecError
from splitfed.run.ledger import Sizes
from splitfed.seeds import Key
from splitfed.split.client_part import ClientPart
from splitfed.split.computing.rehearsal import PLACE
from splitfed.split.cut import check_finite
from splitfed.wire.frame import Frame, Packed, pack, unpack

if TYPE_CHECKING:
    from splitfed.model.parts import Front
    from splitfed.scenario.compression import Compression

# Roles that are packed alike, and counted apart.
FRONT, AUX, BACK, TAIL, EXIT = "front_weights", "aux_weights", "back_weights", "tail_weights", "exit_weights"
GENERATED = "generator_weights"
PARTS = "parts"  # the role of what a reducer brought
BASE = "base"  # in a frame's meta: the round whose weights its own are measured from
# Header and checksums of a frame, and the worst case of a codec that keeps a scale for every number.
_SLACK_BYTES, _MOST_BYTES_A_NUMBER = 1 << 17, 16


def _row_length(shape: torch.Size) -> int:
    if len(shape) == 4:  # a convolution: one row for each output channel
        return prod(shape[1:])
    return shape[-1] if shape else 1


class WeightWire:
    """Packs and unpacks weights of known names and shapes, each role under its own codec and lossless stage: what a
    reducer brought as `parts`, all else as `roles` says, and as `front_weights` where it says nothing. `extra`: no
    uncompressed run sends them.

    Differences (`splitfed.split.weights.differences`) cross the same way, under codecs that may be others."""

    def __init__(
        self, template: Mapping[str, Tensor], compression: "Compression", extra: bool = False,
        roles: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.extra = extra
        self.shapes = {name: tensor.shape for name, tensor in template.items()}
        self._pack_as(compression)
        self.groups: dict[tuple[str, int], list[str]] = {}
        self.numbers: dict[str, int] = {}
        for name, shape in self.shapes.items():
            role = PARTS if name.startswith((ENCODER, DECODER, GATES)) else roles.get(name, FRONT)
            self.groups.setdefault((role, _row_length(shape)), []).append(name)
            self.numbers[role] = self.numbers.get(role, 0) + shape.numel()
        self.expected = {
            f"{role}/{length}": (Expect.floats(sum(self.shapes[n].numel() for n in names) // length, length),)
            for (role, length), names in self.groups.items()
        }
        self.most_bytes = _SLACK_BYTES + _MOST_BYTES_A_NUMBER * sum(self.numbers.values())

    def _pack_as(self, compression: "Compression") -> None:
        roles = (FRONT, AUX, BACK, TAIL, EXIT, GENERATED)
        packings = dict.fromkeys(roles, compression.front_weights) | {PARTS: compression.parts}
        self.stages = {role: (packing.codec.build(), packing.lossless.build()) for role, packing in packings.items()}
        self.delta = compression.front_weights.delta is not False
        own = compression.front_weights.delta
        codec = None if isinstance(own, bool) else own.build()
        self.of_differences = {role: (codec or whole, lossless) for role, (whole, lossless) in self.stages.items()}

    def under(self, compression: "Compression") -> Self:
        """Return the same for weights that are packed otherwise; each reads what the other has packed."""
        other = copy(self)
        other._pack_as(compression)
        return other

    @property
    def lossy(self) -> bool:
        """Whether differences may come out as others than went in."""
        return any(self.of_differences[role][0].lossy for role in self.numbers)

    def pack(
        self, weights: Mapping[str, Tensor], key: Key, round: int, client: int, base: int | None = None,
        known: Collection[str] | None = None,
    ) -> Packed:  # fmt: skip
        """Encode the weights as one frame, or what they differ by from those that went in the round `base`; where only
        some are `known` since then, the others are whole. Raises Diverged for weights that are not finite, and
        CodecError for those that else cannot be sent."""
        packets = {}
        for (role, length), names in self.groups.items():
            whole = base is None or (known is not None and names[0] not in known)
            codec, lossless = (self.stages if whole else self.of_differences)[role]
            rows = torch.cat([weights[name].detach().float().reshape(-1, length) for name in names])
            place = key.at(length) if role == FRONT else key.at(role, length)
            try:
                packets[f"{role}/{length}"] = (codec.encode(rows, place), lossless)
            except CodecError as error:
                where = f"round {round}" + (f", client {client}" if client >= 0 else "")
                check_finite(role, rows, where, ("client",))
                raise CodecError(f"{role} at {where} cannot be sent: {error}") from error
        return pack("weights", round, client, 0, packets, {} if base is None else {BASE: base})

    def unpack(self, buffer: bytes) -> tuple[dict[str, Tensor], Frame]:
        """Decode a peer's frame into weights by name. Raises WireError where it is not what this wire carries."""
        frame = unpack(buffer, {"weights": self.expected}, max_bytes=self.most_bytes)
        weights: dict[str, Tensor] = {}
        for (role, length), names in self.groups.items():
            parts = frame.tensors[f"{role}/{length}"].split([self.shapes[n].numel() // length for n in names])
            weights |= {name: part.reshape(self.shapes[name]) for name, part in zip(names, parts, strict=True)}
        return {name: weights[name] for name in self.shapes}, frame  # in one order: some strategies go by it

    @classmethod
    def of(cls, part: ClientPart, compression: "Compression", round: int | None = None) -> Self:
        """Return what carries the weights that a client holds and that come back from it in a round, or in some."""
        return cls(part.travelling(round), compression, roles=part.roles())

    @classmethod
    def of_frozen(cls, part: ClientPart, compression: "Compression") -> Self:
        """Return what carries, once, the weights that a client holds and that are never trained."""
        return cls(part.frozen(), compression, roles=part.roles())

    @classmethod
    def of_alignment(cls, front: "Front", decoder: nn.Module, compression: "Compression") -> tuple[Self, Self]:
        """Return what carries an alignment: front, encoder and decoder down, and the decoder up."""
        parts = {DECODER + name: tensor for name, tensor in decoder.state_dict().items()}
        return cls({**front.state_dict(), **parts}, compression, extra=True), cls(parts, compression, extra=True)

    def sizes(self, packed: Packed | Frame) -> dict[str, Sizes]:
        """Return what the weights in a frame add to the ledger, by role; no uncompressed run sends `parts`."""
        rows = {}
        for role, part in packed.sizes.items():
            plain = 4 * self.numbers[role]
            rows[role] = Sizes(0 if role == PARTS or self.extra else plain, plain, part.coded, part.sent)
        return rows

    def rehearse(
        self, key: Key, difference: bool = False, known: Collection[str] | None = None
    ) -> dict[str, Sizes]:  # fmt: skip
        """Return what a frame of weights, or of their difference to others, of which these are `known` (None: all),
        adds to the ledger; either way alike."""
        zeros = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        base = PLACE.round if difference else None
        return self.sizes(self.pack(zeros, key, PLACE.round, PLACE.client, base, known))
