"""Blocks with budgets in whole runs: against a plain loop over the unsplit model, which knows nothing of a cut, and by
what crosses."""

import math
from pathlib import Path

import pytest
import torch
from helpers import PLAIN, few, small, table
from models import newest
from outcomes import data_rows, outcome
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from splitfed import Scenario, estimate, simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.model.adaptive.alast import Numbers
from splitfed.model.build import build, pixel_stats
from splitfed.run.observer import Observer
from splitfed.seeds import Key

DEPTH, CUT, PREFIX, PATCHES = 4, 2, 1, 16
MODEL = ["model.args={patch_size: 2, embed_dim: 16, depth: 4, num_heads: 2}", "model.cut=2"]
SGD = [f"training.{side}.optimiser={{kind: sgd, lr: 0.05, momentum: 0.5}}" for side in ("client", "server")]
WHOLE = ["federation.mode=fl", "training.server={}"]


def scenario(trained: str, *overrides: str, alpha: float = 0.3, more: str = "") -> Scenario:
    return small(*MODEL, *SGD, f"model.adaptive={{kind: alast, trained: {trained}, alpha: {alpha}{more}}}", *overrides)


def numbers(plan: Scenario) -> Numbers:
    assert plan.model.adaptive is not None
    return Numbers(plan.model.adaptive, CUT, DEPTH - CUT, Key(plan.seed).at("adaptive"))


