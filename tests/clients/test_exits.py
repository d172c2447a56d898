"""Exits that are trained with the model, in whole runs: against plain loops over the unsplit model, which know nothing
of a cut, and against runs without exits."""

from pathlib import Path

import pytest
import torch
from helpers import DEEPER, few, small, table
from models import newest
from outcomes import outcome
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from splitfed import Scenario, simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import FederatedData, load
from splitfed.model.build import build, pixel_stats
from splitfed.reports.costs.estimate import estimate
from splitfed.run.metrics import read_exits
from splitfed.run.observer import Observer
from splitfed.seeds import Key
from splitfed.split.assembly import assemble

SGD = [f"training.{side}.optimiser={{kind: sgd, lr: 0.05, momentum: 0.5}}" for side in ("client", "server")]
WHOLE = ["federation.mode=fl", "training.server={}"]


def scenario(exits: str, *overrides: str) -> Scenario:
    return small(*DEEPER, *SGD, f"model.exits={exits}", *overrides)


class Plain(nn.Module):
    """The unsplit model with its heads, as a plain PyTorch user would write them."""

    def __init__(self, plan: Scenario, classes: int) -> None:
        super().__init__()
        self.vit = build(plan.model, classes, key=Key(plan.seed).at("model")).train()
        settings = plan.model.exits
        assert settings is not None
        self.blocks, self.weight, self.after = settings.blocks, settings.weight, settings.after or 0
        self.cascade = settings.heads == "cascade"
        parts = assemble(plan, classes)
        made = {block: head for one in parts[:2] if one.exits for block, head in one.exits.outputs.items()}
        self.heads = nn.ModuleDict({name: made[name] for name in map(str, self.blocks)})

    def loss(self, images: Tensor, labels: Tensor, round: int) -> Tensor:
        seen: dict[int, Tensor] = {}
        hooks = [
            self.vit.blocks[block - 1].register_forward_hook(
                lambda _, __, made, block=block: seen.__setitem__(block, made)
            )
            for block in self.blocks
        ]
        loss = cross_entropy(self.vit(images), labels)
        for hook in hooks:
            hook.remove()
        said: Tensor | None = None
        for block in self.blocks if round > self.after else ():
            first, others = seen[block][:, 0], seen[block][:, 1:].mean(1)
            features = torch.cat([layer_norm(one, one.shape[-1:]) for one in (first, others)], 1)
            if self.cascade and said is not None:
                features = torch.cat([features, layer_norm(said.detach(), said.shape[-1:])], 1)
            said = self.heads[str(block)](features)
            loss = loss + self.weight * cross_entropy(said, labels)
        return loss

    def of_the_client(self, cut: int, whole: bool) -> dict[str, nn.Parameter]:
        begin = ("vit.cls_token", "vit.pos_embed", "vit.patch_embed", *(f"vit.blocks.{i}." for i in range(cut)))
        begin += tuple(f"heads.{block}." for block in range(1, cut + 1))
        return {name: one for name, one in self.named_parameters() if whole or name.startswith(begin)}

    def found(self) -> dict[str, Tensor]:
        state = self.state_dict()
        named = {name.removeprefix("vit."): one for name, one in state.items() if name.startswith("vit.")}
        heads = {name: one for name, one in state.items() if name.startswith("heads.")}
        return named | {name.replace("heads.", "exits.outputs."): one for name, one in heads.items()}


def opened(plan: Scenario) -> FederatedData:
    torch.set_num_threads(1)
    return load(plan.data, plan.model.image_size, plan.federation.clients, Key(plan.seed).at("data"))


