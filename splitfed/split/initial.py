"""The weights that a run begins with, where both ends have them without sending any: from the model's own file and the
scenario's seed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from splitfed.errors import RunError
from splitfed.split.client_part import ClientPart


@dataclass(frozen=True, slots=True)
class Initial:
    """What a client part has of its own: the weights that would travel, float32 on the CPU, and their SHA-256."""

    weights: dict[str, Tensor]
    sha256: str

    @classmethod
    def of(cls, part: ClientPart) -> Self:
        """Take a copy of a part's weights as they are now; what is frozen of it counts into the SHA-256 as well."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in part.travelling().items()}
        return cls(weights, digest({**weights, **part.frozen()}))

    def same(self, weights: Mapping[str, Tensor]) -> bool:
        """Tell whether weights are these, bit for bit."""
        return weights.keys() == self.weights.keys() and all(weights[n].equal(t) for n, t in self.weights.items())

    def check(self, sha256: str) -> None:
        """Raise RunError unless the other end has loaded the same."""
        if sha256 != self.sha256:
            raise RunError(
                "compression.front_weights.initial: the weights that this client has loaded and drawn are others than "
                "the server's: the same file and the same version of torch give the same, or set it to send"
            )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, whatever their order and device."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
