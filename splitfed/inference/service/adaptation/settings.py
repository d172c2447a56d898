"""What a service adapts, from which teacher, and how fast."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from splitfed.config import Broken, Config


class TeacherConfig(Config):
    """A model of timm that was trained on the same classes, in the same order."""

    name: str
    """Its name in timm."""
    weights: str
    """Local file of its weights, with a head for the run's classes."""
    args: dict[str, int | float | bool | str] = {}
    """Arguments that go to timm as they are, such as `img_size`: the side that images are resized to for it, else the
    one that timm has for the name."""


def _not_another(value: Any) -> Any:
    return None if value == "run" else value


def _by_name(value: Any) -> Any:
    return {"norms": value} if isinstance(value, str) else value


class AdaptConfig(Config):
    """How norms are adapted: a teacher is made surer of what it says of images that clients kept, and what is served
    learns from it (CEMA, arXiv 2402.17316)."""

    norms: Literal["back", "whole"] = "back"
    """Which LayerNorms learn. Those of the `back` learn from activations that are sent to be answered, and no image
    leaves its client; those of the `whole` model learn from kept images, which clients send for it, and those of the
    front go back to them."""
    teacher: Annotated[TeacherConfig | None, BeforeValidator(_not_another)] = None
    """What is learnt from: the `run`'s own whole model, as without it, or another one, which needs images."""
    pool: Literal["all", "client"] = "all"
    """Whose images norms learn from: those of `all` clients, or for each `client` its own, which it alone is answered
    by."""
    batch: PositiveInt = 32
    """Kept images of a step."""
    replayed: NonNegativeInt = 96
    """Images of earlier steps that are learnt from again beside them, as many as there are."""
    buffer: NonNegativeInt = 10_000
    """From how many of the newest images these are drawn; they are in memory, up to 256 MB, and never on disk."""
    high: float = Field(0.4, gt=0, le=1)
    """Entropy, as a share of ln C, for which an image weighs 1: exp(high ln C - entropy) is its weight."""
    lr: PositiveFloat = 2.5e-3
    """Learning rate of what is served, by SGD."""
    teacher_lr: PositiveFloat = 2.5e-4
    """Learning rate of the teacher's norms."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of both."""
    publish: PositiveInt = 4
    """After how many steps what was learnt is served, kept on disk, and with `norms: whole` sent back."""

    @model_validator(mode="after")
    def _a_teacher_sees_images(self) -> "AdaptConfig":
        if self.norms == "back" and self.teacher is not None:
            raise Broken(
                ("teacher", "another model sees images, and with norms: back none is sent: set norms: whole, or leave "
                 "it out")
            )  # fmt: skip
        return self


Adapt = Annotated[AdaptConfig, BeforeValidator(_by_name)]
