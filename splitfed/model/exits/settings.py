"""The settings of exits that are trained with the model. Nothing heavy is imported here, so that a scenario is read
without torch."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from splitfed.config import Broken, Config, as_tuple

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
    nothing from them: all other weights are those of a run without, unless a controller, a budget or the time goes by
    the bytes that heads weigh."""
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
