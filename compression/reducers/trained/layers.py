"""Layers that a reducer brings with it: an encoder at the client, a decoder at the server, gates within the front.

They become part of the model, as `encoder` and `gates` of the front and `decoder` of the back, so whatever holds for
these holds for them: optimisers, averages, checkpoints, copies of the back.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import skip_init

from splitfed.errors import ModelError
from splitfed.seeds import Key

# How the names of these layers' tensors begin, in the front's and the back's state.
ENCODER, DECODER, GATES = "encoder.", "decoder.", "gates."
# Either half of a reducer that has no layers of its own.
IDENTITY = nn.Identity()


class Gates(nn.Module, ABC):
    """Layers that stand within the front, between its blocks: they run these, and close what is not to travel."""

    @abstractmethod
    def forward(self, tokens: Tensor, blocks: Sequence[nn.Module], budget: float | Tensor | None = None) -> Tensor:
        """Turn tokens `[B, n, d]`, as they enter the front's first block, into activations at the cut `[B, n, d]`,
        through all `blocks`. The rows of a closed token are zeros; prefix tokens are never closed.

        `budget` is the share of all other tokens that is to be left, in (0, 1], for the batch or for each sample `[B]`;
        None is the gates' own.
        """


@dataclass(frozen=True)
class Halves:
    """A reducer's own layers.

    `encoder` turns activations `[B, n, d]` into the smashed tensor, `decoder` that into the input of the back,
    `[B, n, d]`. The encoder's `owner` is the round (it goes out with the front and is averaged with it) or each client
    alone (`local`: it never travels after it was handed out). `trained` ones learn with the model, the encoder in the
    front's optimiser and the decoder in the back's; others are frozen while it learns, as local ones have to be.
    `gates` run the front's blocks, and go where the encoder goes.
    """

    encoder: nn.Module
    decoder: nn.Module
    owner: Literal["round", "local"] = "round"
    trained: bool = True
    gates: Gates | None = None

    def __post_init__(self) -> None:
        if self.owner == "local" and self.trained:
            raise ValueError("a local encoder is frozen: what a client's own would learn in a round, nobody keeps")

    @property
    def encoder_travels(self) -> bool:
        """Whether the encoder is part of what the server hands out and takes back in each round."""
        return self.owner == "round" and self.trained

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of both, named as in the front and the back."""
        encoder, decoder = self.encoder.state_dict(), self.decoder.state_dict()
        return {ENCODER + n: t for n, t in encoder.items()} | {DECODER + n: t for n, t in decoder.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over, by copy, the tensors of both. Raises ModelError where they are others."""
        try:
            for half, prefix in ((self.encoder, ENCODER), (self.decoder, DECODER)):
                half.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
        except RuntimeError as error:
            raise ModelError(f"weights of other layers: {' '.join(str(error).split())}") from None


@dataclass(frozen=True, slots=True)
class Alignment:
    """How clients fit a reducer's frozen layers to their images before they first train: `epochs` passes over them
    (none: the layers are handed out as they are), Adam at `lr`."""

    epochs: int
    lr: float


def mlp(widths: Sequence[int], key: Key) -> nn.Sequential:
    """Return linear layers from each width to the next, with ReLU between them: `[..., widths[0]]` to
    `[..., widths[-1]]`. Weights and biases are drawn from `key` as torch draws its own, uniformly within
    1 / sqrt(inputs)."""
    generator, layers = key.generator(), list[nn.Module]()
    for inputs, outputs in pairwise(widths):
        linear = skip_init(nn.Linear, inputs, outputs)
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -1 / sqrt(inputs), 1 / sqrt(inputs), generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
