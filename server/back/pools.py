"""Who owns the back while clients train: one pool for each federation mode.

A pool hands a client a `Trainer` (back and optimiser) for its round, takes it back with `commit`, or with `drop` when
the client was lost, and settles the round in `close_round`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from splitfed.errors import Diverged
from splitfed.model.adaptive.alast import adaptives, budgets_of, give_budgets
from splitfed.model.optim import OptimiserState, flatten, read_optimiser, set_lr, unflatten, write_optimiser
from splitfed.model.optim_settings import SideConfig
from splitfed.model.parts import Back, block_of
from splitfed.split.bounds import check_number, most_norm
from splitfed.split.computing.compiled import copied

# Tells how many blocks a client's front has.
Fronts = Callable[[int], int]


class Trainer:
    """A back with its optimiser. Where `fronts` differ a client's mini-batches enter it after as many blocks as its
    front has; without them all enter at its first. `head_lr` is the rate of the head and of exits, None that of the
    rest."""

    def __init__(
        self, back: nn.Module, side: SideConfig, fronts: Fronts | None = None, head_lr: float | None = None
    ) -> None:
        self.back, self.side, self.fronts, self.head_lr = back, side, fronts, head_lr
        self.optimiser = side.optimiser_for(back, head_lr)
        self._behind: dict[int, nn.Module] = {}  # what follows fronts of so many blocks

    def copy(self) -> "Trainer":
        """Return one with a copy of the back, and an optimiser that begins anew."""
        return Trainer(copied(self.back), self.side, self.fronts, self.head_lr)

    def enters(self, client: int) -> int | None:
        """Return after how many blocks a client's mini-batches enter; None where all enter at the first."""
        return None if self.fronts is None else self.fronts(client)

    def behind(self, client: int) -> nn.Module:
        """Return what of the back follows a client's front, in training where the back is."""
        if (cut := self.enters(client)) is None:
            return self.back
        if cut not in self._behind:
            assert isinstance(self.back, Back)
            self._behind[cut] = self.back.since(cut)
        return self._behind[cut].train(self.back.training)  # its blocks are the back's, and know; it does not

    def passed(self, client: int) -> dict[str, Tensor]:
        """Return what a client's mini-batches go through: of the back as `back/<name>`, of its blocks' budgets as
        `budgets/<name>`, and of its optimiser's state as `optimiser/<parameter number>/<moment>`."""
        skipped = set[str]()
        if (cut := self.enters(client)) is not None:
            blocks = {name: block_of(name) for name in self.back.state_dict()}
            skipped = {name for name, block in blocks.items() if block is not None and block <= cut}
        learned = [name for name, parameter in self.back.named_parameters() if parameter.requires_grad]
        state = {
            number: one for number, one in read_optimiser(self.optimiser).items() if learned[number] not in skipped
        }
        found = {f"back/{name}": one for name, one in self.back.state_dict().items() if name not in skipped}
        found |= {f"budgets/{name}": one for name, one in self.budgets().items()}
        return found | {f"optimiser/{name}": one for name, one in flatten(state).items()}

    def check(self, where: object, sent: Sequence[Tensor]) -> None:
        """Raise Diverged, and drop the gradients that were accumulated, where these and those of what was `sent` are
        not finite, or absurd and not to be clipped."""
        gradients = [one.grad for one in (*self.back.parameters(), *sent) if one.grad is not None]
        norm = float(get_total_norm(gradients))
        try:
            check_number("the norm of the gradient", norm, where, most_norm(self.side.clip))
        except Diverged:
            self.clear()
            raise

    def clear(self) -> None:
        """Drop the gradients that were accumulated."""
        self.optimiser.zero_grad(set_to_none=True)

    def update(self) -> None:
        """Apply the gradients that were accumulated, and have the blocks' budgets move, if they have any."""
        self.side.step(self.optimiser, self.back)
        for one in adaptives(self.back):
            one.commit()

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the optimiser's state, each tensor under `<parameter number>/<moment>`."""
        return flatten(read_optimiser(self.optimiser))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over an optimiser's state, by copy; the back's weights are the model's."""
        write_optimiser(self.optimiser, unflatten(state))

    def load(self, weights: dict[str, Tensor], state: OptimiserState, budgets: dict[str, Tensor]) -> None:
        """Take over weights, optimiser state and what `budgets` returned, by copy."""
        self.back.load_state_dict(weights)
        write_optimiser(self.optimiser, state)
        give_budgets(budgets, adaptives(self.back))

    def budgets(self) -> dict[str, Tensor]:
        """Return the budgets of the back's blocks; nothing where they have none."""
        return budgets_of(adaptives(self.back))


