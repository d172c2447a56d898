"""Adapters that add nothing: some of the model's own numbers are trained, and the rest stays as it is."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

from splitfed.model.adapters.base import AdapterSettings, Placed

if TYPE_CHECKING:
    from splitfed.model.parts import Part


class Whole(AdapterSettings):
    """All is trained."""

    kind: Literal["none"] = "none"


class Norms(Placed):
    """Only the LayerNorms are trained, their scales and shifts (LN-Tune, arXiv 2304.01917)."""

    kind: Literal["norms"] = "norms"

    def misfit(self, part: "Part") -> str | None:
        """Return why a part of the model cannot be trained so, or None."""
        return None if self.trained(part) else (
            f"norms: the {part.side} has no LayerNorm: train it whole with model.adapter: none"
        )  # fmt: skip

    def trained(self, part: "Part") -> Collection[str]:
        """Return the names of what is trained of a part, beside the head."""
        from torch import nn

        norms = {name for name, one in part.named_modules() if isinstance(one, nn.LayerNorm) and one.elementwise_affine}
        return {name for name, _ in part.named_parameters() if name.rpartition(".")[0] in norms}


class Attention(Placed):
    """Only the attention of the blocks is trained (arXiv 2203.09795, section 4)."""

    kind: Literal["attention"] = "attention"

    def misfit(self, part: "Part") -> str | None:
        """Return why a part of the model cannot be trained so, or None."""
        return None if self.trained(part) else (
            f"attention: the {part.side} has no attention to train: train it whole with model.adapter: none"
        )  # fmt: skip

    def trained(self, part: "Part") -> Collection[str]:
        """Return the names of what is trained of a part, beside the head."""
        return {name for name, _ in part.named_parameters() if name.startswith("blocks.") and ".attn." in name}


class Fixed(AdapterSettings):
    """Nothing of the front is trained; what is trained beside it is, such as the layers of a reducer (`bottleneck`,
    `jscc`), which the gradient at the cut teaches as ever."""

    kind: Literal["frozen"] = "frozen"

    @property
    def sides(self) -> tuple[str, ...]:
        """Which sides of the cut it is on."""
        return ("front",)


class Head(AdapterSettings):
    """Nothing of the model is trained but the head; where labels are shared the front stays as it is, as in a phase
    that is `frozen`."""

    kind: Literal["head"] = "head"

    @property
    def sides(self) -> tuple[str, ...]:
        """Which sides of the cut it is on."""
        return ("front", "back")
