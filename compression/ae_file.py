"""The file of an autoencoder: its weights, and which model, cut and width they are for."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from splitfed.compression.halves import Halves
from splitfed.errors import ModelError
from splitfed.expect import Geometry
from splitfed.files import replace_with

if TYPE_CHECKING:
    from splitfed.models import ModelConfig

_ABOUT = "splitfed-ae"  # one entry of the metadata, as JSON: of several, safetensors would write the order at random


@dataclass(frozen=True, slots=True)
class Kept:
    """What an autoencoder is for: activations of `features` numbers after `cut` blocks of a timm model at `image_size`
    pixels, as codes of `width` numbers."""

    model: str
    cut: int
    image_size: int
    features: int
    width: int

    @classmethod
    def of(cls, model: "ModelConfig", geometry: Geometry, width: int) -> Self:
        """Return what fits a model."""
        return cls(model.name, model.cut, model.image_size, geometry.width, width)

    def __str__(self) -> str:
        return (
            f"{self.model} ({self.features} features) cut after block {self.cut} at {self.image_size} pixels, width "
            f"{self.width}"
        )


def write(path: Path, halves: Halves, kept: Kept) -> None:
    """Write the weights with what they are for. Raises ModelError where the file cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in halves.state().items()}
    try:
        with replace_with(path) as scratch:
            save_file(tensors, scratch, metadata={_ABOUT: json.dumps(asdict(kept))})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def read(path: str | Path) -> tuple[Kept, dict[str, Tensor]]:
    """Read what a file is for, and its weights. Raises ModelError where it is not there, or is no such file."""
    if not Path(path).is_file():
        raise ModelError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error})") from None
    try:
        return Kept(**json.loads(about[_ABOUT])), tensors
    except (ValueError, TypeError, KeyError):
        raise ModelError(f"{path} is no autoencoder of 'splitfed align'") from None
