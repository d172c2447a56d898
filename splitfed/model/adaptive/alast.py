"""Budgets of blocks, and a pass through blocks that goes by them (ALaST, arXiv 2408.08670).

Of a mini-batch of B samples, with c_i the class token behind block i and b_i the block's budget:

    D_i(t) = 1/B sum ||c_i - c_(i-1)||^2                            the authors' code sums, so that alpha depends on B
    b_i   <- clip(b_i + alpha (D_i(t) - D_i(t-1)), low, 1)          D_i(0) = 0, b_i(0) = start

Block i passes on floor(b_i n_i) of the n_i patch tokens that entered it, those that its class token attends to most, by
the mean over its heads; so what is left of them gets less from block to block. A pass goes by the budgets as they were
before it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from splitfed.compression.reducers.samples.merging import gather, strongest
from splitfed.model.adaptive.attention import class_attention, readable
from splitfed.model.adaptive.settings import AlastConfig, Sides, passed_on
from splitfed.seeds import Key

Side = Literal["front", "back"]


class Numbers:
    """How many blocks of front and back train in a mini-batch. Both sides draw it from the same key: so each knows
    whether a gradient crosses, nothing is said of it, and nobody need be believed."""

    def __init__(self, settings: AlastConfig, front: int, back: int, key: Key) -> None:
        self.settings, self._front, self._back, self._key = settings, front, back, key

    def of(self, round: int, client: int, step: int) -> dict[Side, int]:
        """Return the numbers of a client's mini-batch in a round."""
        generator, trained = self._key.at(round, client, step).generator(), self.settings.trained
        if isinstance(trained, Sides):
            more = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            sides = (trained.front, self._front), (trained.back, self._back)
            front, back = (
                whole if mean is None else int(mean + part) for (mean, whole), part in zip(sides, more, strict=True)
            )
            return {"front": front, "back": back}
        front = int((torch.randperm(self._front + self._back, generator=generator)[:trained] < self._front).sum())
        return {"front": front, "back": trained - front}

    @property
    def share(self) -> float:
        """The share of mini-batches in which anything of the front trains, over many of them."""
        trained, front, back = self.settings.trained, self._front, self._back
        if self.settings.embedding == "always":
            return 1.0
        if isinstance(trained, Sides):
            return 1.0 if trained.front is None else min(1.0, trained.front)
        return 1 - comb(back, trained) / comb(front + back, trained)

    def front_learns(self, round: int, client: int, step: int) -> bool:
        """Tell whether anything of the front trains in a mini-batch."""
        return self.settings.embedding == "always" or self.of(round, client, step)["front"] > 0


@dataclass(frozen=True, slots=True)
class Passed:
    """What became of a mini-batch: how many tokens `entered` each block, which blocks `trained` (from 0 on), at which
    original `positions`, int64 `[B, k]`, the tokens stood that the last block has passed on, and at which of its own
    (`kept`; None: all were)."""

    entered: tuple[int, ...]
    trained: frozenset[int]
    positions: Tensor
    kept: Tensor | None

    def counted(self, learns: bool) -> "Pass":
        """Return what it is counted by, where a gradient goes back to its beginning, or does not."""
        return Pass(self.entered, self.trained, len(self.positions), learns)

    def seen(self, attention: Tensor) -> Tensor:
        """Return the attention `[B, n]` to the tokens that entered the last block as that to those it has passed on,
        `[B, k]`, rows summing to 1."""
        if self.kept is None:
            return attention
        found = attention.gather(1, self.kept)
        return found / found.sum(1, keepdim=True)


class Pass(NamedTuple):
    """What a pass is counted by: how many tokens entered each block, which blocks trained, of how many images, and
    whether a gradient went back to its beginning."""

    entered: tuple[int, ...]
    trained: frozenset[int]
    images: int
    learns: bool


