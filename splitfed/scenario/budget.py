"""When a run has sent enough; decided between rounds, from finished rounds only, so that a run is reproducible."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from splitfed.compression.expect import Geometry
from splitfed.config import Bytes, Config, kind_shorthand


def uncompressed_epoch(examples: int, geometry: Geometry, private: bool = False) -> int:
    """Return the cut bytes of one uncompressed pass over `examples` images: activations and gradients in float32 and
    8 bytes a label; where labels are private, activations and gradients at two cuts."""
    tensor = 4 * geometry.tokens * geometry.width
    return examples * (4 * tensor if private else 2 * tensor + 8)


class Unlimited(Config):
    """No budget: all rounds are run."""

    kind: Literal["none"] = "none"

    def limit(self, examples: int, geometry: Geometry, private: bool = False) -> int | None:
        """Return the cut bytes after which no round starts, or None."""
        return None


class CutBytes(Config):
    """No round starts once this many cut bytes were sent, both ways together."""

    kind: Literal["cut_bytes"] = "cut_bytes"
    bytes: Bytes
    """Cut bytes that may be sent; a number, or a size such as `130MB` or `1.5 GiB`."""

    def limit(self, examples: int, geometry: Geometry, private: bool = False) -> int | None:
        """Return the cut bytes after which no round starts."""
        return self.bytes


class UncompressedEpochs(Config):
    """No round starts once the cut bytes of this many uncompressed epochs over all training images were sent: the rule
    of the ADC paper (arXiv 2509.15058, section IV)."""

    kind: Literal["uncompressed_epochs"] = "uncompressed_epochs"
    epochs: PositiveFloat
    """Uncompressed epochs whose cut bytes may be sent; it need not be a whole number."""

    def limit(self, examples: int, geometry: Geometry, private: bool = False) -> int | None:
        """Return the cut bytes after which no round starts."""
        return int(self.epochs * uncompressed_epoch(examples, geometry, private))


BudgetConfig = Annotated[Unlimited | CutBytes | UncompressedEpochs, Field(discriminator="kind"), kind_shorthand]
