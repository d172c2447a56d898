"""When a run has sent enough; decided between rounds, from finished rounds only, so that a run is reproducible."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, ByteSize, Field, PositiveFloat

from splitfed.config import Config, kind_shorthand
from splitfed.expect import Geometry

_SIZE = r"^ *[0-9]*\.?[0-9]+ *([kKmMgGtTpPeE][iI]?)?([bB]|[bB][iI][tT])? *$"


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    size = ByteSize._validate(value, None)  # type: ignore[arg-type]
    if not re.match(_SIZE, value):  # pydantic reads 1,000 as 1
        raise ValueError(f"{value[:40]!r} is no number of bytes: write 130MB, 1.5 GiB or 130000000")
    return size


_Number = Annotated[int, Field(gt=0)]
_Text = Annotated[str, Field(pattern=_SIZE)]
# `130MB`, `1.5 GiB` or a plain number of bytes.
Bytes = Annotated[_Number, BeforeValidator(_size, json_schema_input_type=_Number | _Text)]


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

    def limit(self, examples: int, geometry: Geometry, private: bool = False) -> int | None:
        """Return the cut bytes after which no round starts."""
        return self.bytes


class UncompressedEpochs(Config):
    """No round starts once the cut bytes of this many uncompressed epochs over all training images were sent: the rule
    of the ADC paper (arXiv 2509.15058, section IV)."""

    kind: Literal["uncompressed_epochs"] = "uncompressed_epochs"
    epochs: PositiveFloat

    def limit(self, examples: int, geometry: Geometry, private: bool = False) -> int | None:
        """Return the cut bytes after which no round starts."""
        return int(self.epochs * uncompressed_epoch(examples, geometry, private))


BudgetConfig = Annotated[Unlimited | CutBytes | UncompressedEpochs, Field(discriminator="kind"), kind_shorthand]