class Tally:
    """The passes of a round through one side, and how many tokens of a sample were left at the cut."""

    def __init__(self) -> None:
        self._passes = Counter[Pass]()
        self._tokens = 0  # of all samples
        self._adaptive: Adaptive | None = None

    def add(self, adaptive: "Adaptive", learns: bool, left: int = 0) -> None:
        """Add the last pass: whether a gradient goes back to its beginning, and how many tokens of a sample were left
        when it began."""
        assert adaptive.last is not None
        one = adaptive.last.counted(learns)
        self._adaptive, self._tokens = adaptive, self._tokens + left * one.images
        self._passes[one] += 1

    def operations(self, of: Callable[[Pass, "Adaptive"], int]) -> float | None:
        """Return the operations of an image on average; None where there was no pass."""
        if self._adaptive is None:
            return None
        return sum(of(one, self._adaptive) * one.images * n for one, n in self._passes.items()) / self.images

    @property
    def tokens(self) -> float | None:
        """How many tokens of a sample were left on average."""
        return self._tokens / self.images if self._passes else None

    @property
    def unanswered(self) -> float | None:
        """The share of passes from whose beginning no gradient went back."""
        if not self._passes:
            return None
        return sum(n for one, n in self._passes.items() if not one.learns) / self._passes.total()

    @property
    def images(self) -> int:
        """How many images have passed."""
        return sum(one.images * n for one, n in self._passes.items())


