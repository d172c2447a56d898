"""Weights as differences: both ends agree, errors are made up for, who holds what, and whole runs."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord
from helpers import small, table
from hypothesis import given, settings
from hypothesis import strategies as st
from models import newest
from safetensors.torch import load_file

from splitfed import estimate, simulate
from splitfed.clients.state import ClientState
from splitfed.clients.weights import RoundWeights, Wires
from splitfed.errors import Lacking, RunError, WireError
from splitfed.federation.phases import Frozen, Gradient, phase_of
from splitfed.scenario.compression import Compression
from splitfed.seeds import Key
from splitfed.server.cohort.attendance import Attendance
from splitfed.server.weights.differences import MOST_GROUPS, WeightDifferences
from splitfed.server.weights.exchange import WholeWeights
from splitfed.split.weights.differences import Base, base_of, restored, send
from splitfed.split.weights.wire import WeightWire
from splitfed.wire.messages import Weights as Message

KEY = Key(0)
GRADIENT = phase_of((), 1)
SHAPES = {"a.weight": (6, 8), "a.bias": (8,), "token": (1, 1, 8), "scale": ()}
NONE = WeightWire({}, Compression())  # nothing is frozen


def wire(**packing) -> WeightWire:
    template = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return WeightWire(template, Compression.model_validate({"front_weights": {"delta": True, **packing}}))


def weights(seed: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def added(*parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: sum(part[name] for part in parts) for name in SHAPES}


def record(tensors: dict[str, torch.Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in tensors.items()})


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


CODECS = st.sampled_from(["float32", "float16", "bfloat16", "float8"]) | st.builds(
    lambda bits, rounding, rotation: {"kind": "uniform", "bits": bits, "rounding": rounding, "rotation": rotation},
    st.sampled_from([2, 3, 4, 8]), st.sampled_from(["stochastic", "nearest"]), st.booleans(),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(CODECS, st.integers(0, 99), st.floats(1e-6, 100.0), st.booleans())
def test_both_ends_hold_the_same_and_the_residual_is_what_is_missing(codec, seed, size, before):
    one, base, new = wire(codec=codec), Base(3, weights(seed)), added(weights(seed), weights(seed + 1, size))
    residual = weights(seed + 2, size) if before else None
    sent = send(one, new, base, KEY, 4, 7, residual)
    came, frame = one.unpack(sent.packed.buffer)
    assert base_of(frame) == 3
    assert same(restored(base.weights, came), sent.known)
    for name in SHAPES:  # what was wanted is what came and what is left
        wanted = new[name] - base.weights[name] + (residual[name] if residual else 0)
        assert torch.allclose(came[name] + sent.residual[name], wanted, rtol=1e-5, atol=1e-5 * size)
    if codec == "float32":
        assert not one.lossy
        if residual is None:
            assert all(torch.allclose(sent.known[name], new[name], rtol=1e-6, atol=1e-6) for name in SHAPES)


def test_what_is_sent_whole_is_what_it_was_without_differences():
    on, off = wire(), wire(delta=False)
    assert send(on, weights(1), None, KEY, 1, -1).packed.buffer == off.pack(weights(1), KEY, 1, -1).buffer


@pytest.mark.parametrize("feedback", [True, False])
def test_residuals_make_up_for_what_few_bits_take(feedback, tmp_path):
    """Each round differs by the same step, of whose numbers 2 bits, rounded to nearest, see the largest only."""
    one, state, rounds = wire(codec={"kind": "uniform", "bits": 2, "rounding": "nearest"}), ClientState(tmp_path, 0), 40
    step = {name: torch.full(shape, 0.1) for name, shape in SHAPES.items()}
    for tensor in step.values():
        if tensor.dim():
            tensor[..., 0], tensor[..., 1] = 0.0, 1.0
    total = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for round in range(1, rounds + 1):
        whole = Message(wire().pack(weights(0), KEY, round, -1).buffer)
        if not feedback:
            state.save_weights(round - 1, {}, {name: torch.zeros(shape) for name, shape in SHAPES.items()})
        crossing = RoundWeights(Wires(one, NONE), state, round, 0, lambda _: GRADIENT)
        known, _ = crossing.down(whole)
        came, _ = one.unpack(crossing.up(added(known, step), KEY).buffer)
        total = added(total, came)
    worst = max((total[name] - rounds * step[name]).abs().max() for name in SHAPES)
    if feedback:
        assert worst < 0.5  # a step of the grid: a third of what a row spans, with what is left of the last round
    else:
        assert worst == pytest.approx(rounds * 0.1, rel=1e-3)


def test_a_frozen_phase_between_takes_neither_what_lacked_nor_the_base(tmp_path):
    """What a client learned in rounds 1 and 4 has come, but for what the last frame lacks. In 2 and 3 nothing changes,
    and round 4 builds on what came in 2."""
    one, state = wire(codec={"kind": "uniform", "bits": 2}), ClientState(tmp_path, 0)
    phases = partial(phase_of, [Gradient(rounds=1), Frozen(rounds=2), Gradient()])
    came, learned = [], []
    for round, trained in ((1, None), (2, 1), (3, 2), (4, 3)):
        crossing = RoundWeights(Wires(one, NONE), state, round, 0, phases, trained)
        base = Base(2, weights(2)) if round == 4 else None
        frame = send(wire(), weights(round), base, KEY, round, -1).packed.buffer if round != 3 else b""
        known, _ = crossing.down(Message(frame))
        assert round != 3 or same({name: known[name] for name in SHAPES}, weights(2))
        if not phases(round).frozen:
            learned.append(weights(50 + round, 0.1))
            came.append(one.unpack(crossing.up(added(known, learned[-1]), KEY.at(round)).buffer)[0])
    assert all(torch.allclose(known[name], weights(4)[name], atol=1e-6) for name in SHAPES)
    lacks = state.residual(5, 4)
    for name in SHAPES:
        assert torch.allclose(added(*came, lacks)[name], added(*learned)[name], atol=1e-5)
        assert not torch.allclose(came[0][name], learned[0][name], atol=1e-5) or name == "scale"


def test_values_that_add_up_to_infinity_are_refused():
    big = {name: torch.full(shape, 3e38) for name, shape in SHAPES.items()}
    with pytest.raises(WireError, match="more than float32"):
        restored(big, big)


class Client:
    """A client of its own folder that returns what it got, a little changed."""

    def __init__(self, number: int, one: WeightWire, folder: Path) -> None:
        self.number, self.wire, self.state = number, one, ClientState(folder, number)

    def train(self, server: WeightDifferences, front: ArrayRecord, round: int) -> dict[str, torch.Tensor]:
        sent, _ = server.down(front, self.number, round, KEY.at(round))
        crossing = RoundWeights(Wires(self.wire, NONE), self.state, round, self.number, lambda _: GRADIENT)
        new = added(crossing.down(sent)[0], weights(100 * round + self.number, 0.01))
        self.last_down = base_of(self.wire.unpack(sent.weights)[1])
        came, _ = server.up(crossing.up(new, KEY.at("up", round)).buffer, self.number)
        assert all(torch.allclose(came[name], new[name], atol=0.06) for name in SHAPES)
        return came


def test_who_was_lost_is_sent_all_and_groups_are_few(tmp_path):
    one = wire(codec={"kind": "uniform", "bits": 8})
    server, clients = WeightDifferences(one), [Client(n, one, tmp_path) for n in range(8)]

    def play(round: int, lost: set[int] = frozenset()) -> list[int | None]:
        server.open(round, list(range(8)))
        front = record(weights(round, 1.0))
        for client in clients:
            client.train(server, front, round)
        server.close([client.number for client in clients if client.number not in lost])
        return [client.last_down for client in clients]

    assert play(1, lost={7}) == [None] * 8
    assert play(2, lost={6}) == [1] * 7 + [None]
    assert play(3, lost={5}) == [2] * 6 + [None, 2]  # 7 holds other weights of round 2 than 0 to 5
    assert play(4, lost={4}) == [3] * 5 + [None, 3, 3]
    assert len(server.state_dict()["known"]) == 4
    # Four kinds of weights are held now: by 0 to 3, by 5, by 6 and by 7; 4 was lost. Who has the last number goes out.
    assert play(5) == [4] * 4 + [None, 4, 4, None]
    assert len(server.state_dict()["known"]) <= MOST_GROUPS + 1


def test_a_client_that_lacks_its_base_says_so_and_is_sent_all(tmp_path):
    one = wire()
    server, client = WeightDifferences(one), Client(0, one, tmp_path)
    server.open(1, [0])
    client.train(server, record(weights(0)), 1)
    server.close([0])
    for path in (tmp_path / "000000").iterdir():
        path.unlink()
    server.open(2, [0])
    with pytest.raises(Lacking, match="round 1"):
        client.train(server, record(weights(1)), 2)
    assert server.forget(0)
    server.open(2, [0])
    client.train(server, record(weights(1)), 2)
    assert client.last_down is None
    assert not server.forget(0)  # whoever was sent all lacks nothing
    assert not WholeWeights(one).forget(0)


def test_what_is_measured_from_another_round_is_refused(tmp_path):
    one = wire()
    server = WeightDifferences(one)
    server.open(5, [0])
    server.down(record(weights(0)), 0, 5, KEY)
    for base, client in ((4, 0), (None, 0), (5, 1)):
        with pytest.raises(WireError):
            server.up(one.pack(weights(1), KEY, 5, client, base).buffer, client)
    frame = one.unpack(one.pack(weights(1), KEY, 5, 0, 9).buffer)[1]
    with pytest.raises(WireError):
        base_of(frame)


def test_different_weights_for_clients_of_a_round_are_refused():
    server = WeightDifferences(wire())
    server.open(1, [0, 1])
    server.down(record(weights(0)), 0, 1, KEY)
    server.down(record(weights(0)), 1, 1, KEY)  # a copy is no other
    with pytest.raises(RunError, match="different weights"):
        server.down(record(weights(1)), 1, 1, KEY)


def test_a_front_that_is_handed_on_goes_down_whole_and_comes_up_as_a_difference(tmp_path):
    one = wire()
    server = WeightDifferences(one, in_turn=True)
    clients = [Client(number, one, tmp_path) for number in range(3)]
    front = weights(0)
    for round in (1, 2):
        server.open(round, [0, 1, 2])
        for client in clients:
            came = client.train(server, record(front), round)
            assert client.last_down is None
            assert not server.forget(client.number)  # whoever was sent all lacks nothing
            with pytest.raises(WireError):  # the one before has had its turn
                server.up(one.pack(front, KEY, round, 0, round).buffer, (client.number - 1) % 3)
            front = came
        server.close([0, 1, 2])
        assert server.state_dict() == {"round": round, "knows": {}, "known": {}}


def test_in_turn_few_bits_come_up_as_foretold(tmp_path):
    sent = {}
    for delta in ("false", "{kind: uniform, bits: 2}"):
        plan = small("federation.mode=sl", "federation.rounds=2", "compression.front_weights={codec: float16}",
                     f"compression.front_weights.delta={delta}")  # fmt: skip
        run, foretold = simulate(plan, runs=tmp_path, observers=()).totals, estimate(plan).round
        for way in ("down", "up"):
            sent[delta, way] = run.select(direction=way, role="front_weights").coded
            assert sent[delta, way] == 2 * foretold.select(direction=way, role="front_weights").coded
    assert sent["{kind: uniform, bits: 2}", "down"] == sent["false", "down"]
    assert sent["{kind: uniform, bits: 2}", "up"] < 0.5 * sent["false", "up"]


DELTA = [
    "federation.rounds=4", "federation.cohort=2",
    "compression.front_weights={codec: {kind: uniform, bits: 4}, delta: true}",
]  # fmt: skip


def outcome(folder: Path) -> tuple:
    (newest,) = sorted((folder / "checkpoints").iterdir())[-1:]
    model = {name: tensor.numpy().tobytes() for name, tensor in load_file(newest / "model.safetensors").items()}
    return model, (folder / "ledger.csv").read_text()


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    from splitfed.server.model import Model

    whole = outcome(simulate(small(*DELTA), runs=tmp_path / "whole", observers=()).folder)
    validate, calls = Model.validate, []

    def interrupted(self):
        calls.append(None)
        if len(calls) == 3:  # the clients have written what they hold since round 3, the server nothing
            raise KeyboardInterrupt
        return validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate(small(*DELTA), runs=tmp_path / "cut", observers=())
    (folder,) = (tmp_path / "cut").iterdir()
    simulate(resume=folder, observers=())
    assert outcome(folder) == whole


def test_a_run_whose_only_client_lost_its_folder_goes_on(tmp_path, monkeypatch):
    """It says so, the round starts again, and the front is sent whole."""
    sample, seen = Attendance.sample, []

    def losing(self, round, there):
        seen.append(round)
        if seen == [1, 2]:
            (folder,) = tmp_path.iterdir()
            for path in (folder / "clients/000000").iterdir():
                path.unlink()
        return sample(self, round, there)

    monkeypatch.setattr(Attendance, "sample", losing)
    plan = small("federation.clients=1", "federation.rounds=3", "compression.front_weights.delta=true")
    folder = simulate(plan, runs=tmp_path, observers=()).folder
    assert seen == [1, 2, 2, 3]
    assert {row["round"] for row in table(folder / "wasted.csv")} == {"2"}
    assert "from which this round's are measured" in (folder / "log.txt").read_text()
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 3


def test_two_bits_disturb_a_front_less_as_differences(tmp_path):
    """Whole weights in 2 bits bring new noise each round, and it adds up; differences bring that of the first one."""

    def front(packing: str) -> torch.Tensor:
        plan = small("federation.clients=1", "federation.rounds=8", f"compression.front_weights={packing}")
        state, back = newest(simulate(plan, runs=tmp_path, observers=()).folder), ("blocks.1", "norm", "head")
        return torch.cat([tensor.flatten() for name, tensor in state.items() if not name.startswith(back)])

    exact, two_bits = front("{}"), "{kind: uniform, bits: 2}"
    whole, differences = (
        (front(f"{{codec: {two_bits}, delta: {delta}}}") - exact).norm() for delta in ("false", "true")
    )
    assert differences < 0.8 * whole  # 0.6, whatever the seed
