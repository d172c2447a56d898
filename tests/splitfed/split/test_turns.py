"""Parts of an adapter that take turns: what crosses, who has what, and what a round makes of its part."""

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import PLAIN, small, table
from models import newest
from safetensors.torch import load_file
from torch import Tensor, nn

from splitfed import estimate, simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.errors import WireError
from splitfed.model.build import pixel_stats
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.server.cohort.attendance import Attendance
from splitfed.server.model import Model
from splitfed.split.assembly import assemble
from splitfed.split.client_part import ClientPart, part_of
from splitfed.split.weights.turns import Turns

PARTS = "model.adapter={kind: bottleneck, width: 6, parts: 3}"
FEW = ("federation.cohort=2", "federation.rounds=6", "checkpoints.keep=9")


def run(tmp_path: Path, *overrides: str) -> Path:
    return simulate(small(*PLAIN, PARTS, *overrides), runs=tmp_path, observers=()).folder


def sent(folder: Path) -> dict[tuple[int, int, str], int]:
    return {
        (int(row["round"]), int(row["client"]), row["direction"]): int(row["sent_bytes"])
        for row in table(folder / "ledger.csv") if row["role"] == "front_weights"
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["sfl-v2", "sl"])
def test_a_client_is_sent_what_it_lacks_and_returns_one_part(mode: str, tmp_path: Path) -> None:
    folder = run(tmp_path, f"federation.mode={mode}", *FEW)
    part = ClientPart.of(small(PARTS, *FEW), assemble(small(PARTS, *FEW), 10))
    one = 4 * sum(tensor.numel() for tensor in part.travelling(1).values())
    frozen = 4 * sum(tensor.numel() for tensor in part.frozen().values())
    assert 3 * one == 4 * sum(tensor.numel() for tensor in part.travelling().values())
    # What the server has of each part, by the last update, and what each client has, all told by who was there.
    updates, known = dict.fromkeys(range(3), 0), dict[int, dict[int, int]]()
    seen = sent(folder)
    for number in range(1, 7):
        there = sorted(client for at, client, way in seen if (at, way) == (number, "up"))
        assert len(there) == 2
        turn = (number - 1) % 3
        for client in there:
            has = known.get(client, {})
            lacks = [one for one in range(3) if has.get(one) != updates[one] or (mode == "sl" and one == turn)]
            assert seen[number, client, "down"] == one * len(lacks) + (0 if has else frozen), (number, client)
            assert seen[number, client, "up"] == one
            known[client] = dict(updates)
        updates[turn] = number
    models = [load_file(path / "model.safetensors") for path in sorted((folder / "checkpoints").iterdir())]
    for number, (before, after) in enumerate(pairwise(models), 1):
        assert {part_of(n) for n in part.front.state_dict() if not after[n].equal(before[n])} == {(number - 1) % 3}


def one_after_another(scenario: Scenario) -> dict[str, Tensor]:
    """Average, round by round, what plain training of the round's part and of the head makes at each client."""
    key, data = Key(scenario.seed), None
    data = load(scenario.data, scenario.model.image_size, scenario.federation.clients, key.at("data"))
    model = assemble(scenario, len(data.classes)).whole()
    mean, std = pixel_stats(scenario.model)
    for number in range(1, scenario.federation.rounds + 1):
        total, everyone = dict[str, Tensor](), 0
        for client, rows in enumerate(data.partitions):
            own = copy.deepcopy(model).train()
            for name, parameter in own.named_parameters():
                parameter.requires_grad_(f".added.{number - 1}." in name or "head." in name)
            optimiser = torch.optim.Adam([p for p in own.parameters() if p.requires_grad], lr=1e-2)
            for batch in batches(
                data.train, rows, 16, key.at("batches", number, client), mean=mean, std=std, epochs=1
            ):  # fmt: skip
                optimiser.zero_grad()
                nn.functional.cross_entropy(own(batch.images), batch.labels).backward()
                optimiser.step()
            for name, tensor in own.state_dict().items():
                total[name] = total.get(name, 0) + tensor.double() * len(rows)
            everyone += len(rows)
        model.load_state_dict({name: (tensor / everyone).float() for name, tensor in total.items()})
    return {name.split(".", 1)[1]: tensor for name, tensor in model.state_dict().items()}


