"""A split server with one round open, and the client's own means to talk to it."""

from types import SimpleNamespace

import torch
from helpers import small

from splitfed.compression.reducers.base import View
from splitfed.model.build import build, split
from splitfed.run.ledger import Ledger, read_rows
from splitfed.seeds import Key
from splitfed.server.back.pools import Shared, Trainer
from splitfed.server.back.server import SplitServer
from splitfed.split.cut import Cut
from splitfed.split.evaluation import EvaluationCut
from splitfed.wire.frame import Place, pack

KEY = Key(0)


class Door:
    """A split server with one round open for client 4, and the client's own means to talk to it."""

    def __init__(self, folder, *overrides: str, reducer=None, pool=Shared, clients=(4,), **how) -> None:
        scenario = small(*overrides)
        compression = scenario.compression
        if reducer is not None:
            compression = compression.model_copy(update={"reducer": SimpleNamespace(build=lambda: reducer)})
        self.front, back = split(build(scenario.model, 10, key=KEY), 1)
        self.cut = Cut(compression, self.front.geometry(16, 10), torch.device("cpu"))
        self.pool = pool(Trainer(back.train(), scenario.training.server))
        self.ledger = Ledger(folder, 1)
        self.now = 0.0
        self.looks = EvaluationCut(self.cut, self.front.encoder)
        self.server = SplitServer(
            self.pool, self.cut, self.ledger, KEY, "float32", clock=lambda: self.now, evaluation_cut=self.looks, **how
        )  # fmt: skip
        self.server.start_round(2, 1e-3, {client: 100 + client for client in clients})
        self.session = self.server.open(clients[0], 2)

    def frame(self, step: int = 1, *, examples: int = 6, labels=None, client: int = 4, round: int = 2, claim=None):
        """Return a mini-batch as a client packs it, with what it packed."""
        activations = self.front(torch.rand(examples, 3, 8, 8, generator=KEY.at(step).generator()))
        attention = torch.rand(examples, self.cut.geometry.tokens, generator=KEY.generator())
        plan = self.cut.reducer.plan(View(activations.detach(), 1, lambda: attention), KEY)
        smashed = plan.reduce(activations)
        targets = plan.targets(torch.arange(examples) % 10 if labels is None else labels, 10)
        packed = self.cut.pack_step(
            plan, smashed, targets, examples if claim is None else claim, KEY, Place(round, client, step)
        )  # fmt: skip
        return packed, smashed, targets


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.back.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())


def wasted(folder) -> list[tuple]:
    return [(row.step, row.client, row.direction, row.role, row.sizes.sent) for row in read_rows(folder / "wasted.csv")]


def train(door, stream, client: int, steps: int = 4, ahead: int = 0) -> None:
    """Do what a client does for its round that is so many mini-batches `ahead`; the stream must be open."""
    up = down = 0
    under_way = []
    for step in range(1, steps + ahead + 1):
        if step <= steps:
            packed, smashed, _ = door.frame(step, client=client, examples=6 + client % 5)
            stream.send(packed.buffer)
            under_way.append(smashed)
            up += packed.total
        if step > ahead:
            reply = stream.receive()
            assert door.cut.unpack_gradient(reply, under_way.pop(0)).step == step - ahead
            down += len(reply)
    stream.exchange(pack("end", 2, client, steps + 1, {}, {"up": up, "down": down}).buffer)


def rows(door) -> list[str]:
    door.ledger.commit()
    return (door.ledger.folder / "ledger.csv").read_text().splitlines()
