"""Clients whose fronts have different numbers of blocks: against plain PyTorch on the unsplit model."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import ADC, BASE, DEEPER, PLAIN, small, table
from models import newest
from outcomes import outcome
from torch import Tensor, nn

from splitfed import Scenario, estimate, simulate
from splitfed.clients.images import hold
from splitfed.clients.settings import Settings
from splitfed.data.batches import Batch, batches
from splitfed.data.dataset import load
from splitfed.errors import ScenarioError
from splitfed.model.build import build, pixel_stats
from splitfed.model.parts import Front
from splitfed.reports.costs.text import text
from splitfed.run.ledger import Ledger
from splitfed.seeds import Key
from splitfed.server.back.pools import Trainer
from splitfed.split.assembly import assemble
from splitfed.split.mistakes import of_the_model

CUTS = {"phone": 1, "tablet": 2, "hospital": 3}
PROFILES = "federation.profiles={phone: {share: 0.34, cut: 1}, tablet: {share: 0.33}, hospital: {share: 0.33, cut: 3}}"
# Blocks 2 and 3 are in some fronts and in the back, and each client weighs as many images more as the one before it.
UNEVEN = [*DEEPER, PROFILES, "data.partition=linear", "training.batch_size=8"]
FEW = ["federation.local_epochs=null", "federation.local_steps=2"]
# With Adam a gradient that is nothing but rounding would be as good as any.
SGD = [
    f"training.{side}.optimiser={{kind: sgd, lr: {lr}, momentum: 0.5}}"
    for side, lr in (("client", 0.1), ("server", 0.2))
]


class Slow:
    """The rounds of a scenario on whole models: each client has a model of its own, and trains its first blocks,
    and the server one, and trains the rest."""

    def __init__(self, plan: Scenario) -> None:
        torch.set_num_threads(1)
        self.plan, self.key = plan, Key(plan.seed)
        size, clients = plan.model.image_size, plan.federation.clients
        self.data = load(plan.data, size, clients, self.key.at("data"))
        self.cuts = [CUTS[profile] for profile in plan.dealt_profiles()]
        self.images = [len(rows) for rows in self.data.partitions]
        self.served = build(plan.model, len(self.data.classes), key=self.key.at("model")).train()
        self.front = {name: one.clone() for name, one in self.served.state_dict().items()}
        self.server = self.optimiser(self.served, lambda block: block > min(self.cuts), plan.training.server)

    @staticmethod
    def optimiser(vit, chosen, side) -> torch.optim.Optimizer:
        return side.optimiser.build([one for name, one in vit.named_parameters() if chosen(block(name))], 0.0)

    def batches(self, round: int, client: int) -> Iterator[Batch]:
        mean, std = pixel_stats(self.plan.model)
        return batches(
            self.data.train, self.data.partitions[client], self.plan.training.batch_size,
            self.key.at("batches", round, client), mean=mean, std=std, steps=self.plan.federation.local_steps,
        )  # fmt: skip

    def client(self, number: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        own = deepcopy(self.served)
        own.load_state_dict(self.front)
        return own, self.optimiser(own, lambda block: block <= self.cuts[number], self.plan.training.client)

    def loss(self, own, served, cut: int, batch: Batch) -> Tensor:
        x = own._pos_embed(own.patch_embed(batch.images))  # timm has no public name for it
        for one in (*own.blocks[:cut], *served.blocks[cut:]):
            x = one(x)
        return nn.functional.cross_entropy(served.forward_head(served.norm(x)), batch.labels)

    def round(self, number: int) -> None:
        clients = range(len(self.cuts))
        owns = [self.client(client) for client in clients]
        of_servers = {"sfl-v1": self.apart, "sfl-v2": self.in_turn, "psl": self.together}[self.plan.federation.mode](
            number, owns
        )
        for name, tensor in self.served.state_dict().items():
            at, total = block(name), torch.zeros_like(tensor, dtype=torch.float64)
            for client in clients:
                trained = owns[client][0] if at <= self.cuts[client] else of_servers[client]
                total += self.images[client] * trained.state_dict()[name].double()
            self.front[name] = (total / sum(self.images)).float()
        self.served.load_state_dict(self.front)

    def in_turn(self, number: int, owns) -> list[nn.Module]:
        order = torch.randperm(len(owns), generator=self.key.at("cohort", number).generator()).tolist()
        for client in order:
            self.train(number, client, *owns[client], self.served, self.server)
        return [self.served] * len(owns)

    def train(self, number: int, client: int, own, optimiser, served, server) -> None:
        for batch in self.batches(number, client):
            self.loss(own, served, self.cuts[client], batch).backward()
            for one in (optimiser, server):
                one.step()
                one.zero_grad()

    def apart(self, number: int, owns) -> list[nn.Module]:
        copies = [deepcopy((self.served, self.server)) for _ in owns]
        for client, (served, server) in enumerate(copies):
            self.train(number, client, *owns[client], served, server)
        for parameter, *others in zip(*(learned(server) for _, server in [(0, self.server), *copies]), strict=True):
            at = next(block(name) for name, one in self.served.named_parameters() if one is parameter)
            passing = [client for client, cut in enumerate(self.cuts) if cut < at]
            weight, moments = sum(self.images[client] for client in passing), {}
            for client in passing:
                for name, value in copies[client][1].state[others[client]].items():
                    share = value.double() * self.images[client] / weight
                    moments[name] = moments.get(name, 0) + share
            self.server.state[parameter] = {name: value.float() for name, value in moments.items()}
        return [served for served, _ in copies]

    def together(self, number: int, owns) -> list[nn.Module]:
        for joined in zip(*(self.batches(number, client) for client in range(len(owns))), strict=True):
            everyone = sum(len(batch.labels) for batch in joined)
            for client, batch in enumerate(joined):
                share = len(batch.labels) / everyone
                (self.loss(owns[client][0], self.served, self.cuts[client], batch) * share).backward()
                for parameter in learned(owns[client][1]):
                    parameter.grad /= share  # a front learns from its own mean loss
                owns[client][1].step()
                owns[client][1].zero_grad()
            self.server.step()
            self.server.zero_grad()
        return [self.served] * len(owns)


def block(name: str) -> int:
    """Return the number of a tensor's block, from 1 on: what comes before them is 0, what comes after 99."""
    if name.startswith("blocks."):
        return 1 + int(name.split(".")[1])
    return 0 if name.startswith(("cls_token", "pos_embed", "patch_embed")) else 99


