"""The model of a run as it answers: whole, and block by block, so that an answer may end or move on after each."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from splitfed.errors import RunError
from splitfed.model.build import pixel_stats
from splitfed.model.forward import autocast
from splitfed.model.optim import pick_device
from splitfed.model.parts import Parts, Tail
from splitfed.run.checkpoint import Checkpoints
from splitfed.run.folder import stored_scenario
from splitfed.run.origin import load_data
from splitfed.scenario import Scenario
from splitfed.split.assembly import assemble


@dataclass(frozen=True)
class RunModel:
    """What a run has learnt after a `round`, on a device and in evaluation: the model in its `parts`, with `classes`
    the names of its outputs, `mean` and `std` those of the pixels that it takes."""

    folder: Path
    scenario: Scenario
    round: int
    parts: Parts
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    @classmethod
    def read(
        cls, run: str | Path, *, round: int | None = None, device: str | None = None,
        overrides: list[str] | None = None,
    ) -> Self:  # fmt: skip
        """Read the newest checkpoint of a run, or that after a `round`. Class names come from the run's own scenario;
        runs of earlier versions need their data for them.

        Raises a SplitfedError where there is no run or no checkpoint, and where this is not of the scenario's model.
        """
        folder = Path(run)
        stored_scenario(folder)
        scenario = Scenario.load(folder / "scenario.yaml", overrides)
        round, state = Checkpoints(folder).choose(round)
        known = scenario.data.fingerprint
        classes = list(known.classes) if known is not None else load_data(scenario).classes
        parts = assemble(scenario, len(classes), pretrained=False)
        for part in parts:
            try:
                part.load_state_dict({name: state[name] for name in part.state_dict()})
            except (KeyError, RuntimeError) as error:
                reason = f"no {error} in it" if isinstance(error, KeyError) else str(error).splitlines()[-1].strip()
                raise RunError(f"{folder}: its checkpoint does not fit the scenario's model: {reason}") from error
            part.eval().requires_grad_(False)
        where = pick_device(device or scenario.training.server.device)
        mean, std = pixel_stats(scenario.model)
        parts = parts.to(where, scenario.training.precision)
        return cls(folder, scenario, round, parts, classes, mean, std, where)

    @property
    def trunk(self) -> "Trunk":
        """The model block by block, in the precision that the run was evaluated in."""
        return Trunk(self.parts, lambda: autocast(self.scenario.training.precision, self.device))


class Trunk:
    """A model's parts as one row of blocks, numbered from 1: the first `cut` of them are the client's, and those up
    to `server` the server's. Taken one after the other they make what the whole model makes, to the last bit.
    `precision` is the context that they compute in. `budget` is the share of patch tokens that the gates of a front
    let through; None is what the run says."""

    budget: float | None = None

    def __init__(self, parts: Parts, precision: Callable[[], AbstractContextManager] = nullcontext) -> None:
        self.front, self.back, tail = parts
        self._precision = precision
        self.cut, self.server = len(self.front.blocks), len(self.front.blocks) + len(self.back.blocks)
        self.tail = tail if isinstance(tail, Tail) else None
        self._last = self.tail or self.back
        self._blocks: list[nn.Module] = [
            *self.front.blocks,
            *self.back.blocks,
            *(self.tail.blocks if self.tail else ()),
        ]
        self.gated = self.front.gates is not None
        self.prefix, self.width = self.front.num_prefix_tokens, self.front.embed_dim

    def __len__(self) -> int:
        return len(self._blocks)

    def at(self, budget: float | None) -> "Trunk":
        """Return the same blocks with another budget of the front's gates."""
        other = copy.copy(self)
        other.budget = budget
        return other

    def begin(self, images: Tensor) -> Tensor:
        """Turn images `[B, 3, S, S]` into the input of the first block, `[B, n, D]`."""
        front = self.front
        with self._precision():
            return front.norm_pre(front.patch_drop(front._pos_embed(front.patch_embed(images))))

    def block(self, number: int, tokens: Tensor) -> Tensor:
        """Run one block, `[B, k, D]` to `[B, k, D]`. Where gates close tokens of a front its blocks run together, when
        its last one is asked for."""
        with self._precision():
            if (gates := self.front.gates) is not None and number <= self.cut:
                return gates(tokens, list(self.front.blocks), self.budget) if number == self.cut else tokens
            block, here = self._blocks[number - 1], self._here(tokens) if number > self.cut else None
            # Nothing attends to rows that stand for no token, and they stay zeros, so that the next block knows them.
            return block(tokens) if here is None else block(tokens, attn_mask=here[:, None, None]) * here.unsqueeze(-1)

    def _here(self, tokens: Tensor) -> Tensor | None:
        """Tell which rows are tokens, bool `[B, k]`; None where all are."""
        if not self.back.ragged:
            return None
        here = tokens.ne(0).any(-1)
        here[:, : self.prefix] = True
        return None if bool(here.all()) else here

    def cross(self, tokens: Tensor) -> Tensor:
        """Take what the front made through a reducer's own layers."""
        with self._precision():
            return self.back.decoder(self.front.encoder(tokens))

    def go_on(self, after: int, tokens: Tensor, until: int | None = None) -> Tensor:
        """Run the blocks that follow number `after`, up to number `until` (the last), on what that made; what the last
        block of the front made has crossed by then."""
        for number in range(after + 1, (len(self) if until is None else until) + 1):
            tokens = self.block(number, tokens)
            if number == self.cut:
                tokens = self.cross(tokens)
        return tokens

    def end(self, tokens: Tensor) -> Tensor:
        """Turn what the last block made into logits `[B, classes]`."""
        with self._precision():
            here = self._here(tokens)
            if here is None or self._last.global_pool == "token":
                return self._last.forward_head(self._last.norm(tokens))
            own = [sample[rows].unsqueeze(0) for sample, rows in zip(tokens, here, strict=True)]
            return torch.cat([self._last.forward_head(self._last.norm(one)) for one in own])
