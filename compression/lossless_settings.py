"""The settings of the lossless stage, as a scenario names them. Nothing heavy is imported here: `build` imports what it
builds, so that a scenario is read without torch."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from splitfed.config import Config, kind_shorthand

if TYPE_CHECKING:
    from splitfed.compression.lossless import Lossless


class Zstd(Config):
    """Zstandard, or the bytes as they are where it would not make them fewer."""

    kind: Literal["zstd"] = "zstd"
    level: int = Field(1, ge=1, le=19)
    """From 1, fast, to 19, small. Activations of a DeiT-Tiny in 4 bits a number shrink to 0.80 at level 1, at 1200 MB/s
    on one core. Level 3 gains nothing to speak of and can take five times as long; level 15 gains 6 % at a fiftieth of
    the speed."""
    shuffle: bool | Literal["channels"] = False
    """Whether numbers that Zstandard cannot tell apart by whole bytes are put in another order before. 3 bits then
    shrink to 0.76 (0.88 without), 6 bits to 0.88 (0.95), float32 to 0.84 (0.93), at a third of the speed; other widths
    are left as they are. `channels` also tries numbers of 2 to 4 bits channel by channel, channels of similar numbers
    together, and takes what is smallest: activations of a DeiT-Tiny in 3 rotated bits shrink to 0.78 (0.86 with `true`,
    0.95 without), in 2 bits to 0.71 (0.80), at 15 MB/s."""

    def build(self) -> "Lossless":
        """Return the stage."""
        from splitfed.compression.lossless import ZstdStage

        return ZstdStage(self.level, self.shuffle)


class NoLossless(Config):
    """No lossless stage."""

    kind: Literal["none"] = "none"

    def build(self) -> "Lossless":
        """Return the stage."""
        from splitfed.compression.lossless import NoStage

        return NoStage()


LosslessConfig = Annotated[Zstd | NoLossless, Field(discriminator="kind"), kind_shorthand]