def plain(plan: Scenario) -> dict[str, Tensor]:
    """One client after another, who hand on what they hold (`sl`), or have it averaged; one back, or none (`fl`)."""
    key, training, federation = Key(plan.seed), plan.training, plan.federation
    data, mode = opened(plan), federation.mode
    model = Plain(plan, len(data.classes))
    mean, std = pixel_stats(plan.model)
    held = model.of_the_client(plan.model.cut, mode == "fl")
    rest = [one for name, one in model.named_parameters() if name not in held]
    server = training.server.optimiser.build(rest, 0.0) if rest else None
    images = sum(len(rows) for rows in data.partitions)
    for number in range(1, federation.rounds + 1):
        start = {name: one.detach().clone() for name, one in held.items()}
        total = dict.fromkeys(held, torch.zeros((), dtype=torch.float64))
        for one in torch.randperm(federation.clients, generator=key.at("cohort", number).generator()).tolist():
            if mode != "sl":
                for name, parameter in held.items():
                    parameter.data.copy_(start[name])
            client = training.client.optimiser.build(list(held.values()), 0.0)
            for batch in batches(
                data.train, data.partitions[one], training.batch_size, key.at("batches", number, one), mean=mean,
                std=std, augment="none", epochs=1,
            ):  # fmt: skip
                model.loss(batch.images, batch.labels, number).backward()
                for optimiser in filter(None, (client, server)):
                    optimiser.step()
                    optimiser.zero_grad()
            for name, parameter in held.items():
                total[name] = total[name] + parameter.detach().double() * len(data.partitions[one]) / images
        if mode != "sl":
            for name, parameter in held.items():
                parameter.data.copy_(total[name])
    return model.found()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-6, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("exits", "overrides"),
    [
        ("{blocks: [1, 3], weight: 0.5}", ["federation.mode=sl"]),
        ("{blocks: [1, 2], heads: cascade, regime: mixed, after: 1}", ["data.partition={kind: dirichlet, alpha: 1.0}"]),
        ("{blocks: [2, 3]}", WHOLE),
    ],
    ids=["split learning", "averaged", "whole model"],
)
def test_the_model_learns_from_the_sum_of_all_losses(exits: str, overrides: list[str], tmp_path: Path) -> None:
    """So the front's gradient is the one at the cut and those of its exits, and the cut's has those of the back's;
    heads of the front are averaged with it."""
    plan = scenario(exits, *overrides)
    assert_close(newest(simulate(plan, runs=tmp_path).folder), plain(plan))


def test_a_joint_step_has_the_exits_of_all_clients(tmp_path: Path) -> None:
    """One step of equal clients at the full rate is one step on their batches together."""
    plan = scenario(
        "{blocks: [1, 3]}", "federation.mode=psl", "federation.local_epochs=null", "federation.local_steps=1",
        "federation.rounds=1",
    )  # fmt: skip
    found, data, key = newest(simulate(plan, runs=tmp_path).folder), opened(plan), Key(plan.seed)
    model, (mean, std) = Plain(plan, len(data.classes)), pixel_stats(plan.model)
    parts = [
        next(batches(data.train, rows, 16, key.at("batches", 1, one), mean=mean, std=std, steps=1))
        for one, rows in enumerate(data.partitions)
    ]
    images, labels = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    model.loss(images, labels, 1).backward()
    plan.training.server.optimiser.build(list(model.parameters()), 0.0).step()
    assert_close(found, model.found())


def without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("exits.")}


CLIPPED = ["training.client.clip=0.1", "training.server.clip=0.1", "training.client.weight_decay=0.01"]


