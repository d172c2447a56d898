"""Bottlenecks and Hydra: small branches that are added to layers of the blocks, whole or in parts that take turns."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from splitfed.model.adapters.base import Placed, layers
from splitfed.seeds import Key

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor, nn

    from splitfed.model.parts import Part


class _Parted(Placed):
    """The base of what can be divided into parts."""

    parts: PositiveInt = 1
    """Parts that it is divided into, each as wide. With 2 or more they take turns: a round trains one and sends it
    back, while the others act and stay as they are (after MoSA, arXiv 2312.02923)."""

    @property
    def turns(self) -> int:
        """In how many parts what it adds is divided, of which each round trains one; 1 is whole."""
        return self.parts

    def trained(self, part: "Part") -> Collection[str]:
        """Return the names of what is trained of a part, beside the head."""
        from splitfed.model.adapters.layers import split_name

        return {name for name, _ in part.named_parameters() if split_name(name)}

    def _divided(self, key: str, width: int) -> None:
        if width % self.parts:
            raise ValueError(f"{key} is {width}, of which {self.parts} parts cannot have as much each: set a multiple")


class Bottleneck(_Parted):
    """A bottleneck with a GELU, of `width` numbers, is added to parts of each block (arXiv 1902.00751, 2205.13535), and
    alone is trained."""

    kind: Literal["bottleneck"] = "bottleneck"
    width: PositiveInt = 8
    """Numbers of a token that it is narrowed to."""
    form: Literal["parallel", "sequential"] = "parallel"
    """Whether it is beside the layer and reads what goes into it, or behind it and reads what comes out."""
    scale: PositiveFloat = 1.0
    """What it adds is multiplied with that."""
    after: list[Literal["attn", "mlp"]] = Field(["mlp"], min_length=1, max_length=2)
    """Where in each block there is one: at the attention (`attn`), at the feed-forward part (`mlp`)."""

    @model_validator(mode="after")
    def _fits(self) -> "Bottleneck":
        self._divided("width", self.width)
        if len(set(self.after)) < len(self.after):
            raise ValueError(f"after names {self.after[0]!r} twice: leave one out")
        return self

    def misfit(self, part: "Part") -> str | None:
        """Return why a part of the model cannot be trained so, or None."""
        found = {name.rpartition(".")[2] for name in self._layers(part)}
        if missing := [place for place in self.after if place not in found]:
            return f"bottleneck: the {part.side} has no block with {missing[0]!r}: take it out of model.adapter.after"
        return None

    def _layers(self, part: "Part") -> "dict[str, nn.Module]":
        blocks = [f"blocks.{number}" for number, _ in part.blocks.named_children()]
        places = {f"{block}.{place}" for block in blocks for place in self.after}
        return {name: layer for name, layer in part.named_modules() if name in places}

    def add(self, part: "Part", key: Key) -> None:
        """Put them in."""
        from splitfed.model.adapters.layers import Added, Branch, attach, nn

        width, size = self.width // self.parts, part.embed_dim
        for name, layer in self._layers(part).items():
            attach(layer, Added(
                nn.ModuleDict({
                    self.form: Branch(size, width, size, self.scale, key.at(name, number), curved=True)
                }) for number in range(self.parts)
            ))  # fmt: skip

    def merged(self, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Return the tensors of a model as timm names them, with what was added folded in; for one that `folds`."""
        from splitfed.model.adapters.folding import widened

        return widened(state, self.scale)

    def folds(self, vit: "VisionTransformer") -> bool:
        """Tell whether all that was added to such a model of timm can be folded into one: beside a plain feed-forward
        part it is some more of that part's hidden units."""
        from splitfed.model.adapters.folding import takes_more

        return self.form == "parallel" and self.after == ["mlp"] and takes_more(vit)

    def args(self, vit: "VisionTransformer") -> dict[str, float]:
        """Return by which arguments of timm's a model differs from this one, once what was added is folded in."""
        from splitfed.model.adapters.folding import ratio

        return {"mlp_ratio": ratio(vit, self.width)}


class Hydra(_Parted):
    """Hydra (arXiv 2309.06922): two products of two small matrices are added to layers of the blocks, one beside the
    layer and one behind it, and alone are trained."""

    kind: Literal["hydra"] = "hydra"
    rank: PositiveInt = 4
    """Rows of each first matrix and columns of each second one."""
    scale: PositiveFloat = 1.0
    """What they add is multiplied with that."""
    targets: list[Literal["qkv", "proj", "fc1", "fc2"]] = Field(["proj", "fc2"], min_length=1)
    """Layers of each block that they are added to: `qkv` and `proj` of the attention, `fc1` and `fc2` of the
    feed-forward part."""

    @model_validator(mode="after")
    def _fits(self) -> "Hydra":
        self._divided("rank", self.rank)
        return self

    def misfit(self, part: "Part") -> str | None:
        """Return why a part of the model cannot be trained so, or None."""
        found = {name.rpartition(".")[2] for name in layers(part, self.targets)}
        if missing := [target for target in self.targets if target not in found]:
            return f"hydra: the {part.side}'s blocks have no layer {missing[0]!r}: take it out of model.adapter.targets"
        return None

    def add(self, part: "Part", key: Key) -> None:
        """Put them in."""
        from splitfed.model.adapters.layers import BEHIND, BESIDE, Added, Branch, attach, nn

        rank = self.rank // self.parts
        for name, layer in layers(part, self.targets).items():
            taken, given = layer.in_features, layer.out_features
            attach(layer, Added(
                nn.ModuleDict({
                    where: Branch(size, rank, given, self.scale, key.at(name, where, number), curved=False)
                    for where, size in ((BESIDE, taken), (BEHIND, given))
                }) for number in range(self.parts)
            ))  # fmt: skip

    def merged(self, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Return the tensors of a model as timm names them, with what was added folded in."""
        from splitfed.model.adapters.folding import composed

        return composed(state, self.scale)
