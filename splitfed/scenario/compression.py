"""The section of a scenario that says what is sent: a reducer, and how each kind of tensor becomes bytes."""

from typing import Any, Literal

from pydantic import Field, model_validator

from splitfed.compression.codecs.registry import CodecConfig
from splitfed.compression.lossless_settings import LosslessConfig
from splitfed.compression.presets import PRESETS, written_out
from splitfed.compression.reducers.registry import ReducerConfig
from splitfed.config import Config


class Packing(Config):
    """How one kind of tensor becomes bytes: a `codec`, lossy or not, then a `lossless` stage over its bytes."""

    codec: CodecConfig = Field("float32", validate_default=True)
    lossless: LosslessConfig = Field("zstd", validate_default=True)


class WeightPacking(Packing):
    """How weights that cross once a round become bytes: a `codec`, lossy or not, then a `lossless` stage.

    With `delta`, weights travel as their difference to what the other side has already: up, to what the client was sent
    in this round; down, to what it was sent in the round before, if it took part in that, else whole. What rounding
    leaves out is made up for in later rounds. `delta: true` sends differences in the codecs of whole weights; a codec
    in its place, for instance of fewer bits, is that of the differences alone. It concerns all weights that cross with
    a round, whatever their role.
    """

    delta: bool | CodecConfig = False


class Compression(Config):
    """What makes the bytes fewer: a `reducer` that drops or merges before sending, and a packing for each role.

    `smashed` and `targets` go up at every step, `cut_gradient` comes down. With private labels no targets go up; the
    activations at the second cut come down as `tail_smashed`, and their gradient goes up as `tail_gradient`.
    `front_weights` go both ways once a round: it packs all weights that a client holds of the model, of whatever part.
    So do `parts`, the layers that some reducers bring with them. A `preset` stands for settings of all of them; keys
    beside it win. It is written out when it is read, and not kept.
    """

    preset: Literal[tuple(PRESETS)] | None = Field(None, exclude=True)  # type: ignore[valid-type]
    reducer: ReducerConfig = Field("none", validate_default=True)
    smashed: Packing = Packing()
    targets: Packing = Packing()
    cut_gradient: Packing = Packing()
    tail_smashed: Packing = Packing()
    tail_gradient: Packing = Packing()
    front_weights: WeightPacking = WeightPacking()
    parts: Packing = Packing()

    @model_validator(mode="before")
    @classmethod
    def _preset_written_out(cls, data: Any) -> Any:
        return written_out(data)