@pytest.mark.parametrize(
    ("exits", "overrides"),
    few(
        [
            ("{blocks: [1, 3], regime: disjoint}", [*CLIPPED, "model.args.proj_drop_rate=0.1"]),
            ("{blocks: [1, 2], regime: disjoint}", ["federation.mode=sfl-v1", "training.ahead=1", *CLIPPED]),
            ("{blocks: [1, 2, 3], regime: disjoint}", [*WHOLE, "training.client.clip=0.1"]),
            ("{blocks: [1, 3], weight: 0.0}", []),
        ]
    ),
    ids=["disjoint", "disjoint, ahead", "disjoint, whole model", "joint without weight"],
)
def test_a_model_that_learns_nothing_from_its_exits_is_that_of_a_run_without(
    exits: str, overrides: list[str], tmp_path: Path
) -> None:
    plan = small(*DEEPER, "compression.front_weights.codec={kind: uniform, bits: 8}", *overrides)
    beside = plan.with_([f"model.exits={exits}"])
    alone, both = (simulate(one, runs=tmp_path / str(number)) for number, one in enumerate((plan, beside)))
    found, expected = newest(both.folder), newest(alone.folder)
    assert without(found).keys() == expected.keys()
    assert all(without(found)[name].equal(tensor) for name, tensor in expected.items())
    started = {n: t for part in assemble(beside, 10)[:2] for n, t in part.state_dict().items() if n.startswith("exits")}
    moved = [not found[name].equal(tensor) for name, tensor in started.items()]
    assert all(moved) == ("disjoint" in exits)
    rows = [[row for row in table(one.folder / "ledger.csv") if row["plane"] == "data"] for one in (alone, both)]
    assert rows[0] == rows[1]
    assert [row.train_loss for row in both.rounds] == [row.train_loss for row in alone.rounds]


def test_heads_of_the_front_cross_and_those_of_the_back_do_not(tmp_path: Path) -> None:
    plan = scenario("{blocks: [1, 3]}", "federation.rounds=1", "compression.front_weights.lossless=none")
    found, numbers = simulate(plan, runs=tmp_path).totals, 10 * (2 * 16 + 1)
    for direction in ("up", "down"):
        one = found.select(role="exit_weights", direction=direction)
        assert one.raw == one.reduced == one.coded == one.sent == 3 * 4 * numbers
    told = estimate(plan).round
    assert told.select(role="exit_weights").sent == found.select(role="exit_weights").sent


@pytest.mark.parametrize(
    ("exits", "overrides"),
    [
        ("{blocks: [1, 2]}", ["federation.labels=private", "compression.reducer={kind: bottleneck, width: 4}"]),
        ("{blocks: [2]}", ["compression.reducer=semantic_tokens", "training.precision=bfloat16"]),
        ("{blocks: [1, 3]}", ["federation.mode=psl", "compression.reducer={kind: adc, ratio: 0.4}"]),
        ("{blocks: [1, 3]}", ["phases=[{kind: local, rounds: 1, align_every: 1}, gradient]", "model.adapter=norms"]),
        ("{blocks: [1, 3]}", ["phases=[{kind: gradient, rounds: 1}, frozen]", "memory={passes: 1, mix: 0.2}",
                              "federation.rounds=3", "compression.front_weights.delta=true"]),
    ],
    ids=["private labels", "gates", "merged samples", "local phase", "memory"],
)  # fmt: skip
def test_they_learn_whatever_else_is_chosen(exits: str, overrides: list[str], tmp_path: Path) -> None:
    plan = small(*DEEPER, "data.limit=60", f"model.exits={exits}", *overrides)
    folder = simulate(plan, runs=tmp_path).folder
    found, parts = newest(folder), assemble(plan, 10)
    before = {n: t for part in parts[:2] for n, t in part.state_dict().items() if n.startswith("exits.")}
    assert all(not found[name].equal(tensor) for name, tensor in before.items())
    assert plan.model.exits is not None
    assert [tuple(by) for by in read_exits(folder).values()] == [plan.model.exits.blocks] * plan.federation.rounds
    assert (folder / "exits.safetensors").exists()


class Interrupting(Observer):
    """Presses Ctrl-C in the middle of the third round."""

    def progress(self, round: int, share: float) -> None:
        if round == 3 and share > 0.4:
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_and_resumed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    keys = ("training.client_state=keep", "federation.rounds=3", "federation.mode=sfl-v1")
    plan = small(*DEEPER, "model.exits={blocks: [1, 3], regime: mixed, after: 1}", *keys)
    whole = simulate(plan, runs=tmp_path / "whole").folder
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "stopped", observers=[Interrupting()])
    (folder,) = (tmp_path / "stopped").iterdir()
    assert set(read_exits(folder)) == {1, 2}
    simulate(resume=folder)
    assert outcome(folder) == outcome(whole)
    for name in ("exits.csv", "exits.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
