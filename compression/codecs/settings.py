"""The settings of all codecs, as a scenario names them. Nothing heavy is imported here: `build` imports what it builds,
so that a scenario is read without torch."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from splitfed.compression.codecs.base import Codec, CodecSettings
from splitfed.compression.codecs.choices import MOST_CENTROIDS, MOST_SUBVECTORS, Bits, Format, Scale, ScaleBits
from splitfed.config import Broken


class Float32(CodecSettings):
    """Four bytes a number, nothing lost; integers as they are."""

    kind: Literal["float32"] = "float32"

    def build(self) -> Codec:
        """Return the codec."""
        return _of_floats("float32")


class Float16(CodecSettings):
    """Two bytes a number, 11 significant bits, values up to 65504."""

    kind: Literal["float16"] = "float16"

    def build(self) -> Codec:
        """Return the codec."""
        return _of_floats("float16")


class BFloat16(CodecSettings):
    """Two bytes a number, 8 significant bits, the range of float32."""

    kind: Literal["bfloat16"] = "bfloat16"

    def build(self) -> Codec:
        """Return the codec."""
        return _of_floats("bfloat16")


def _of_floats(dtype: str) -> Codec:
    import torch

    from splitfed.compression.codecs.floats import FloatCodec

    return FloatCodec(getattr(torch, dtype))


class Float8(CodecSettings):
    """A byte a number, in units of a scale that the tensor decides."""

    kind: Literal["float8"] = "float8"
    format: Format = "e4m3"
    """Bits of exponent and of fraction: `e4m3` suits activations, `e5m2` what spans many orders of magnitude."""

    def build(self) -> Codec:
        """Return the codec."""
        from splitfed.compression.codecs.floats import Float8Codec

        return Float8Codec(self.format)


class Uniform(CodecSettings):
    """`bits` bits a number: codes of a grid of 2**`bits` values from the smallest number to the largest.

    Rounding at random is that of QSGD, arXiv 1610.02132; rotation that of DRIVE, arXiv 2105.08339.
    """

    kind: Literal["uniform"] = "uniform"
    bits: Bits = 8
    """Bits of a number's code."""
    levels: int | None = Field(None, ge=2)
    """How many values a grid has, 2**`bits` at most; null is so many. Fewer take fewer bytes after a lossless stage
    that counts how often codes are used (`{kind: zstd, shuffle: channels}`): 6 levels of 3 bits lie between 2 and 3."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """Stochastic rounding is right on average, nearest errs less: half as much in the mean square."""
    scale: Scale = "token"
    """What has a grid of its own: each token (sample and position), each channel (feature), or the tensor. Per channel
    suits activations, whose features differ more than their tokens; per token suits gradients."""
    scale_bits: ScaleBits = 32
    """Bits of each of a grid's two numbers."""
    rotation: bool = False
    """Whether rows are rotated at random before rounding, which spreads large features over others and makes few bits
    usable with a scale per token."""

    @model_validator(mode="after")
    def _has_codes_for_its_levels(self) -> Self:
        if self.levels is not None and self.levels > 2**self.bits:
            raise Broken(("levels", f"is {self.levels}, and {self.bits} bits tell {2**self.bits} apart: raise bits"))
        return self

    def build(self) -> Codec:
        """Return the codec."""
        from splitfed.compression.codecs.uniform import Layout, UniformCodec

        layout = Layout(self.bits, self.scale, self.scale_bits, self.rotation)
        return UniformCodec(layout, self.rounding == "stochastic", self.levels)


class Klt(CodecSettings):
    """Rows in the basis in which they are uncorrelated, and bits only for directions that vary; bytes follow values.

    Transform coding, Goyal 2001, doi 10.1109/79.952802: the Karhunen-Loeve transform of each tensor, reverse
    water-filling, and rANS (arXiv 1311.2540).
    """

    kind: Literal["klt"] = "klt"
    snr: float = Field(12.0, ge=0, le=60, allow_inf_nan=False)
    """Signal to noise in dB: the variance of the tensor's rows over the mean-square error that is aimed at. 10 is a
    tenth of it; 6 dB more are about a bit more for each number that is left."""

    def build(self) -> Codec:
        """Return the codec."""
        from splitfed.compression.codecs.transform.klt import KltCodec

        return KltCodec(self.snr)


class FedLite(CodecSettings):
    """A few bits for each of the `subvectors` of a token, and `centroids` of float32 for each group of subvectors.

    FedLite, Wang et al. 2022, arXiv 2201.11865: product quantisation, with codebooks that k-means makes for each batch.
    """

    kind: Literal["fedlite"] = "fedlite"
    subvectors: int = Field(16, ge=1, le=MOST_SUBVECTORS)
    """Parts of equal length that a token is cut into; each travels as the number of its nearest centroid."""
    groups: PositiveInt = 1
    """Groups of neighbouring subvectors, each with a codebook of its own; it divides `subvectors`."""
    centroids: int = Field(16, ge=2, le=MOST_CENTROIDS)
    """Centroids of a codebook."""
    iterations: PositiveInt = 10
    """Steps of k-means at most."""
    correction: float = Field(5e-5, ge=0, allow_inf_nan=False)
    """How strongly the client's activations are pulled towards their centroids: what encoding took from `smashed` or
    `tail_smashed`, times this, is added to the gradient. Other roles have none to correct."""

    @model_validator(mode="after")
    def _of_equal_size(self) -> "FedLite":
        if self.subvectors % self.groups:
            why = f"{self.subvectors} subvectors make no {self.groups} groups of equal size: choose a divisor"
            raise Broken(("groups", why))
        return self

    def build(self) -> Codec:
        """Return the codec."""
        from splitfed.compression.codecs.fedlite import FedLiteCodec

        return FedLiteCodec(self.subvectors, self.groups, self.centroids, self.iterations, self.correction)


OWN: tuple[type[CodecSettings], ...] = (Float32, Float16, BFloat16, Float8, Uniform, Klt, FedLite)
