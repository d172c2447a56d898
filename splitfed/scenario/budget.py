"""When a run has sent enough; decided between rounds, from finished rounds only, so that a run is reproducible."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from splitfed.compression.expect import Geometry
from splitfed.config import Bytes, Config, kind_shorthand

# Which bytes are meant: those of the data plane, or those of both planes and what was wasted.
Counted = Literal["cut", "total"]


@dataclass(frozen=True, slots=True)
class Basis:
    """What a budget may be a multiple of: the `examples` that clients train on, of this `geometry` at the cut, with
    labels that are `private` or not, and what the images weigh as they are stored, in bytes."""

    examples: int
    geometry: Geometry
    private: bool = False
    images_bytes: int = 0


def uncompressed_epoch(examples: int, geometry: Geometry, private: bool = False) -> int:
    """Return the cut bytes of one uncompressed pass over `examples` images: activations and gradients in float32 and
    8 bytes a label; where labels are private, activations and gradients at two cuts."""
    tensor = 4 * geometry.tokens * geometry.width
    return examples * (4 * tensor if private else 2 * tensor + 8)


class Unlimited(Config):
    """No budget: all rounds are run."""

    kind: Literal["none"] = "none"
    of: ClassVar[Counted] = "total"

    def limit(self, basis: Basis) -> int | None:
        """Return the bytes after which no round starts, or None."""
        return None


class CutBytes(Config):
    """No round starts once this many cut bytes were sent, both ways together."""

    kind: Literal["cut_bytes"] = "cut_bytes"
    of: ClassVar[Counted] = "cut"
    bytes: Bytes
    """Cut bytes that may be sent; a number, or a size such as `130MB` or `1.5 GiB`."""

    def limit(self, basis: Basis) -> int | None:
        """Return the cut bytes after which no round starts."""
        return self.bytes


class TotalBytes(Config):
    """No round starts once this many bytes were sent in all: mini-batches, weights, evaluations, messages, and what was
    wasted. A run sends more than that by less than its last round, and with `fl` too there is something to spend."""

    kind: Literal["total_bytes"] = "total_bytes"
    of: ClassVar[Counted] = "total"
    bytes: Bytes
    """Total bytes that may be sent; a number, or a size such as `26MB` or `1.5 GiB`."""

    def limit(self, basis: Basis) -> int | None:
        """Return the total bytes after which no round starts."""
        return self.bytes


class Images(Config):
    """No round starts once as many bytes were sent in all as the training images weigh, or a multiple of that: those
    images that clients train on or hold out, once each, as they are stored. Counted is what `total_bytes` counts."""

    kind: Literal["images"] = "images"
    of: ClassVar[Counted] = "total"
    times: float = Field(gt=0, le=1e9)
    """How many times what the images weigh may be sent; it need not be a whole number."""

    def limit(self, basis: Basis) -> int | None:
        """Return the total bytes after which no round starts."""
        return int(Fraction(str(self.times)) * basis.images_bytes)


class UncompressedEpochs(Config):
    """No round starts once the cut bytes of this many uncompressed epochs over all training images were sent: the rule
    of the ADC paper (arXiv 2509.15058, section IV)."""

    kind: Literal["uncompressed_epochs"] = "uncompressed_epochs"
    of: ClassVar[Counted] = "cut"
    epochs: PositiveFloat
    """Uncompressed epochs whose cut bytes may be sent; it need not be a whole number."""

    def limit(self, basis: Basis) -> int | None:
        """Return the cut bytes after which no round starts."""
        return int(self.epochs * uncompressed_epoch(basis.examples, basis.geometry, basis.private))


BudgetConfig = Annotated[
    Unlimited | CutBytes | TotalBytes | Images | UncompressedEpochs, Field(discriminator="kind"), kind_shorthand
]