class BackPool(ABC):
    """The back of a run; `trainer` holds what the last finished round left. Not safe to call from two threads at once.

    `one_at_a_time` says that clients train the same weights, so that no two of their steps may overlap; `together`,
    that the mini-batches of several make one step.
    """

    one_at_a_time = False
    together = False

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @abstractmethod
    def open(self, client: int) -> Trainer:
        """Hand out what a client trains in this round."""

    @abstractmethod
    def commit(self, client: int, trainer: Trainer, examples: int) -> None:
        """Take back what a client trained on `examples` images."""

    @abstractmethod
    def drop(self, client: int, trainer: Trainer | None) -> None:
        """Take back what a lost client trained; None from one that never began."""

    @abstractmethod
    def close_round(self) -> None:
        """End a round, so that `trainer` holds its outcome."""

    def open_round(self, lr: float, clients: Sequence[int]) -> None:
        """Begin a round of these clients at this learning rate."""
        set_lr(self.trainer.optimiser, lr)


class Shared(BackPool):
    """One back, updated client by client (`sl`, `sfl-v2`); what a lost client taught it stays."""

    one_at_a_time = True

    def open(self, client: int) -> Trainer:
        """Hand out the one back."""
        return self.trainer

    def commit(self, client: int, trainer: Trainer, examples: int) -> None:
        """Nothing to settle: the back has what the client taught it."""

    def drop(self, client: int, trainer: Trainer | None) -> None:
        """Nothing to undo."""

    def close_round(self) -> None:
        """Nothing to settle."""


class Together(Shared):
    """One back, updated once for each step of all clients (`psl`); what a lost client taught it stays."""

    together = True


class PerClient(BackPool):
    """A copy of the back for each client, averaged at the round's end by the clients' examples (`sfl-v1`): each block
    over those whose mini-batches went through it.

    Copies are summed in float64 in the clients' order, whoever finishes first: one that comes early waits for those
    before it. So memory holds one sum, and as many copies as clients train at once or wait.
    Optimiser state follows the weights: every client starts from the round's common moments, and moments and step
    counts are averaged as weights are, and so are the budgets of blocks. A lost client's copy is not counted.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._free: list[Trainer] = []
        self._sum: dict[str, Tensor] = {}
        self._examples: dict[str, int] = {}
        self._lr = 0.0
        self._order: list[int] = []
        self._settled: dict[int, tuple[Trainer, int] | None] = {}

    def open_round(self, lr: float, clients: Sequence[int]) -> None:
        """Begin a round of these clients at this learning rate."""
        super().open_round(lr, clients)
        self._lr, self._sum, self._examples = lr, {}, {}
        self._order, self._settled = list(clients), {}

    def open(self, client: int) -> Trainer:
        """Hand out a copy of what the last round left."""
        common = self.trainer
        copy = self._free.pop() if self._free else common.copy()
        copy.load(common.back.state_dict(), read_optimiser(common.optimiser), common.budgets())
        set_lr(copy.optimiser, self._lr)
        return copy

    def commit(self, client: int, trainer: Trainer, examples: int) -> None:
        """Add a copy to the round's sum, once all before it are settled."""
        self._settled[client] = trainer, examples
        self._advance()

    def drop(self, client: int, trainer: Trainer | None) -> None:
        """Forget a lost client's copy."""
        self._settled[client] = None
        if trainer is not None:
            self._free.append(trainer)
        self._advance()

    def _advance(self) -> None:
        while self._order and self._order[0] in self._settled:
            client = self._order.pop(0)
            if (settled := self._settled.pop(client)) is not None:
                self._add(client, *settled)

    def _add(self, client: int, trainer: Trainer, examples: int) -> None:
        for name, tensor in trainer.passed(client).items():
            # Sums bear the float64 that the device may lack, and must not depend on its order of addition.
            share = tensor.detach().cpu().double() * examples
            self._sum[name] = self._sum[name].add_(share) if name in self._sum else share
            self._examples[name] = self._examples.get(name, 0) + examples
        self._free.append(trainer)

    def close_round(self) -> None:
        """Put the average in place; where every client was lost, or no round is open, nothing changes."""
        for client in list(self._order):  # whoever was never settled is lost
            self._settled.setdefault(client, None)
        self._advance()
        if not self._examples:
            return
        means = {name: total / self._examples[name] for name, total in self._sum.items()}
        weights, moments, budgets = (
            {name.removeprefix(part): mean for name, mean in means.items() if name.startswith(part)}
            for part in ("back/", "optimiser/", "budgets/")
        )
        weights, moments = ({name: mean.float() for name, mean in one.items()} for one in (weights, moments))
        if self.trainer.fronts is not None:  # what nobody's mini-batches have gone through stays as it was
            weights = self.trainer.back.state_dict() | weights
            moments = self.trainer.state_dict() | moments
        self.trainer.load(weights, unflatten(moments), budgets)
        self._sum, self._examples = {}, {}


POOLS: dict[str, type[BackPool]] = {"sl": Shared, "sfl-v1": PerClient, "sfl-v2": Shared, "psl": Together}