def passed(tokens: Tensor, blocks: list, budgets: list[float]) -> tuple[Tensor, list[float]]:
    """What is left of tokens behind some blocks, and how far each of them has moved the class token."""
    moved = []
    for block, budget in zip(blocks, budgets, strict=True):
        with torch.no_grad():
            n, attn = tokens.shape[1], block.attn
            q, k, _ = attn.qkv(block.norm1(tokens)).view(len(tokens), n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            seen = ((q[:, :, :1] @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(-1)[:, :, 0].mean(1)
        after = block(tokens)
        moved.append(float((after[:, 0] - tokens[:, 0]).detach().square().sum(1).mean()))
        count = max(1, math.floor(budget * (n - PREFIX) + 1e-9))
        order = seen[:, PREFIX:].sort(dim=1, descending=True, stable=True).indices[:, :count].sort(1).values + PREFIX
        kept = torch.cat([torch.zeros(len(tokens), PREFIX, dtype=torch.int64), order], 1)
        tokens = torch.stack([sample[own] for sample, own in zip(after, kept, strict=True)])
    return tokens, moved


class Plain:
    """The unsplit model, whose blocks have a client's budgets before the cut and the server's behind it."""

    def __init__(self, plan: Scenario) -> None:
        torch.set_num_threads(1)
        self.plan, self.key, federation = plan, Key(plan.seed), plan.federation
        self.data = load(plan.data, plan.model.image_size, federation.clients, self.key.at("data"))
        self.vit = build(plan.model, len(self.data.classes), key=self.key.at("model")).train()
        named = dict(self.vit.named_parameters())
        front = ("cls_token", "pos_embed", "patch_embed", *(f"blocks.{n}." for n in range(CUT)))
        self.front = {name: one for name, one in named.items() if name.startswith(front)}
        self.back = {name: one for name, one in named.items() if name not in self.front}
        self.budgets = {side: [0.9] * (DEPTH // 2) for side in (*range(federation.clients), "back")}
        self.changes = {side: [0.0] * (DEPTH // 2) for side in self.budgets}

    def drawn(self, side: object, number: int, key: Key) -> set[int]:
        if not number:
            return set()
        weights = torch.tensor(self.budgets[side], dtype=torch.float64).softmax(0)
        return set(torch.multinomial(weights, number, generator=key.generator()).tolist())

    def move(self, side: object, found: list[float]) -> None:
        pairs = zip(self.budgets[side], found, self.changes[side], strict=True)
        self.budgets[side] = [min(1.0, max(0.5, b + 0.3 * (new - old))) for b, new, old in pairs]
        self.changes[side] = found

    def learn(self, images: Tensor, labels: Tensor, round: int, client: int, step: int) -> None:
        many, vit = numbers(self.plan).of(round, client, step), self.vit
        here = self.key.at("step", round, client, step, "adaptive", "front")
        there = self.key.at("server", round, client, step, "adaptive", "back")
        trained = self.drawn(client, many["front"], here)
        trained |= {CUT + place for place in self.drawn("back", many["back"], there)}
        blocks = list(vit.blocks)
        tokens = torch.cat([vit.cls_token.expand(len(images), -1, -1), vit.patch_embed(images)], 1) + vit.pos_embed
        made, moved = passed(tokens, blocks[:CUT], self.budgets[client])
        rest, then = passed(made, blocks[CUT:], self.budgets["back"])
        cross_entropy(vit.forward_head(vit.norm(rest)), labels).backward()
        self.move(client, moved)
        self.move("back", then)
        for place, block in enumerate(blocks):
            if place not in trained:
                block.zero_grad(set_to_none=True)
        if not many["front"]:
            for one in self.front.values():
                one.grad = None

    def train(self) -> dict[str, Tensor]:
        """One client after another, whose fronts are averaged; one back."""
        training, federation, rows = self.plan.training, self.plan.federation, self.data.partitions
        server = torch.optim.SGD(list(self.back.values()), 0.05, 0.5)
        mean, std = pixel_stats(self.plan.model)
        for number in range(1, federation.rounds + 1):
            start = {name: one.detach().clone() for name, one in self.front.items()}
            total = dict.fromkeys(self.front, torch.zeros((), dtype=torch.float64))
            for one in torch.randperm(federation.clients, generator=self.key.at("cohort", number).generator()).tolist():
                for name, parameter in self.front.items():
                    parameter.data.copy_(start[name])
                client = torch.optim.SGD(list(self.front.values()), 0.05, 0.5)
                given = batches(
                    self.data.train, rows[one], training.batch_size, self.key.at("batches", number, one), mean=mean,
                    std=std, augment="none", epochs=1,
                )  # fmt: skip
                for step, batch in enumerate(given, 1):
                    self.learn(batch.images, batch.labels, number, one, step)
                    for optimiser in (client, server):
                        optimiser.step()
                        optimiser.zero_grad()
                for name, parameter in self.front.items():
                    total[name] = total[name] + parameter.detach().double() * len(rows[one]) / sum(map(len, rows))
            for name, parameter in self.front.items():
                parameter.data.copy_(total[name])
        return dict(self.vit.state_dict())


def assert_gradients_are_those_drawn(plan: Scenario, folder: Path) -> None:
    """A gradient comes down in just those mini-batches in which a block of the front was drawn."""
    rows = [row for row in data_rows(folder) if row["role"] in ("smashed", "cut_gradient")]
    steps = {role: {(int(r["round"]), int(r["client"]), int(r["step"])) for r in rows if r["role"] == role} for role in
             ("smashed", "cut_gradient")}  # fmt: skip
    ask = numbers(plan)
    learned = {step for step in steps["smashed"] if ask.front_learns(*step)}
    assert steps["cut_gradient"] == {step for step in learned if not plan.phase(step[0]).frozen}
    assert 0 < len(learned) < len(steps["smashed"])


def test_the_model_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    """So are the budgets of both sides, and each token that was left; and gradients come down when they are drawn."""
    plan = scenario("2", "compression.smashed.lossless=none")
    plain = Plain(plan)
    expected, folder = plain.train(), simulate(plan, runs=tmp_path).folder
    found = newest(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=0, msg=name)
    assert_gradients_are_those_drawn(plan, folder)
    kept = load_file(folder / "checkpoints/round-000002/budgets.safetensors")
    torch.testing.assert_close(kept["budgets"].tolist(), plain.budgets["back"], atol=1e-4, rtol=0)
    for client in range(3):
        kept = load_file(folder / f"clients/{client:06d}/budgets-000002.safetensors")
        torch.testing.assert_close(kept["front/budgets"].tolist(), plain.budgets[client], atol=1e-4, rtol=0)


class Impatient(Observer):
    """Stops the run in the middle of a round."""

    def progress(self, round: int, share: float) -> None:
        if round == 4 and share > 0.5:
            raise KeyboardInterrupt


def test_a_run_that_is_interrupted_goes_on_exactly(tmp_path: Path) -> None:
    plan = scenario(
        "{front: 0.6, back: 1.5}", "federation.mode=sfl-v1", "federation.cohort=2", "federation.rounds=5",
        "training.client_state=keep", more=", choice: highest",
    )  # fmt: skip
    whole = simulate(plan, runs=tmp_path / "whole").folder
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "cut", observers=(Impatient(),))
    (folder,) = (tmp_path / "cut").glob("small-*")
    simulate(resume=folder)
    assert outcome(folder) == outcome(whole)
    one, other = (load_file(run / "checkpoints/round-000005/budgets.safetensors") for run in (folder, whole))
    assert all(one[name].equal(tensor) for name, tensor in other.items())
    assert other["budgets"].dtype == torch.float64


@pytest.mark.parametrize(
    ("trained", "more", "overrides"),
    few([
        ("1", "", ["federation.mode=sl", "federation.labels=private", "model.tail=1"]),
        ("2", "", ["training.ahead=2", "compression.reducer={kind: topk, ratio: 0.2}", "federation.mode=sfl-v1"]),
        ("2", ", embedding: never", ["compression.reducer={kind: bottleneck, width: 4}", "model.adapter=norms"]),
        (
            "{front: 0.5}", "", ["phases=[{kind: gradient, rounds: 1}, frozen]", "model.exits={blocks: [1, 2, 3]}",
            "compression.reducer={kind: discard_tokens, kept_tokens: 0.5}", "training.client.checkpointing=true"],
        ),
    ]),
    ids=["sl, private", "ahead, topk", "norms, bottleneck", "frozen, exits, discard_tokens, checkpointing"],
)  # fmt: skip
def test_it_goes_with(trained: str, more: str, overrides: list[str], tmp_path: Path) -> None:
    plan = scenario(trained, *overrides, *PLAIN, "evaluation={held_out: 0.2}", more=more)
    if plan.federation.private:
        plan = plan.with_(["model.args={patch_size: 2, embed_dim: 16, depth: 5, num_heads: 2}"])
    folder = simulate(plan, runs=tmp_path).folder
    assert_gradients_are_those_drawn(plan, folder)


def test_a_client_with_the_whole_model_keeps_the_budgets_of_both_sides(tmp_path: Path) -> None:
    folder = simulate(scenario("2", *WHOLE), runs=tmp_path).folder
    kept = load_file(folder / "clients/000001/budgets-000002.safetensors")
    assert {name: len(tensor) for name, tensor in kept.items()} == {
        "front/budgets": 2, "front/changes": 2, "back/budgets": 2, "back/changes": 2,
    }  # fmt: skip
    assert all(bool((kept[f"{side}/changes"] > 0).all()) for side in ("front", "back"))
    assert not any(row["plane"] == "data" for row in table(folder / "ledger.csv"))


def test_a_dry_run_expects_what_a_run_then_counts(tmp_path: Path) -> None:
    """Budgets that do not move leave 13 of 17 tokens at the cut: of 16 patches 14, and then 12."""
    plan = scenario("2", "federation.rounds=6", *PLAIN, alpha=0)
    told, ran = estimate(plan), simulate(plan, runs=tmp_path)
    plain = estimate(small(*MODEL, *PLAIN, "federation.rounds=6"))
    for role in ("smashed", "side", "targets"):
        assert 6 * told.round.select(role=role).coded == ran.totals.select(role=role).coded
    ask, found = numbers(plan), told.operations.adaptive
    assert found is not None
    assert found.learns == pytest.approx(1 - 1 / 6)
    for row in ran.rounds:
        steps = [(row.round, client, step) for client in range(3) for step in (1, 2)]
        assert row.unanswered == sum(not ask.front_learns(*step) for step in steps) / len(steps)
        assert row.cut_tokens == 13
    for side, expected in (("client", found.front), ("server", found.back)):
        counted = [getattr(row, f"{side}_operations") for row in ran.rounds]
        assert sum(counted) / len(counted) == pytest.approx(expected, rel=0.1)
    assert told.operations.client_ratio == pytest.approx(found.front / plain.operations.front)
    assert found.front < 0.8 * plain.operations.front
    assert found.back < 0.7 * plain.operations.back
    assert told.server.activations < plain.server.activations


@pytest.mark.parametrize("overrides", [[*WHOLE], ["model.exits={blocks: [2]}"]], ids=["fl", "exits"])
def test_features_that_are_made_up_count_for_each_image(overrides: list[str], tmp_path: Path) -> None:
    """Those of an exit of the front are made up where the front learns."""
    plan, runs = scenario("2", "federation.rounds=1", *overrides, alpha=0), []
    more = ["training.client.fraug={}"]
    for one in (plan, plan.with_(more)):
        runs.append(simulate(one, runs=tmp_path))
    without, found = (run.rounds[0].client_operations for run in runs)
    each = estimate(plan.with_(more)).operations.client - estimate(plan).operations.client
    assert found is not None
    assert without is not None
    learned = 1.0
    if plan.federation.splits:
        ask = numbers(plan)
        steps = [ask.front_learns(1, client, step) for client in range(3) for step in (1, 2)]
        learned, each = sum(steps) / len(steps), each / ask.share
    assert found - without == pytest.approx(learned * each)