def learned(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return optimiser.param_groups[0]["params"]


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2", "psl"])
def test_rounds_are_those_of_a_slow_loop(mode: str, tmp_path: Path) -> None:
    plan = small(*PLAIN, *UNEVEN, *FEW, *SGD, f"federation.mode={mode}")
    slow = Slow(plan)
    assert sorted(slow.cuts) == [1, 2, 3]
    assert len(set(slow.images)) == 3
    begun = dict(slow.front)
    for number in (1, 2):
        slow.round(number)
    found = newest(simulate(plan, runs=tmp_path).folder)
    for name, tensor in slow.front.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-6, rtol=0, msg=name)
        # The tolerance is far below what rounds have changed.
        assert (tensor - begun[name]).abs().max() > 4e-5, name


@pytest.mark.parametrize("mode", ["sfl-v1", "psl"])
def test_equal_cuts_change_no_bit(mode: str, tmp_path: Path) -> None:
    plain = "federation.profiles={phone: {share: 0.34}, tablet: {share: 0.66}}"
    told = plain.replace("0.34}", "0.34, cut: 2}").replace("0.66}", "0.66, cut: 2}")
    plans = [small(*ADC, *DEEPER, *FEW, profiles, f"federation.mode={mode}") for profiles in (plain, told)]
    one, other = (outcome(simulate(plan, runs=tmp_path / str(n)).folder) for n, plan in enumerate(plans))
    assert one == other


def test_what_crosses_is_of_each_clients_own_front(tmp_path: Path) -> None:
    """As it was foretold, to the byte, in training and where clients evaluate."""
    plan = small(*PLAIN, *UNEVEN, *FEW, "federation.mode=psl", "evaluation.held_out=0.2", "federation.rounds=1")
    told, folder, held = estimate(plan), simulate(plan, runs=tmp_path).folder, plan.dealt_profiles()
    assert text(told).startswith("small: vit_tiny_patch16_224 cut after block 1 (phone), 2 (tablet), 3 (hospital), ")
    rows = [row for row in table(folder / "ledger.csv") if row["role"] == "front_weights"]
    up = {held[int(row["client"])]: int(row["sent_bytes"]) for row in rows if row["direction"] == "up"}
    vit = build(plan.model, 10, key=Key(0))
    numbers = {name: sum(p.numel() for p in Front(vit, cut).parameters()) for name, cut in CUTS.items()}
    assert all(0 <= up[name] - 4 * numbers[name] < 200 for name in CUTS)
    assert told.round.select(role="front_weights").coded == sum(int(row["coded_bytes"]) for row in rows)
    memory, work = (
        [of(told.kinds[name]) for name in CUTS]
        for of in (lambda one: one.client.state, lambda one: one.operations.client)
    )
    for figures in (memory, work):
        assert figures == sorted(set(figures))


