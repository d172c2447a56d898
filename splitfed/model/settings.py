"""The settings of the model. Nothing heavy is imported here, so that a scenario is read without torch and timm."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from splitfed.config import Broken, Config, as_tuple
from splitfed.model.adapters import AdapterConfig

# Arguments of timm's that follow from something else, and from what.
SET_ELSEWHERE = {
    "img_size": "image_size", "num_classes": "the classes of the data set", "pretrained": "pretrained",
    "checkpoint_path": "weights", "in_chans": "the images, which are RGB",
}  # fmt: skip
_MOST_PIXELS = 4096  # of a side: far above any Vision Transformer, and a slip of the pen takes no memory


Heads = Literal["linear", "cascade"]


class ExitsConfig(Config):
    """Heads after some blocks, each of which answers from what its block made, that are trained with the model. Those
    after blocks of the front are the clients', cross and are averaged with it; the others are the server's.

    They learn from the mini-batches that teach the front, or for those of the back, the back; those of the front cross
    from the first round on, whenever they begin to learn.
    """

    blocks: Annotated[tuple[PositiveInt, ...], BeforeValidator(as_tuple)] = Field(min_length=1)
    """After which blocks, the first being 1; the model's own head follows the last."""
    heads: Heads = "linear"
    """Whether each head sees its block alone (`linear`), or in a `cascade` also what the one before says (Zero Time
    Waste, arXiv 2106.05409)."""
    regime: Literal["joint", "mixed", "disjoint"] = "joint"
    """When heads and model learn from each other (arXiv 2407.14320): `joint` trains all of it from the start, `mixed`
    the model alone for `after` rounds and then all, and `disjoint` the heads alone beside the model, which learns
    nothing from them, so that all other weights are those of a run without."""
    weight: NonNegativeFloat = 1.0
    """How much the loss of each exit weighs beside the model's own: the sum of all is minimised. With 1 all weigh
    alike, as in the mean of the paper's code."""
    after: PositiveInt | None = None
    """For how many rounds `mixed` trains the model alone; null elsewhere."""

    @field_validator("blocks")
    @classmethod
    def _each_once(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(blocks)) < len(blocks):
            raise ValueError("name each block once")
        return tuple(sorted(blocks))

    @model_validator(mode="after")
    def _after_is_of_mixed(self) -> "ExitsConfig":
        if self.regime == "mixed" and self.after is None:
            raise Broken(("after", "is missing: for how many rounds does mixed train the model alone?"))
        if self.regime != "mixed" and self.after is not None:
            raise Broken(("after", f"with regime: {self.regime} no rounds come before: leave it out, or set mixed"))
        return self

    def learn(self, round: int) -> bool:
        """Tell whether they learn in a round."""
        return round > (self.after or 0)


class ModelConfig(Config):
    """Which timm model is trained, from which weights, and after how many blocks it is cut.

    Where labels stay with the clients (`federation.labels: private`) it is cut twice, and at least one block is left to
    the server. With `fl` nothing is cut.
    """

    name: str
    """Name of a Vision Transformer of timm; `splitfed list models` shows those that can be split."""
    pretrained: bool = False
    """Whether it starts from the weights that timm has for the name; else they are drawn from the seed."""
    weights: str | None = None
    """Local file of weights to start from, which implies pretrained; null is timm's own, or none."""
    fingerprint: str | None = None
    """SHA-256 of the file `weights`: splitfed writes it into a run's own scenario, and refuses to go on with another
    file."""
    cut: int = Field(ge=1)
    """Blocks of the front, which the clients hold, before the first cut. With `fl` it only tells which weights are
    counted as the front's."""
    tail: int | None = Field(None, ge=0)
    """Blocks of the end of the model that a client holds where labels are private, with the final norm and the head;
    with 0 these alone. Null is 1 there, and none where labels are shared."""
    image_size: int = Field(ge=1, le=_MOST_PIXELS)
    """Side of the images in pixels, to which they are resized; a multiple of the model's patches."""
    args: dict[str, int | float | bool | str] = {}
    """Arguments that go to timm as they are, such as `depth` or `drop_path_rate`."""
    adapter: AdapterConfig = Field("none", validate_default=True)
    """What of the front is trained. With an adapter most of it stays as it is and crosses once for each client: only
    its LayerNorms (`norms`) or low-rank additions (`lora`) are trained and cross each round. What follows the front is
    trained whole."""
    exits: ExitsConfig | None = None
    """Heads that are trained with the model, such as `{blocks: [1, 3]}`; null is none: `splitfed exits` trains some
    afterwards."""

    @field_validator("args")
    @classmethod
    def _not_twice(cls, args: dict[str, int | float | bool | str]) -> dict[str, int | float | bool | str]:
        for name, instead in SET_ELSEWHERE.items():
            if name in args:
                raise ValueError(f"{name} cannot be set here, it comes from {instead}")
        return args
