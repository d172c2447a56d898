"""The settings of optimisers and learning-rate schedules, and how one side trains. Nothing heavy is imported here:
methods import torch, so that a scenario is read without it."""

import math
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from splitfed.config import Config, kind_shorthand

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Adam(Config):
    """Adam (arXiv 1412.6980), or AdamW."""

    kind: Literal["adam"] = "adam"
    lr: PositiveFloat = 1e-4
    """Learning rate, which the schedule multiplies."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the mean of the gradients from one step to the next."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the mean of their squares."""
    decoupled: bool = False
    """Whether weight decay does not pass through the moments, which makes it AdamW."""

    @property
    def moments(self) -> int:
        """How many numbers it keeps of each parameter from one step to the next."""
        return 2

    def build(self, parameters: "list[dict[str, Any]]", weight_decay: float) -> "Optimizer":
        """Return the optimiser of these groups of parameters."""
        import torch

        kind = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        # Fused: one pass over each tensor, three to four times as fast as foreach on a CPU.
        return kind(parameters, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=weight_decay, fused=True)


class Sgd(Config):
    """Stochastic gradient descent with optional momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 1e-2
    """Learning rate, which the schedule multiplies."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Share of the last step's direction that a step goes on with; 0 is none."""
    nesterov: bool = False
    """Whether momentum is Nesterov's."""

    @property
    def moments(self) -> int:
        """How many numbers it keeps of each parameter from one step to the next."""
        return 1 if self.momentum else 0

    def build(self, parameters: "list[dict[str, Any]]", weight_decay: float) -> "Optimizer":
        """Return the optimiser of these groups of parameters."""
        import torch

        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=weight_decay,
            fused=True,
        )  # fmt: skip


OptimiserConfig = Annotated[Adam | Sgd, Field(discriminator="kind"), kind_shorthand]


def _begin_late(optimiser: "Optimizer") -> None:
    """Give parameters whose first gradient comes after that of others a momentum of zeros, which is what they have:
    torch's fused SGD takes those of all that learn, or of none."""
    import torch

    for group in optimiser.param_groups:
        if not group.get("momentum"):
            continue
        learn = [one for one in group["params"] if one.grad is not None]
        late = [one for one in learn if optimiser.state.get(one, {}).get("momentum_buffer") is None]
        for one in late if len(late) < len(learn) else ():
            optimiser.state[one]["momentum_buffer"] = torch.zeros_like(one)


class Constant(Config):
    """The same learning rate in every round, after an optional linear warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_rounds: int = Field(0, ge=0)
    """Rounds in which the learning rate rises to its full height; 0 is none."""

    def factor(self, round: int, rounds: int) -> float:
        """Return what the learning rate is multiplied with in this round, counted from 1."""
        return min(1.0, round / (self.warmup_rounds + 1))


class Cosine(Config):
    """Half a cosine over the scenario's rounds, down to `final` times the learning rate in the last one."""

    kind: Literal["cosine"] = "cosine"
    warmup_rounds: int = Field(0, ge=0)
    """Rounds in which the learning rate rises to its full height, before the cosine begins; 0 is none."""
    final: NonNegativeFloat = 0.0
    """What the learning rate is multiplied with in the last round."""

    def factor(self, round: int, rounds: int) -> float:
        """Return what the learning rate is multiplied with in this round, counted from 1."""
        if round <= self.warmup_rounds:
            return round / (self.warmup_rounds + 1)
        share = (round - self.warmup_rounds - 1) / max(1, rounds - self.warmup_rounds - 1)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, share))) / 2


ScheduleConfig = Annotated[Constant | Cosine, Field(discriminator="kind"), kind_shorthand]