def test_an_interrupted_run_goes_on_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small(
        *ADC, *UNEVEN, *FEW, "federation.mode=sfl-v1", "training.client_state=keep", "federation.cohort=2",
        "federation.rounds=3", "training.ahead=1",
    )  # fmt: skip
    expected = outcome(simulate(plan, runs=tmp_path / "whole").folder)
    commit, calls = Ledger.commit, list[None]()

    def dying(self: Ledger) -> object:
        calls.append(None)
        if len(calls) == 3:  # round 0 comes first
            raise KeyboardInterrupt
        return commit(self)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", dying)
        with pytest.raises(KeyboardInterrupt):
            simulate(plan, runs=tmp_path / "killed")
    (folder,) = (tmp_path / "killed").iterdir()
    simulate(resume=folder)
    assert outcome(folder) == expected


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("federation.mode=sl", "federation.profiles: fronts have 1 to 3 blocks, and with sl one front is handed on"),
        ("federation.strategy=FedMedian", "federation.strategy: FedMedian: fronts have 1 to 3 blocks"),
        ("compression.front_weights.delta=true", "compression.front_weights.delta: fronts have 1 to 3 blocks"),
        ("phases=[{kind: gradient, rounds: 1}, frozen]", "phases: fronts have 1 to 3 blocks, and in a frozen phase"),
        ("model.adapter=norms", "model.adapter: norms: fronts have 1 to 3 blocks"),
        ("compression.reducer={kind: bottleneck, width: 4}", "compression.reducer: bottleneck: its layers learn"),
        ("federation.labels=private", "federation.profiles.hospital.cut: is 3 and the tail has 1 block"),
        (
            "federation.profiles.hospital.cut=5",
            "federation.profiles.hospital.cut: is 5, but the model has blocks 1 to 4",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(more: str, problem: str) -> None:
    with pytest.raises(ScenarioError) as error:
        Scenario.parse(BASE, overrides=[*UNEVEN, more], also=[of_the_model])
    (found,) = error.value.problems
    assert problem in found


DROPOUT = "model.args={patch_size: 4, embed_dim: 16, depth: 4, num_heads: 2, proj_drop_rate: 0.3, drop_rate: 0.3}"


@pytest.mark.parametrize("asked_first", [True, False], ids=["in training", "in evaluation"])
def test_what_follows_a_front_trains_and_evaluates_with_the_back(asked_first: bool) -> None:
    """However it was when it was first asked for, and whoever asked."""
    plan = small(*UNEVEN, DROPOUT)
    back = assemble(plan, 10, cuts=plan.cuts).back.train(asked_first)
    trainer, inputs = Trainer(back, plan.training.server, lambda client: 1 + client), torch.rand(4, 5, 16)
    follows = [trainer.behind(client) for client in range(3)]
    assert follows[0] is back
    for training in (asked_first, not asked_first, asked_first):
        back.train(training)
        for client, known in enumerate(follows):
            one = trainer.behind(client)
            assert one is known
            assert {module.training for module in one.modules()} == {training}
            assert one(inputs).equal(one(inputs)) != training  # dropout draws


def test_clients_evaluate_without_dropout_between_rounds_that_train_with_it(tmp_path: Path) -> None:
    """What each finds is what the model of the checkpoint, cut as its own, says of the images that it holds out."""
    plan = small(*UNEVEN, DROPOUT, "evaluation.held_out=0.25", "federation.rounds=2", *PLAIN)
    folder = simulate(plan, runs=tmp_path).folder
    parts, weights = assemble(plan, 10, cuts=plan.cuts), newest(folder)
    for part in parts:
        part.load_state_dict({name: weights[name] for name in part.state_dict()})
        part.eval()
    mean, std = pixel_stats(plan.model)
    told = [row for row in table(folder / "clients.csv") if row["round"] == "2"]
    assert len(told) == 3
    for client, row in enumerate(told):
        held = hold(plan, Settings(client), ())
        rows = held.held_out(client)
        (batch,) = batches(held.images, rows, len(rows), Key(0), epochs=1, shuffle=False, mean=mean, std=std)
        with torch.no_grad():
            logits = parts.at(CUTS[plan.dealt_profiles()[client]]).whole()(batch.images)
        assert float(row["loss"]) == pytest.approx(float(nn.functional.cross_entropy(logits, batch.labels)), rel=1e-4)
