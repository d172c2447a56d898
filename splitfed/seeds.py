"""Randomness by name: every draw comes from a generator keyed by what it is for, never from global state."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


@dataclass(frozen=True, slots=True)
class Key:
    """A place in the tree of all random draws of a run: the run's seed and the path to the draw.

    Two keys with equal seed and path give equal draws, whatever happened before and in whichever process or thread.
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def at(self, *path: str | int) -> "Key":
        """Return the key below this one, for instance `key.at("kmeans", round, client, step)`."""
        return Key(self.seed, self.path + path)

    def integer(self) -> int:
        """Return a number in [0, 2**63) that belongs to this key."""
        digest = hashlib.blake2b(repr((self.seed, self.path)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def generator(self, device: "torch.device | str" = "cpu") -> "torch.Generator":
        """Return a fresh torch generator on `device`; CPU and CUDA generators draw different numbers."""
        import torch

        return torch.Generator(device).manual_seed(self.integer())

    def numpy(self) -> "numpy.random.Generator":
        """Return a fresh numpy generator."""
        import numpy

        return numpy.random.default_rng(self.integer())
