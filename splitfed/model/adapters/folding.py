"""How what was added to layers becomes part of them, in float64: a model of timm is left."""

from collections.abc import Mapping

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from splitfed.model.adapters.layers import BEHIND, BESIDE, by_layer, split_name

State = Mapping[str, Tensor]


def composed(state: State, scale: float) -> dict[str, Tensor]:
    """Fold the low-rank branches P and S of linear layers in: y = (W x + b) + s P x + s S (W x + b) is a layer of
    weights W + s (P + S W), and of bias b + s S b."""
    plain = without(state)
    for layer, parts in by_layer(state).items():
        beside, behind = (
            scale
            * torch.stack([part[f"{where}.up"].T.double() @ part[f"{where}.down"].double() for part in parts]).sum(0)
            for where in (BESIDE, BEHIND)
        )
        weight = plain[f"{layer}.weight"]
        plain[f"{layer}.weight"] = (weight.double() + beside + behind @ weight.double()).to(weight.dtype)
        if (bias := plain.get(f"{layer}.bias")) is not None:
            plain[f"{layer}.bias"] = (bias.double() + behind @ bias.double()).to(bias.dtype)
    return plain


def widened(state: State, scale: float) -> dict[str, Tensor]:
    """Fold the bottlenecks beside feed-forward parts in, as more of their hidden units. Blocks that have none get as
    many that give nothing, for all blocks of a model of timm are as wide."""
    plain, found = without(state), by_layer(state)
    more = next((sum(len(part[f"{BESIDE}.down"]) for part in parts) for parts in found.values()), 0)
    for name in [name for name in plain if name.endswith(".mlp.fc1.weight")]:
        mlp = name.removesuffix(".fc1.weight")
        first, last = plain[name], plain[f"{mlp}.fc2.weight"]
        bias, end = plain[f"{mlp}.fc1.bias"], plain[f"{mlp}.fc2.bias"]
        rows, shift = first.new_zeros(more, first.shape[1]), bias.new_zeros(more)
        columns = last.new_zeros(len(last), more)
        if parts := found.get(mlp):
            rows, shift = (torch.cat([part[f"{BESIDE}.{one}"] for part in parts]) for one in ("down", "down_bias"))
            columns = torch.cat([scale * part[f"{BESIDE}.up"].T for part in parts], 1)
            end = end.double() + scale * sum(part[f"{BESIDE}.up_bias"].double() for part in parts)
        plain |= {
            name: torch.cat([first, rows]), f"{mlp}.fc1.bias": torch.cat([bias, shift]),
            f"{mlp}.fc2.weight": torch.cat([last, columns], 1), f"{mlp}.fc2.bias": end.to(last.dtype),
        }  # fmt: skip
    return plain


def takes_more(vit: VisionTransformer) -> bool:
    """Tell whether the feed-forward parts of a model are two layers, with biases, around a GELU and nothing else."""
    return all(
        type(mlp := block.mlp) is Mlp and type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
        and isinstance(mlp.norm, nn.Identity) and mlp.fc1.bias is not None and mlp.fc2.bias is not None
        for block in vit.blocks
    )  # fmt: skip


def ratio(vit: VisionTransformer, more: int) -> float:
    """Return the `mlp_ratio` of a model whose feed-forward parts have so many more hidden units than this one's."""
    now, width = vit.get_parameter("blocks.0.mlp.fc1.weight").shape
    exact = (now + more) / width
    return exact if int(width * exact) == now + more else (now + more + 0.5) / width  # timm rounds down


def without(state: State) -> dict[str, Tensor]:
    """Return what was not added."""
    return {name: tensor for name, tensor in state.items() if split_name(name) is None}
