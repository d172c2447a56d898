"""The section of a scenario that says what is sent: a reducer, and how each kind of tensor becomes bytes."""

from typing import Literal

from pydantic import Field

from splitfed.compression.codecs.registry import CodecConfig
from splitfed.compression.lossless_settings import LosslessConfig
from splitfed.compression.reducers.registry import ReducerConfig
from splitfed.config import Config


class Packing(Config):
    """How one kind of tensor becomes bytes: a `codec`, lossy or not, then a `lossless` stage over its bytes."""

    codec: CodecConfig = Field("float32", validate_default=True)
    """What turns numbers into bytes, with or without loss."""
    lossless: LosslessConfig = Field("zstd", validate_default=True)
    """What makes these bytes fewer and gives back every bit."""


class WeightPacking(Packing):
    """How weights that cross once a round become bytes: a `codec`, lossy or not, then a `lossless` stage."""

    delta: bool | CodecConfig = False
    """Whether weights travel as their difference to what the other side has already: up, to what the client was sent in
    this round; down, to what it was sent in the round before, if it took part in that, else whole, as always in `sl`,
    where each client gets the front of the one before it. What rounding leaves
    out is made up for in later rounds. `true` sends differences in the codecs of whole weights; a codec in its place,
    for instance of fewer bits, is that of the differences alone. It concerns all weights that cross with a round,
    whatever their role."""
    initial: Literal["send", "load"] = "send"
    """How clients come by the weights that a run begins with. With `send` the server sends them to each; with `load`
    each has them from `model.pretrained`, or from its own copy of the file `model.weights`, which is refused where it
    is another: that takes no bytes. What no file holds, both ends draw from the seed."""


class Compression(Config):
    """What makes the bytes fewer: a `reducer` that drops or merges before sending, and a packing for each role."""

    reducer: ReducerConfig = Field("none", validate_default=True)
    """What drops or merges samples, tokens or numbers before they are sent."""
    smashed: Packing = Packing()
    """Packing of the activations at the cut, which go up at every step."""
    targets: Packing = Packing()
    """Packing of the labels, which go up with the activations; with private labels there are none."""
    cut_gradient: Packing = Packing()
    """Packing of the gradient at the cut, which comes down at every step."""
    tail_smashed: Packing = Packing()
    """Packing of the activations at the second cut, which come down where labels are private."""
    tail_gradient: Packing = Packing()
    """Packing of the gradient at the second cut, which goes up where labels are private."""
    front_weights: WeightPacking = WeightPacking()
    """Packing of all weights that a client holds of the model, of whatever part; they go both ways once a round."""
    parts: Packing = Packing()
    """Packing of the layers that some reducers bring with them, which go both ways once a round."""