class Adaptive:
    """The budgets of a side's blocks, and the pass of a mini-batch that goes by them: `begin` says of which one, the
    side's own forward pass goes `through` the blocks, and `commit` has the budgets move. `last` is the last pass."""

    def __init__(self, numbers: Numbers, side: Side, blocks: int) -> None:
        self.numbers, self.settings, self.side, self._blocks = numbers, numbers.settings, side, blocks
        self.last: Passed | None = None
        self._chosen: frozenset[int] | None = None
        self._seen: Tensor | None = None  # the changes of the last pass, until they are committed
        self.tally = Tally()
        self.budgets = self.changes = torch.empty(0)  # float64 `[blocks]`
        self.load_state_dict({})

    def begin(self, round: int, client: int, step: int, key: Key) -> None:
        """Have the next pass be that of a client's mini-batch, which draws from `key`."""
        number = min(self.numbers.of(round, client, step)[self.side], self._blocks)
        self._chosen, self._seen, self.last = self._choose(number, key.at(self.side)), None, None

    @property
    def begun(self) -> bool:
        """Whether a pass has been begun, and not been made."""
        return self._chosen is not None

    @property
    def embeds(self) -> bool:
        """Whether the embedding trains in the pass that has begun."""
        return self.settings.embedding == "always" or (self.settings.embedding == "with_blocks" and bool(self._chosen))

    def _choose(self, number: int, key: Key) -> frozenset[int]:
        if number == 0:
            return frozenset()
        if self.settings.choice == "highest":
            chosen = self.budgets.argsort(descending=True, stable=True)[:number]
        else:
            chosen = torch.multinomial(self.budgets.softmax(0), number, generator=key.generator())
        return frozenset(chosen.tolist())

    def through(self, tokens: Tensor, blocks: nn.Sequential, prefix: int, *, again: bool = False) -> Tensor:
        """Take tokens `[B, n, d]`, of which the first `prefix` are no patches, through all `blocks`, and return what is
        left, `[B, k, d]`. What of a block is trained gets gradients where it was chosen; with `again` a block is
        computed once more on the way back."""
        assert self._chosen is not None
        chosen, self._chosen = self._chosen, None
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        entered, changes, kept = list[int](), list[Tensor](), None
        for place, (block, budget) in enumerate(zip(blocks, self.budgets.tolist(), strict=True)):
            entered.append(tokens.shape[1])
            run = block if place in chosen else partial(still, block)
            with _attention(block) as attention:
                made = checkpoint(run, tokens, use_reentrant=False) if again else run(tokens)
            with torch.no_grad():
                changes.append((made[:, 0].float() - tokens[:, 0].float()).square().sum(1).mean())
            patches, kept = tokens.shape[1] - prefix, None
            if (count := passed_on(budget, patches)) < patches:
                kept = strongest(class_attention(readable(block), attention[0]), prefix + count, prefix)
                made, positions = gather(made, kept), positions.gather(1, kept)
            tokens = made
        self._seen = torch.stack(changes).double().cpu()
        self.last = Passed(tuple(entered), chosen, positions, kept)
        return tokens

    def foreseen(self, tokens: int, prefix: int) -> tuple[int, ...]:
        """Return how many tokens enter each block, by the budgets as they are, where so many enter the first."""
        entered = [tokens]
        for budget in self.budgets.tolist()[:-1]:
            entered.append(prefix + passed_on(budget, entered[-1] - prefix))
        return tuple(entered)

    def leaves(self, tokens: int, prefix: int) -> int:
        """Return how many tokens the last block passes on, by the budgets as they are."""
        return prefix + passed_on(self.budgets.tolist()[-1], self.foreseen(tokens, prefix)[-1] - prefix)

    def pretend(self, step: int, entered: tuple[int, ...]) -> Pass:
        """Return what would become of an image, by the draw of a `step`, of which so many tokens enter each block."""
        number = min(self.numbers.of(0, 0, step)[self.side], self._blocks)
        chosen = self._choose(number, Key(0).at("pretend", self.side, step))
        return Pass(entered, chosen, 1, self.numbers.front_learns(0, 0, step))

    def begin_most(self) -> None:
        """Have the next pass be one of those in which most blocks train."""
        most = max(range(200), key=lambda step: self.numbers.of(0, 0, step)[self.side])
        self.begin(0, 0, most, Key(0).at("most"))

    def commit(self) -> None:
        """Move the budgets by what the last pass has seen; harmless when called again."""
        if self._seen is None:
            return
        moved = self.budgets + self.settings.alpha * (self._seen - self.changes)
        self.budgets, self.changes, self._seen = moved.clamp(self.settings.low, 1), self._seen, None

    def state_dict(self) -> dict[str, Tensor]:
        """Return budgets and last changes, float64 `[blocks]` each."""
        return {"budgets": self.budgets.clone(), "changes": self.changes.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned; without it, begin anew."""
        self._chosen = self._seen = None
        self.budgets = torch.full((self._blocks,), self.settings.start, dtype=torch.float64)
        self.changes = torch.zeros_like(self.budgets)
        if state:
            self.budgets, self.changes = (state[name].double().view(self._blocks) for name in ("budgets", "changes"))


def still(block: nn.Module, tokens: Tensor) -> Tensor:
    """Return what a block makes of tokens, without gradients of its own: an optimiser passes over what has none."""
    return functional_call(block, {name: one.detach() for name, one in block.named_parameters()}, (tokens,))


@contextmanager
def _attention(block: nn.Module) -> Iterator[list[Tensor]]:
    """Note what a block's attention makes of its tokens before heads look at each other: `[B, n, 3 d]`."""
    found: list[Tensor] = []
    hook = readable(block).qkv.register_forward_hook(lambda _, __, made: found.append(made.detach()))
    try:
        yield found
    finally:
        hook.remove()


def adaptives(*parts: object) -> list[Adaptive]:
    """Return what adapts these parts of a model, in their order; nothing of parts that are trained as ever."""
    found = [getattr(part, "adaptive", None) for part in parts]
    return [one for one in found if isinstance(one, Adaptive)]


def answered_share(front: object) -> float:
    """Return the share of mini-batches from which a front in training learns: all where its blocks have no budgets."""
    return next((one.numbers.share for one in adaptives(front)), 1.0)


def budgets_of(found: Sequence[Adaptive]) -> dict[str, Tensor]:
    """Return the states of what adapts some parts, each under its side's name."""
    return {f"{one.side}/{name}": tensor for one in found for name, tensor in one.state_dict().items()}


def give_budgets(state: Mapping[str, Tensor], found: Sequence[Adaptive]) -> None:
    """Give what adapts some parts the states that `budgets_of` returned; without them they begin anew."""
    for one in found:
        mine = f"{one.side}/"
        one.load_state_dict({name.removeprefix(mine): t for name, t in state.items() if name.startswith(mine)})
