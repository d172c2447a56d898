"""The settings of the model. Nothing heavy is imported here, so that a scenario is read without torch and timm."""

from typing import Annotated

from pydantic import Field, field_validator

from splitfed.config import Config, kind_shorthand
from splitfed.model.adapters.registry import AdapterConfig
from splitfed.model.adaptive.settings import AlastConfig
from splitfed.model.exits.settings import ExitsConfig

# Arguments of timm's that follow from something else, and from what.
SET_ELSEWHERE = {
    "img_size": "image_size", "num_classes": "the classes of the data set", "pretrained": "pretrained",
    "checkpoint_path": "weights", "in_chans": "the images, which are RGB",
}  # fmt: skip
_MOST_PIXELS = 4096  # of a side: far above any Vision Transformer, and a slip of the pen takes no memory


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
    """What of the model is trained. With an adapter most of it stays as it is, and crosses once for each client that
    holds it: only LayerNorms (`norms`), `attention`, small additions (`lora`, `bottleneck`, `hydra`), the `head`, or
    the layers of a reducer (`frozen`) are trained and cross each round. `on` says on which side of the cut; the other
    is trained whole."""
    adaptive: Annotated[AlastConfig, kind_shorthand] | None = None
    """Which blocks of front and back train in a mini-batch, and on how many of its tokens, such as
    `{kind: alast, trained: 4}`; null trains all blocks on all tokens."""
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
