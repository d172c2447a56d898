"""Which images a client keeps for the server to adapt by, from what its last exit says of them: those that it is
neither at a loss with nor sure of (CEMA, arXiv 2402.17316), or to compare with, some by chance."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from splitfed.config import Broken, Config, kind_shorthand
from splitfed.inference.deciding import confidence
from splitfed.seeds import Key

_MOMENTUM = 0.9


class Informative(Config):
    """Images are kept whose entropy lies between two bounds, as shares of the largest, ln C of C classes."""

    kind: Literal["entropy"] = "entropy"
    high: float = Field(0.4, gt=0, le=1)
    """Where the entropy is so large or larger, what is said of an image is not to be relied on, and it is not kept."""
    low: float = Field(0.02, ge=0, lt=1)
    """Where it is so small or smaller, nothing can be learnt from an image, and it is not kept."""
    redundant: float | None = Field(None, gt=0, le=1)
    """Nor is one kept whose probabilities have this cosine, or a larger one, to the moving mean of those that were
    kept (momentum 0.9), as it says what they said; the paper takes 0.05, of 1000 classes. Null keeps it."""

    @model_validator(mode="after")
    def _apart(self) -> "Informative":
        if self.low >= self.high:
            raise Broken(("low", f"is {self.low:g}, and nothing lies between it and high, {self.high:g}: lower it"))
        return self


class Drawn(Config):
    """Images are kept by chance, whatever is said of them."""

    kind: Literal["random"] = "random"
    share: float = Field(gt=0, le=1)
    """Which share of them."""


Select = Annotated[Annotated[Informative | Drawn, Field(discriminator="kind")], kind_shorthand]


class Selector:
    """Tells which images are kept, and counts them: `seen` is how many it was asked about, `kept` how many of these. It
    remembers what it has kept, so images come in order; `key` is for what is drawn."""

    def __init__(self, settings: Informative | Drawn, key: Key) -> None:
        self._settings, self._key = settings, key
        self.seen = self.kept = 0
        self._mean: Tensor | None = None

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Tell of images with these probabilities `[B, C]` which are kept, bool `[B]`."""
        said = probabilities.detach().float().cpu()
        kept = self._drawn(len(said)) if isinstance(self._settings, Drawn) else self._informative(said)
        self.seen += len(said)
        self.kept += int(kept.sum())
        return kept

    def _drawn(self, images: int) -> Tensor:
        assert isinstance(self._settings, Drawn)
        draws = [torch.rand((), generator=self._key.at(self.seen + row).generator()) for row in range(images)]
        return torch.tensor([float(draw) < self._settings.share for draw in draws], dtype=torch.bool)

    def _informative(self, said: Tensor) -> Tensor:
        assert isinstance(self._settings, Informative)
        entropy = 1 - confidence(said, "entropy")
        kept = (entropy < self._settings.high) & (entropy > self._settings.low)
        if (most := self._settings.redundant) is not None:
            for row in kept.nonzero().flatten().tolist():
                kept[row] = self._is_new(said[row], most)
        return kept

    def _is_new(self, said: Tensor, most: float) -> bool:
        """Tell whether an image says something else than those that were kept, and if so keep it in mind."""
        if self._mean is None:
            self._mean = said
            return True
        if abs(float(torch.nn.functional.cosine_similarity(said, self._mean, dim=0))) >= most:
            return False
        self._mean = _MOMENTUM * self._mean + (1 - _MOMENTUM) * said
        return True
