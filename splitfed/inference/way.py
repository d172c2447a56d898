"""The way of a mini-batch past the exits: who has been answered, and who goes on."""

import torch
from torch import Tensor

from splitfed.inference.deciding import Rule, confidence
from splitfed.model.exits.heads import Exits


class Way:
    """Follows a mini-batch of images from block to block. `rows` int64 `[k]` are the places of those that go on,
    `exits` the block after which each was answered, None so far."""

    def __init__(self, exits: Exits | None, rule: Rule, images: int, device: torch.device) -> None:
        self.rows = torch.arange(images, device=device)
        self.exits: list[int | None] = [None] * images
        self._exits, self._rule = exits, rule
        self._logits: list[Tensor] = []
        self._before: Tensor | None = None
        self._given_up = torch.zeros(images, dtype=torch.bool, device=device)

    def passes(self, block: int, tokens: Tensor) -> tuple[Tensor, Tensor] | None:
        """Tell which of those that go on, `[k]` bool, are answered after a block by what it made, `[k, n, D]`, and all
        probabilities there, `[k, C]`; None where no exit follows the block."""
        if self._exits is None or block not in self._exits.blocks:
            return None
        place, before = len(self._logits), self._logits[-1] if self._logits else None
        self._logits.append(self._exits.head(place, self._exits.look(tokens), before))
        probabilities = self._exits.answer(place, self._logits)
        now = confidence(probabilities, self._rule.measure)
        answered, sent = self._rule.stops(now, self._before)
        answered &= ~self._given_up
        self._given_up |= sent & ~answered
        self._before = now
        return answered, probabilities

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