def test_a_part_is_averaged_as_plain_training_of_it_makes_it(tmp_path: Path) -> None:
    scenario = small(
        PLAIN[-1], "model.adapter={kind: hydra, parts: 2, on: both}", "federation.mode=fl", "training.server={}",
        "federation.clients=2", "data.limit=70", "training.client.optimiser.lr=1e-2",
    )  # fmt: skip
    found, wanted = newest(simulate(scenario, runs=tmp_path, observers=()).folder), one_after_another(scenario)
    start = {n: t for part in assemble(scenario, 10)[:2] for n, t in part.state_dict().items()}
    assert {part_of(name) for name, tensor in found.items() if not tensor.equal(start[name])} == {None, 0, 1}
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, atol=2e-6), name


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = (*FEW[:2], "training.client_state=keep", "compression.front_weights.codec={kind: uniform, bits: 4}")
    whole = run(tmp_path / "whole", *more)
    validate, calls = Model.validate, []

    def interrupted(self: Model) -> object:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", *more)
    (folder,) = (tmp_path / "cut").iterdir()
    simulate(resume=folder, observers=())
    assert (folder / "ledger.csv").read_text() == (whole / "ledger.csv").read_text()
    assert all(tensor.equal(newest(folder)[name]) for name, tensor in newest(whole).items())


def test_who_has_lost_its_parts_is_sent_all_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, seen = Attendance.sample, list[int]()

    def losing(self: Attendance, round: int, there: object) -> object:
        seen.append(round)
        if seen == [1, 2]:
            (folder,) = tmp_path.iterdir()
            for path in (folder / "clients").glob("*/weights-*"):
                path.unlink()
        return sample(self, round, there)

    monkeypatch.setattr(Attendance, "sample", losing)
    folder = run(tmp_path, "federation.clients=1", "federation.rounds=3")
    assert seen == [1, 2, 2, 3]
    down = [sent(folder)[number, 0, "down"] for number in (1, 2, 3)]
    assert down[2] < down[1] == down[0]


def test_what_is_lacking_follows_from_the_rounds_alone() -> None:
    turns = {
        mode: Turns(scenario, ClientPart.of(scenario, assemble(scenario, 10)))
        for mode in ("sfl-v1", "sl") for scenario in [small(PARTS, *FEW, f"federation.mode={mode}")]
    }  # fmt: skip
    for since in range(1, 9):
        for number in range(since + 1, 12):
            made = {(one - 1) % 3 for one in range(since, number)}
            assert turns["sfl-v1"].lacking(since, number) == made
            assert turns["sl"].lacking(since, number) == made | {(number - 1) % 3}
    assert turns["sl"].lacking(None, 5) == {0, 1, 2}
    wire = turns["sl"].wire(frozenset({1}))
    weights = turns["sl"].part.travelling()
    with pytest.raises(WireError):  # another part than is due
        wire.unpack(turns["sl"].wire(frozenset({0, 2})).pack(weights, Key(0), 1, 0).buffer)


@pytest.mark.parametrize("more", [("federation.rounds=6",), ("federation.rounds=6", "federation.mode=sl")], ids=len)
def test_turns_are_foretold(more: tuple[str, ...], tmp_path: Path) -> None:
    guess, real = estimate(small(*PLAIN, PARTS, *more)), simulate(small(*PLAIN, PARTS, *more), runs=tmp_path).totals
    for way in ("up", "down"):
        told = 6 * guess.round.select(direction=way, role="front_weights").sent
        told += guess.once.select(direction=way, role="front_weights").sent
        assert told == pytest.approx(real.select(direction=way, role="front_weights").sent, abs=6)
