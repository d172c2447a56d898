"""The way of a mini-batch past the exits: who has been answered, and who goes on."""

import torch
from torch import Tensor

from splitfed.inference.deciding import Rule, confidence
from splitfed.model.exits.heads import Exits


class Way:
    """Follows a mini-batch of images from block to block. `rows` int64 `[k]` are the places of those that go on,
    `exits` the block after which each was answered, None so far. `before` `[B]` is how sure of them the last exit was
    on their way here; None where there was none."""

    def __init__(
        self, exits: Exits | None, rule: Rule, images: int, device: torch.device, before: Tensor | None = None
    ) -> None:  # fmt: skip
        self.rows = torch.arange(images, device=device)
        self.exits: list[int | None] = [None] * images
        self._exits, self._rule = exits, rule
        self._logits: list[Tensor] = []
        self._before = before
        self._given_up = torch.zeros(images, dtype=torch.bool, device=device)

    def passes(self, block: int, tokens: Tensor) -> tuple[Tensor, Tensor] | None:
        """Tell which of those that go on, `[k]` bool, are answered after a block by what it made, `[k, n, D]`, and what
        its exit says of all, `[k, C]`, whose softmax is the answer; None where no exit follows the block."""
        if self._exits is None or block not in self._exits.blocks:
            return None
        place, before = len(self._logits), self._logits[-1] if self._logits else None
        self._logits.append(self._exits.head(place, self._exits.look(tokens), before))
        said = self._exits.say(place, self._logits)
        now = confidence(said.softmax(-1), self._rule.measure)
        answered, sent = self._rule.stops(now, self._before)
        answered &= ~self._given_up
        self._given_up |= sent & ~answered
        self._before = now
        return answered, said

    @property
    def before(self) -> Tensor | None:
        """How sure the last exit was of those that go on, `[k]`; None where they came to none."""
        return self._before

    @property
    def given_up(self) -> Tensor:
        """Which of those that go on no exit answers any more, as their confidence hardly rises: bool `[k]`."""
        return self._given_up

    def leave(self, gone: Tensor, tokens: Tensor, block: int | None) -> Tensor:
        """Let those go who were answered after a block, or with None are sent on; return what it made of the others."""
        for row in self.rows[gone].tolist():
            self.exits[row] = block
        self.rows, self._given_up = self.rows[~gone], self._given_up[~gone]
        self._logits = [one[~gone] for one in self._logits]
        self._before = None if self._before is None else self._before[~gone]
        return tokens[~gone]
