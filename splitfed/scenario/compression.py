"""The section of a scenario that says what is sent: a reducer, and how each kind of tensor becomes bytes."""

from typing import Any, Literal, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from splitfed.compression.codecs.registry import CodecConfig
from splitfed.compression.lossless_settings import LosslessConfig
from splitfed.compression.reducers.registry import ReducerConfig
from splitfed.config import Bytes, Config


class Packing(Config):
    """How one kind of tensor becomes bytes: a `codec`, lossy or not, then a `lossless` stage over its bytes."""

    codec: CodecConfig = Field("float32", validate_default=True)
    """What turns numbers into bytes, with or without loss."""
    lossless: LosslessConfig = Field("zstd", validate_default=True)
    """What makes these bytes fewer and gives back every bit."""


class CutPacking(Packing):
    """How a tensor that crosses the cut at every step becomes bytes: a `codec`, lossy or not, then a `lossless` stage;
    of samples that have crossed before, the difference alone if `delta` says so."""

    delta: bool | CodecConfig = False
    """Whether a sample travels as its difference to what both ends have of it from its last visit, in the variant that
    it shows (`data.variants`), where it has crossed before. What rounding leaves out of one visit is in the difference
    of the next. `true` sends differences in the codec above; a codec in its place, for instance of fewer bits, is that
    of the differences alone."""


class SmashedPacking(CutPacking):
    """How activations at the cut become bytes; those of samples that have hardly changed may be left out."""

    skip: float | None = Field(None, gt=0)
    """A sample is not sent where the cosine between its activations and what both ends have of it from its last visit
    is this or more: that is used in its place. Above 1 none is left out; null compares nothing."""


class CacheConfig(Config):
    """What both ends keep of the samples that have crossed the cut, for `delta` and `skip`."""

    disk: Bytes = 2_000_000_000
    """Bytes that the server keeps at most, for all clients and all checkpoints together, as float16; each client has an
    equal share, and keeps as much. Samples that come when a share is full are sent as if they came for the first
    time."""


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
    smashed: SmashedPacking = SmashedPacking()
    """Packing of the activations at the cut, which go up at every step."""
    targets: Packing = Packing()
    """Packing of the labels, which go up with the activations; with private labels there are none."""
    cut_gradient: CutPacking = CutPacking()
    """Packing of the gradient at the cut, which comes down at every step."""
    tail_smashed: Packing = Packing()
    """Packing of the activations at the second cut, which come down where labels are private."""
    tail_gradient: Packing = Packing()
    """Packing of the gradient at the second cut, which goes up where labels are private."""
    front_weights: WeightPacking = WeightPacking()
    """Packing of all weights that a client holds of the model, of whatever part; they go both ways once a round."""
    parts: Packing = Packing()
    """Packing of the layers that some reducers bring with them, which go both ways once a round."""

    cache: CacheConfig = CacheConfig()
    """What is kept of samples that have crossed, for `delta` and `skip` of `smashed` and `cut_gradient`."""

    @property
    def once(self) -> "Compression":
        """The same for samples that cross once, of which no copies are kept."""
        return self.model_copy(update={
            "smashed": self.smashed.model_copy(update={"delta": False, "skip": None}),
            "cut_gradient": self.cut_gradient.model_copy(update={"delta": False}),
        })  # fmt: skip

    @property
    def remembers(self) -> list[str]:
        """The keys for which both ends keep copies of samples, such as `smashed.delta`; none where nothing is kept."""
        found = {
            "smashed.delta": bool(self.smashed.delta), "smashed.skip": self.smashed.skip is not None,
            "cut_gradient.delta": bool(self.cut_gradient.delta),
        }  # fmt: skip
        return [key for key, wanted in found.items() if wanted]


class PartialCompression(Compression):
    """What is another for some clients, or for some time; what is not written here is as `compression` says."""

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _written(self, handler(self))

    def over(self, common: Compression) -> Compression:
        """Return what is `common` to all with the keys that are written here in its place; of a section that names its
        `kind` all of them."""
        return _over(self, common)


_C = TypeVar("_C", bound=Config)


def _over(part: Config, whole: _C) -> _C:
    changed = {}
    for name in part.model_fields_set:
        value, before = getattr(part, name), getattr(whole, name)
        changed[name] = _over(value, before) if _is_plain(value) else value
    return whole.model_copy(update=changed)


def _written(part: Config, dumped: dict[str, Any]) -> dict[str, Any]:
    """Return of a section as it is dumped what was written."""
    return {
        name: _written(value, dumped[name]) if _is_plain(value := getattr(part, name)) else dumped[name]
        for name in type(part).model_fields
        if name in part.model_fields_set
    }


def _is_plain(value: object) -> bool:
    """Tell whether a value is a section whose keys stand each for itself."""
    return isinstance(value, Config) and "kind" not in type(value).model_fields
