"""LoRA, by the library peft."""

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from splitfed.errors import ModelError, telling_missing
from splitfed.model.adapters.base import Placed, layers
from splitfed.seeds import Key

if TYPE_CHECKING:
    from torch import Tensor

    from splitfed.model.parts import Part

_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."


class Lora(Placed):
    """LoRA (arXiv 2106.09685): a product of two small matrices is added to layers of the blocks, and alone is trained.

    It takes the library peft: `pip install 'splitfed[adapters]'`.
    """

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = 8
    """Columns of the first matrix and rows of the second."""
    alpha: PositiveFloat = 16.0
    """The product is added `alpha` / `rank` times."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the inputs of the first matrix that is dropped in training, drawn in each mini-batch; 0 is none."""
    targets: list[Literal["qkv", "proj", "fc1", "fc2"]] = Field(["qkv", "proj"], min_length=1)
    """Layers of each block that it is added to: `qkv` and `proj` of the attention, `fc1` and `fc2` of the feed-forward
    part."""

    def misfit(self, part: "Part") -> str | None:
        """Return why a part of the model cannot be trained so, or None."""
        if find_spec("peft") is None:
            return "lora needs the library peft: pip install 'splitfed[adapters]'"
        found = {name.rpartition(".")[2] for name in layers(part, self.targets)}
        if missing := [target for target in self.targets if target not in found]:
            return f"lora: the {part.side}'s blocks have no layer {missing[0]!r}: take it out of model.adapter.targets"
        return None

    def add(self, part: "Part", key: Key) -> None:
        """Put the matrices in. The second one starts at zero, so nothing changes at first."""
        import torch

        import splitfed.model._torchvision  # noqa: F401  before peft, whose transformers import torchvision

        try:
            with telling_missing():
                from peft import LoraConfig, inject_adapter_in_model  # slow: it brings transformers
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"model.adapter: lora: peft cannot be imported: {reason[:200]}") from error
        if not (targets := list(layers(part, self.targets))):
            return  # a tail without blocks
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets,  # type: ignore[arg-type]
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            key = key if part.side == "front" else key.at(targets[0])
            torch.default_generator.manual_seed(key.integer())
            inject_adapter_in_model(config, part)

    def trained(self, part: "Part") -> Collection[str]:
        """Return the names of what is trained of a part, beside the head."""
        return {name for name, _ in part.named_parameters() if _DOWN in name or _UP in name}

    def merged(self, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Return the tensors of a model as timm names them, with what was added folded in."""
        plain = {}
        for name, tensor in state.items():
            if _DOWN in name or _UP in name:
                continue
            down, up = (state.get(name.replace(_BASE, matrix)) for matrix in (_DOWN, _UP))
            if _BASE in name and down is not None and up is not None:
                tensor = (tensor.double() + self.alpha / self.rank * (up.double() @ down.double())).to(tensor.dtype)
            plain[name.replace(_BASE, ".")] = tensor
        return plain
