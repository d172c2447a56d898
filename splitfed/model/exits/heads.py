"""Exits: small heads after chosen blocks, each of which answers from what that block made.

Those that are trained with the model are part of its front and of its back, as `exits`, so whatever holds for these
holds for them: optimisers, averages, checkpoints, copies of the back. Others are fitted to a finished run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from splitfed.model.exits.settings import ExitsConfig, Heads
from splitfed.seeds import Key

EXITS = "exits."  # how the names of their tensors begin, in the front's and the back's state


class Exits(nn.Module):
    """Heads after the blocks that `blocks` names, ascending, from 1 on. Each is a linear layer on the class token and
    the mean of the patches, both normalised. In a `cascade` each also sees what the head before says, without a
    gradient to it, and an `ensemble` answers by a weighted geometric mean of the heads so far (Zero Time Waste, arXiv
    2106.05409). `settings` says how they learn where they are trained with the model."""

    def __init__(
        self, blocks: Sequence[int], width: int, classes: int, prefix: int, *, heads: Heads = "linear",
        ensemble: bool = False, key: Key, settings: ExitsConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.blocks, self.heads, self.classes, self.settings = tuple(blocks), heads, classes, settings
        self._prefix = prefix
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.integer())
            seen = [2 * width + (classes if heads == "cascade" and place else 0) for place in range(len(blocks))]
            made = {str(block): nn.Linear(inputs, classes) for block, inputs in zip(blocks, seen, strict=True)}
        # By block, as those of front and back lie in one checkpoint.
        self.outputs = nn.ModuleDict(made)
        self.ensemble = Ensemble(len(blocks), classes) if ensemble else None

    @property
    def apart(self) -> bool:
        """Whether the model learns nothing from them."""
        return self.settings is not None and self.settings.regime == "disjoint"

    def learn(self, round: int) -> bool:
        """Tell whether they learn with the model in a round."""
        return self.settings is not None and self.settings.learn(round)

    def look(self, tokens: Tensor) -> Tensor:
        """Return what a head sees of a block's output `[B, k, D]`: `[B, 2 D]` float32."""
        tokens = tokens.float()
        means = tokens[:, self._prefix :].mean(1) if tokens.shape[1] > self._prefix else tokens[:, 0]
        parts = torch.stack([tokens[:, 0], means], 1)
        return nn.functional.layer_norm(parts, parts.shape[-1:]).flatten(1)

    def head(self, place: int, seen: Tensor, before: Tensor | None) -> Tensor:
        """Return the logits `[B, C]` of one head, from what it sees and, in a cascade, the logits of the one before."""
        if self.heads == "cascade" and place:
            assert before is not None
            seen = torch.cat([seen, nn.functional.layer_norm(before.detach(), before.shape[-1:])], 1)
        return self.outputs[str(self.blocks[place])](seen)

    def forward(self, seen: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits `[B, C]` of all heads, from what each sees."""
        found: list[Tensor] = []
        for place, one in enumerate(seen):
            found.append(self.head(place, one, found[-1] if found else None))
        return found

    def answer(self, place: int, logits: Sequence[Tensor]) -> Tensor:
        """Return the probabilities `[B, C]` with which exit number `place` answers, from the logits of all heads up to
        it."""
        return self.say(place, logits).softmax(-1)

    def say(self, place: int, logits: Sequence[Tensor]) -> Tensor:
        """Return the numbers `[B, C]` whose softmax exit number `place` answers with, as `answer` does."""
        if self.ensemble is None:
            return logits[place]
        return self.ensemble(place, [log_softmax(one, -1) for one in logits[: place + 1]])

    def loss(self, seen: Mapping[int, Tensor], targets: Tensor) -> Tensor:
        """Return what joins the model's loss on a mini-batch: the sum of the heads' losses, weighed, from what each
        sees of it, by block. The model gets no gradient of it where it learns nothing from them."""
        assert self.settings is not None
        looks = [seen[block].detach() if self.apart else seen[block] for block in self.blocks]
        return self.settings.weight * torch.stack([cross_entropy(one, targets) for one in self(looks)]).sum()


class Ensemble(nn.Module):
    """Weighs what the heads say so far: u_m = (1 / m) sum_(j <= m) exp(a_mj) log p_j + c_m (Zero Time Waste, arXiv
    2106.05409)."""

    def __init__(self, exits: int, classes: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(exits, exits))
        self.shifts = nn.Parameter(torch.zeros(exits, classes))

    def forward(self, place: int, logs: Sequence[Tensor]) -> Tensor:
        """Return u of exit number `place`, `[B, C]`, from log probabilities of the heads up to it."""
        weighed = torch.stack(list(logs)) * self.weights[place, : place + 1].exp()[:, None, None]
        return weighed.sum(0) / (place + 1) + self.shifts[place]


def exits_of(*parts: nn.Module) -> list[Exits]:
    """Return the exits that these parts of a model have, in their order."""
    found = [getattr(part, EXITS.rstrip("."), None) for part in parts]
    return [one for one in found if isinstance(one, Exits)]


def clipped_together(module: nn.Module) -> list[list[nn.Parameter]]:
    """Return a module's parameters by whose gradients have one norm: exits that its model learns nothing from have one
    of their own, or their gradients would make the model's smaller."""
    alone = [list(one.parameters()) for one in module.modules() if isinstance(one, Exits) and one.apart]
    named = {id(parameter) for part in alone for parameter in part}
    return [[parameter for parameter in module.parameters() if id(parameter) not in named], *alone]


def classifiers(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of all that answers in a model, or in a part of one: its head, and heads of exits."""
    for one in module.modules():
        if isinstance(one, Exits):
            yield from one.parameters()
        elif isinstance(head := getattr(one, "head", None), nn.Module):
            yield from head.parameters()


def joined(parts: Sequence[Exits], width: int, prefix: int) -> Exits:
    """Return the exits of a model's parts as one module, which shares their heads."""
    first, blocks = parts[0], [block for part in parts for block in part.blocks]
    made = Exits(blocks, width, first.classes, prefix, heads=first.heads, key=Key(0))
    made.outputs = nn.ModuleDict({name: head for part in parts for name, head in part.outputs.items()})
    return made


class Seen(Mapping[int, Tensor]):
    """What exits see of a forward pass, by block. They look at it when they are asked, and not within the pass: there
    a block may be computed once more on the way back, with no exit beside it."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Exits, Tensor]] = {}

    def note(self, exits: Exits, block: int, made: Tensor) -> None:
        """Note what a block has made."""
        self._made[block] = exits, made

    def __getitem__(self, block: int) -> Tensor:
        exits, made = self._made[block]
        return exits.look(made)

    def __iter__(self) -> Iterator[int]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@contextmanager
def watching(*parts: Any) -> Iterator[Seen]:
    """Note what the exits of these parts see of the forward pass that is made meanwhile. A part tells by `after(block)`
    which of its modules makes that."""
    seen = Seen()

    def note(exits: Exits, block: int) -> Callable:
        return lambda module, given, made: seen.note(exits, block, made)

    hooks = [
        part.after(block).register_forward_hook(note(exits, block))
        for part in parts for exits in exits_of(part) for block in exits.blocks
    ]  # fmt: skip
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class _Beside(torch.autograd.Function):
    """Passes a tensor on, and takes a loss back with its gradient."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, loss: Tensor) -> Tensor:
        ctx.of_loss = {"dtype": loss.dtype, "device": loss.device}
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], torch.ones((), **ctx.of_loss)


def beside(made: Tensor, loss: Tensor) -> Tensor:
    """Return what a front `made`, so that whoever goes back through it minimises this loss (a number) as well: the
    gradient that comes then and that of the loss are summed where they meet."""
    return _Beside.apply(made, loss)
