"""AE-PSL: an autoencoder, fitted before training and frozen in it, makes each token narrower on its way.

    smashed = [prefix tokens as they are | W2 relu(W1 x_i + b1) + b2]     W1: d to d, W2: d to d'     (at the client)
    x~_i    = W4 relu(W3 z_i + b3) + b4                                   W3: d' to d, W4: d to d     (at the server)

"AE-PSL", 2026: first the autoencoder learns to reconstruct the front's activations of public images (`splitfed align`).
Then, before its first round, a client fits the encoder to its own images and keeps it; decoders are averaged. Then both
are frozen, and the model is trained through them.

The p prefix tokens (CLS) cross uncompressed. Each is cut into rows of d' numbers, ceil(d / d') of them, so that smashed
is one tensor `[B, r, d']` with r = p ceil(d / d') + (n - p), and codecs with a scale for each row keep them apart from
the codes. Bytes of B samples without a lossless stage, in float32: up 4 B r d', down the same; of these
4 B p (ceil(d / d') d' - d) are zeros that fill up the prefix tokens' last rows. Before a client's first round the front
and the autoencoder go down once, and in the first round of all a decoder comes up.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import CutModel, Plan, Reducer, View, expected_targets
from splitfed.compression.reducers.trained.bottleneck import EncodingPlan
from splitfed.compression.reducers.trained.layers import Halves, mlp
from splitfed.errors import ModelError
from splitfed.files import replace_with
from splitfed.seeds import Key


class Ae(Reducer):
    """Encodes all tokens but the prefix to `width` numbers and decodes them at the server."""

    separable = True

    def __init__(self, width: int) -> None:
        self.width = width

    def halves(self, geometry: Geometry, key: Key) -> Halves:
        """Return fresh layers for activations of these sizes."""
        wide, prefix = geometry.width, geometry.prefix
        encoder = TokenEncoder(mlp((wide, wide, self.width), key.at("encoder")), prefix, wide, self.width)
        decoder = TokenDecoder(mlp((self.width, wide, wide), key.at("decoder")), prefix, wide, self.width)
        return Halves(encoder, decoder, owner="local", trained=False)

    def plan(self, view: View, key: Key) -> Plan:
        """Send what the encoder makes of the batch."""
        return EncodingPlan(encoder=view.encoder)

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: `[1..B, r, d']` and a label each."""
        rows = geometry.prefix * -(-geometry.width // self.width) + geometry.tokens - geometry.prefix
        smashed = Expect.floats((1, geometry.batch), rows, self.width)
        return {"smashed": (smashed,), "targets": expected_targets(geometry)}


class _Tokens(nn.Module):
    """Layers for all tokens but the first `prefix`, each of which takes `rows` rows of `narrow` numbers instead."""

    def __init__(self, layers: nn.Module, prefix: int, wide: int, narrow: int) -> None:
        super().__init__()
        self.layers, self.prefix, self.wide, self.narrow = layers, prefix, wide, narrow
        self.rows = -(-wide // narrow)


class TokenEncoder(_Tokens):
    """Tokens to rows."""

    def forward(self, activations: Tensor) -> Tensor:
        """Turn activations `[B, n, d]` into `[B, r, d']`: the prefix tokens' rows, then a row for each other token."""
        kept = pad(activations[:, : self.prefix], (0, self.rows * self.narrow - self.wide))
        codes = self.layers(activations[:, self.prefix :])
        return torch.cat([kept.reshape(len(kept), self.prefix * self.rows, self.narrow), codes], 1)


class TokenDecoder(_Tokens):
    """Rows to tokens."""

    def forward(self, smashed: Tensor) -> Tensor:
        """Turn `[B, r, d']` into activations `[B, n, d]`."""
        first = self.prefix * self.rows
        kept = smashed[:, :first].reshape(len(smashed), self.prefix, self.rows * self.narrow)[..., : self.wide]
        return torch.cat([kept, self.layers(smashed[:, first:])], 1)


_ABOUT = "splitfed-ae"  # one entry of the metadata, as JSON: of several, safetensors would write the order at random


@dataclass(frozen=True, slots=True)
class Kept:
    """What an autoencoder is for: activations of `features` numbers after `cut` blocks of a timm model at `image_size`
    pixels, as codes of `width` numbers."""

    model: str
    cut: int
    image_size: int
    features: int
    width: int

    @classmethod
    def of(cls, model: CutModel, geometry: Geometry, width: int) -> Self:
        """Return what fits a model."""
        return cls(model.name, model.cut, model.image_size, geometry.width, width)

    def __str__(self) -> str:
        return (
            f"{self.model} ({self.features} features) cut after block {self.cut} at {self.image_size} pixels, width "
            f"{self.width}"
        )


def write(path: Path, halves: Halves, kept: Kept) -> None:
    """Write the weights with what they are for. Raises ModelError where the file cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in halves.state().items()}
    try:
        with replace_with(path) as scratch:
            save_file(tensors, scratch, metadata={_ABOUT: json.dumps(asdict(kept))})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def read(path: str | Path) -> tuple[Kept, dict[str, Tensor]]:
    """Read what a file is for, and its weights. Raises ModelError where it is not there, or is no such file."""
    if not Path(path).is_file():
        raise ModelError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error})") from None
    try:
        return Kept(**json.loads(about[_ABOUT])), tensors
    except (ValueError, TypeError, KeyError):
        raise ModelError(f"{path} is no autoencoder of 'splitfed align'") from None