class SideConfig(Config):
    """How one side, client or server, trains what it holds."""

    device: str = "auto"
    """Device of torch that it trains on, such as `cpu` or `cuda:1`; `auto` is CUDA, then Apple's GPU, then the CPU."""
    optimiser: OptimiserConfig = Adam()
    """What makes a step of a gradient."""
    schedule: ScheduleConfig = Constant()
    """How the learning rate changes over the rounds."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of all that it trains; 0 is none."""
    clip: PositiveFloat | None = None
    """Norm of the gradient over all that it holds, at most; null does not bound it. Exits from which the model learns
    nothing (`disjoint`) are measured by themselves."""
    compile: bool = False
    """Whether torch compiles the blocks that it trains (`torch.compile`), which takes some half a minute as the run
    begins, and needs a compiler of C++, or Triton on a GPU. Numbers differ as another order of sums has it."""

    def optimiser_for(self, module: "nn.Module", head_lr: float | None = None) -> "Optimizer":
        """Build the optimiser of all trained parameters of a module; there may be none. With `head_lr` its classifiers
        have groups of their own, whose `times` says how many times the rate of the rest is theirs; parameters keep
        their order, by which moments are numbered."""
        trained = [p for p in module.parameters() if p.requires_grad]
        if head_lr is None:
            return self.optimiser.build([{"params": trained}], self.weight_decay)
        from splitfed.model.exits.heads import classifiers

        heads = {id(parameter) for parameter in classifiers(module)}
        groups = [
            {"params": list(group), "times": head_lr / self.optimiser.lr if of_head else 1.0}
            for of_head, group in groupby(trained, lambda parameter: id(parameter) in heads)
        ]
        return self.optimiser.build(groups or [{"params": []}], self.weight_decay)

    def lr(self, round: int, rounds: int) -> float:
        """Return the learning rate of a round, counted from 1."""
        return self.optimiser.lr * self.schedule.factor(round, rounds)

    def step(self, optimiser: "Optimizer", module: "nn.Module") -> None:
        """Clip where asked, update, and clear the gradients."""
        if self.clip is not None:
            from torch.nn.utils import clip_grad_norm_

            from splitfed.model.exits.heads import clipped_together

            for parameters in clipped_together(module):
                clip_grad_norm_(parameters, self.clip)
        _begin_late(optimiser)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


class FraugConfig(Config):
    """Features that are made up at a client beside those of its images, so that the head that it holds sees more than
    one client's look (FRAug, arXiv 2205.14900).

    A generator, which all clients have in common, crosses and is averaged with the rest; a net and the mean features of
    each class are the client's own. The share of the head's loss that is on what is made up is
    exp(`growth` (round - rounds)), and a half at most.
    """

    lr: PositiveFloat = 0.05
    """Learning rate of generator and net, by gradient descent with momentum 0.5."""
    growth: PositiveFloat = 0.01
    """How fast the share comes to a half."""
    apart: NonNegativeFloat = 1.0
    """How much it weighs in the generator's loss that what it makes is far from the mean of its class, by the squared
    distance."""
    near: NonNegativeFloat = 1.0
    """How much it weighs in the net's loss that what it changes is near to what it was, by the squared distance; else
    it makes the head as unsure as it can."""


class ClientSide(SideConfig):
    """How a client trains what it holds."""

    fraug: FraugConfig | None = None
    """Features that are made up beside those of its images, `{}` for those of FRAug, for the head that a client holds:
    that of the tail where labels are private, of the whole model with `fl`, or of the exit after the last of the
    front's blocks that has one. Null makes none."""

    checkpointing: bool = False
    """Whether the front's blocks are computed again on the way back, instead of keeping what they have computed: of a
    mini-batch stay what goes into each block, and what one block saves at a time. It takes the front's forward pass
    once more, and changes no number. What is beside the front, a tail or with `fl` the back, keeps all."""
    chunk: PositiveInt | None = None
    """How many images of a mini-batch are computed at a time, so that a small memory trains a large mini-batch: what
    crosses is still one frame of the whole of it. The front keeps only what it made, and computes each chunk again when
    the gradient is there, which takes its forward pass once more; a tail, or with `fl` the whole model, sums gradients
    chunk by chunk. Weights come out the same but for the order in which floats are summed, and dropout draws for each
    chunk. It is `training.batch_size` at most. A client's own machine may say otherwise (`splitfed join --chunk`). Null
    is all at once."""
