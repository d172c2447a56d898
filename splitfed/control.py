"""The control plane's payload: the front's weights as one frame, whichever way they go.

Tensors are grouped by the length of their rows and each group is encoded as one matrix: per-row scales then fit the
weights, and a front of 150 tensors costs as little overhead as one of four. Names and shapes do not travel: both ends
hold the same front.
"""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splitfed.expect import Expect
from splitfed.seeds import Key
from splitfed.wire import Frame, Packed, pack, unpack

if TYPE_CHECKING:
    from splitfed.scenario_sections import Packing

ROLE = "front_weights"
# Header and checksums of a frame, and the worst case of a codec that keeps a scale for every number.
_SLACK_BYTES, _MOST_BYTES_A_NUMBER = 1 << 17, 16


def _row_length(shape: torch.Size) -> int:
    if len(shape) == 4:  # a convolution: one row for each output channel
        return prod(shape[1:])
    return shape[-1] if shape else 1


class FrontWire:
    """Packs and unpacks the weights of a front of known names and shapes under one codec and lossless stage."""

    def __init__(self, template: Mapping[str, Tensor], packing: "Packing") -> None:
        self.shapes = {name: tensor.shape for name, tensor in template.items()}
        self.codec, self.lossless = packing.codec.build(), packing.lossless.build()
        self.groups: dict[int, list[str]] = {}
        for name, shape in self.shapes.items():
            self.groups.setdefault(_row_length(shape), []).append(name)
        self.numbers = sum(shape.numel() for shape in self.shapes.values())
        self.expected = {
            f"{ROLE}/{length}": (Expect.floats(sum(self.shapes[n].numel() for n in names) // length, length),)
            for length, names in self.groups.items()
        }
        self.most_bytes = _SLACK_BYTES + _MOST_BYTES_A_NUMBER * self.numbers

    @property
    def raw_bytes(self) -> int:
        """Bytes of these weights in float32."""
        return 4 * self.numbers

    def pack(self, weights: Mapping[str, Tensor], key: Key, round: int, client: int) -> Packed:
        """Encode the weights as one frame."""
        packets = {}
        for length, names in self.groups.items():
            rows = torch.cat([weights[name].detach().float().reshape(-1, length) for name in names])
            packets[f"{ROLE}/{length}"] = (self.codec.encode(rows, key.at(length)), self.lossless)
        return pack("weights", round, client, 0, packets)

    def unpack(self, buffer: bytes) -> tuple[dict[str, Tensor], Frame]:
        """Decode a peer's frame into weights by name. Raises WireError where it is not what this front needs."""
        frame = unpack(buffer, {"weights": self.expected}, max_bytes=self.most_bytes)
        weights: dict[str, Tensor] = {}
        for length, names in self.groups.items():
            parts = frame.tensors[f"{ROLE}/{length}"].split([self.shapes[n].numel() // length for n in names])
            weights |= {name: part.reshape(self.shapes[name]) for name, part in zip(names, parts, strict=True)}
        return weights, frame
