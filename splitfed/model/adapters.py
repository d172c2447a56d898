"""What of a front is trained where most of it stays as it is: its LayerNorms, low-rank additions to its layers, or
nothing but what a reducer adds.

The frozen rest crosses once for each client; each round only what is trained does. Nothing heavy is imported here:
methods import torch and peft, so that a scenario is read without them.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from splitfed.config import Config, kind_shorthand
from splitfed.errors import ModelError, telling_missing
from splitfed.seeds import Key

if TYPE_CHECKING:
    from torch import Tensor, nn

    from splitfed.model.parts import Front

_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."


class Whole(Config):
    """The whole front is trained."""

    kind: Literal["none"] = "none"

    def misfit(self, front: "Front") -> str | None:
        """Return why a front cannot be trained so, or None."""
        return None

    def apply(self, front: "Front", key: Key) -> None:
        """Prepare a front, in place; what is new in it is drawn from `key`. Raises ModelError as `misfit` says."""

    def merged(self, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Return the tensors of a front as timm names them, with what was added folded in."""
        return dict(state)


class Norms(Whole):
    """Only the front's LayerNorms are trained, their scales and shifts (LN-Tune, arXiv 2304.01917)."""

    kind: Literal["norms"] = "norms"  # type: ignore[assignment]

    def misfit(self, front: "Front") -> str | None:
        """Return why a front cannot be trained so, or None."""
        return None if _norms(front) else "norms: the front has no LayerNorm: train it whole with model.adapter: none"

    def apply(self, front: "Front", key: Key) -> None:
        """Freeze all but the LayerNorms."""
        _check(self, front)
        front.requires_grad_(False)
        for norm in _norms(front):
            norm.requires_grad_(True)
        front.freeze()


class Fixed(Whole):
    """Nothing of the front is trained; what is trained beside it is, such as the layers of a reducer (`bottleneck`,
    `jscc`), which the gradient at the cut teaches as ever."""

    kind: Literal["frozen"] = "frozen"  # type: ignore[assignment]

    def apply(self, front: "Front", key: Key) -> None:
        """Freeze it."""
        front.requires_grad_(False)
        front.freeze()


class Lora(Whole):
    """LoRA (arXiv 2106.09685): a product of two small matrices is added to layers of the front, and alone is trained.

    It takes the library peft: `pip install 'splitfed[adapters]'`.
    """

    kind: Literal["lora"] = "lora"  # type: ignore[assignment]
    rank: PositiveInt = 8
    """Columns of the first matrix and rows of the second."""
    alpha: PositiveFloat = 16.0
    """The product is added `alpha` / `rank` times."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the inputs of the first matrix that is dropped in training, drawn in each mini-batch; 0 is none."""
    targets: list[Literal["qkv", "proj", "fc1", "fc2"]] = Field(["qkv", "proj"], min_length=1)
    """Layers of each block that it is added to: `qkv` and `proj` of the attention, `fc1` and `fc2` of the feed-forward
    part."""

    def _layers(self, front: "Front") -> list[str]:
        from torch import nn

        # By their full names: peft goes by endings, and the patch embedding has a `proj` too.
        return [
            name for name, layer in front.named_modules()
            if isinstance(layer, nn.Linear) and name.startswith("blocks.") and name.rpartition(".")[2] in self.targets
        ]  # fmt: skip

    def misfit(self, front: "Front") -> str | None:
        """Return why a front cannot be trained so, or None."""
        if find_spec("peft") is None:
            return "lora needs the library peft: pip install 'splitfed[adapters]'"
        found = {name.rpartition(".")[2] for name in self._layers(front)}
        if missing := [target for target in self.targets if target not in found]:
            return f"lora: the front's blocks have no layer {missing[0]!r}: take it out of model.adapter.targets"
        return None

    def apply(self, front: "Front", key: Key) -> None:
        """Put the matrices in and freeze all else. The second matrix starts at zero, so nothing changes at first."""
        import torch

        import splitfed.model._torchvision  # noqa: F401  before peft, whose transformers import torchvision

        _check(self, front)
        try:
            with telling_missing():
                from peft import LoraConfig, inject_adapter_in_model  # slow: it brings transformers
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"model.adapter: lora: peft cannot be imported: {reason[:200]}") from error
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self._layers(front),  # type: ignore[arg-type]
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.integer())
            inject_adapter_in_model(config, front)
        for name, parameter in front.named_parameters():
            parameter.requires_grad_(_DOWN in name or _UP in name)
        front.freeze()

    def merged(self, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Return the tensors of a front as timm names them, with what was added folded in."""
        plain = {}
        for name, tensor in state.items():
            if _DOWN in name or _UP in name:
                continue
            down, up = (state.get(name.replace(_BASE, matrix)) for matrix in (_DOWN, _UP))
            if _BASE in name and down is not None and up is not None:
                tensor = (tensor.double() + self.alpha / self.rank * (up.double() @ down.double())).to(tensor.dtype)
            plain[name.replace(_BASE, ".")] = tensor
        return plain


AdapterConfig = Annotated[Whole | Norms | Fixed | Lora, Field(discriminator="kind"), kind_shorthand]


def _norms(front: "Front") -> "list[nn.Module]":
    from torch import nn

    return [module for module in front.modules() if isinstance(module, nn.LayerNorm) and module.elementwise_affine]


def _check(adapter: Whole, front: "Front") -> None:
    if problem := adapter.misfit(front):
        raise ModelError(f"model.adapter: {problem}")
