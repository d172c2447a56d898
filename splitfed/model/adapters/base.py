"""What an adapter is: which numbers of a part of the model are trained, and what it adds to them.

Nothing heavy is imported in this folder but by `layers.py`: methods import torch and peft, so that a scenario is read
without them.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal

from splitfed.config import Config
from splitfed.seeds import Key

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor, nn

    from splitfed.model.parts import Part

HEAD = "head."  # how the names of the head's numbers begin: whatever is adapted, these are trained


class AdapterSettings(Config):
    """The base of what a scenario says of an adapter."""

    kind: str

    @property
    def sides(self) -> tuple[str, ...]:
        """Which sides of the cut it is on: `front`, and `back` for whatever follows the front."""
        return ()

    @property
    def turns(self) -> int:
        """In how many parts what it adds is divided, of which each round trains one; 1 is whole."""
        return 1

    def misfit(self, part: "Part") -> str | None:
        """Return why a part of the model cannot be trained so, or None."""
        return None

    def apply(self, part: "Part", key: Key) -> None:
        """Prepare a part, in place, if the adapter is on its side; what is new in it is drawn from `key`. Raises
        ModelError where what it needs cannot be had."""
        if part.side not in self.sides:
            return
        self.add(part, key)
        trained = self.trained(part)
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(name in trained or name.startswith(HEAD))
        part.freeze()

    def add(self, part: "Part", key: Key) -> None:
        """Put in what the adapter adds, so that the part still gives what it gave. Raises ModelError."""

    def trained(self, part: "Part") -> Collection[str]:
        """Return the names of what is trained of a part, beside the head."""
        return ()

    def merged(self, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Return the tensors of a model as timm names them, with what was added folded in; for one that `folds`."""
        return dict(state)

    def folds(self, vit: "VisionTransformer") -> bool:
        """Tell whether all that was added to such a model of timm can be folded into one."""
        return True

    def args(self, vit: "VisionTransformer") -> dict[str, float]:
        """Return by which arguments of timm's a model differs from this one, once what was added is folded in."""
        return {}


class Placed(AdapterSettings):
    """The base of an adapter that may be on either side of the cut."""

    on: Literal["front", "back", "both"] = "front"
    """Which side it is on: that of the clients (`front`), whatever follows the front (`back`), or `both`. The other is
    trained whole, and the head always."""

    @property
    def sides(self) -> tuple[str, ...]:
        """Which sides of the cut it is on."""
        return ("front", "back") if self.on == "both" else (self.on,)


def layers(part: "Part", ends: Collection[str]) -> "dict[str, nn.Linear]":
    """Return the linear layers of a part's blocks whose names within a block end so, such as `proj` or `mlp.fc2`."""
    from torch import nn

    # By their full names: the patch embedding has a `proj` too.
    return {
        name: layer for name, layer in part.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith("blocks.") and name.endswith(tuple(f".{e}" for e in ends))
    }  # fmt: skip
