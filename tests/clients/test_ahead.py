"""Clients that are ahead of the server's answers: against a plain loop that keeps old weights, and against nothing
being ahead."""

from collections import deque
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from channels import HOST, Proxy
from helpers import ADC, PLAIN, small
from models import newest
from outcomes import data_rows, outcome, same
from torch import nn
from waiting import LONG

from splitfed import Scenario, simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.errors import WireError
from splitfed.model.build import build, pixel_stats, split
from splitfed.model.forward import keyed_rng
from splitfed.seeds import Key
from splitfed.server.back.server import SplitServer
from splitfed.server.deployment.grpc_listener import GrpcListener
from splitfed.wire.channel import InlineStream, Invitation

ADAM = "training.client.optimiser={kind: adam, lr: 3e-3}"
SGD = "training.client.optimiser={kind: sgd, lr: 0.05, momentum: 0.9}"
ALONE = ["federation.clients=1", "federation.rounds=2", "federation.local_epochs=2"]


def behind(scenario: Scenario, ahead: int) -> dict[str, torch.Tensor]:
    """Train one client's front and the back as a loop: each mini-batch passes through a whole copy of the front, made
    when it goes out, whose gradient moves the front of today when `ahead` later ones have gone out too."""
    torch.set_num_threads(1)
    key, training, federation = Key(scenario.seed), scenario.training, scenario.federation
    data = load(scenario.data, scenario.model.image_size, federation.clients, key.at("data"))
    front, back = split(build(scenario.model, len(data.classes), key=key.at("model")).train(), scenario.model.cut)
    mean, std = pixel_stats(scenario.model)
    server = training.server.optimiser.build(list(back.parameters()), training.server.weight_decay)
    drops = bool(scenario.model.args.get("pos_drop_rate"))
    for number in range(1, federation.rounds + 1):
        client = training.client.optimiser.build(list(front.parameters()), training.client.weight_decay)
        under_way: deque[tuple[nn.Module, torch.Tensor, torch.Tensor]] = deque()

        def come(under_way=under_way, client=client) -> None:
            copy, sent, gradient = under_way.popleft()
            sent.backward(gradient)
            for today, then in zip(front.parameters(), copy.parameters(), strict=True):
                today.grad = then.grad
            if training.client.clip is not None:
                nn.utils.clip_grad_norm_(front.parameters(), training.client.clip)
            client.step()
            client.zero_grad()

        shuffled = batches(
            data.train, data.partitions[0], training.batch_size, key.at("batches", number, 0), mean=mean, std=std,
            epochs=federation.local_epochs,
        )  # fmt: skip
        for step, batch in enumerate(shuffled, 1):
            copy = deepcopy(front)
            with keyed_rng(key.at("step", number, 0, step, "dropout"), torch.device("cpu"), drops):
                sent = copy(batch.images)
            arrived = sent.detach().requires_grad_()
            nn.functional.cross_entropy(back(arrived), batch.labels).backward()
            server.step()
            server.zero_grad()
            under_way.append((copy, sent, arrived.grad))
            if len(under_way) > ahead:
                come()
        while under_way:
            come()
    return {**front.state_dict(), **back.state_dict()}


@pytest.mark.parametrize("ahead", [0, 1, 2, 64])
@pytest.mark.parametrize(
    "changes",
    [[ADAM], [SGD], [ADAM, "training.client.clip=0.1", "training.client.weight_decay=0.01"],
     [SGD, "model.args.pos_drop_rate=0.3"]],
    ids=["adam", "sgd", "clip", "dropout"],
)  # fmt: skip
def test_gradients_are_of_the_weights_then_and_move_those_of_today(ahead, changes, tmp_path):
    scenario = small(*PLAIN, *ALONE, f"training.ahead={ahead}", *changes)
    found, expected = newest(simulate(scenario, runs=tmp_path).folder), behind(scenario, ahead)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


ONE = ["federation.local_epochs=null", "federation.local_steps=1"]


@pytest.mark.parametrize(
    "changes",
    [
        ADC,
        ["compression.reducer={kind: bottleneck, width: 8}"],
        ["compression.smashed.codec=fedlite"],
        ["model.adapter={kind: lora, rank: 2, dropout: 0.2}"],
        ["model.adapter=norms", "training.precision=bfloat16"],
        ["federation.strategy={kind: FedProx, proximal_mu: 0.5}", "federation.mode=sfl-v1"],
    ],
    ids=["adc", "bottleneck", "fedlite", "lora", "norms", "fedprox"],
)
def test_with_one_mini_batch_a_round_nothing_is_ahead_of_anything(changes, tmp_path):
    """Whatever becomes of a mini-batch on its way, it is the same whether it goes through the front or a copy of it."""
    plain, other = (
        outcome(simulate(small(*changes, *ONE, f"training.ahead={ahead}"), runs=tmp_path).folder) for ahead in (0, 3)
    )
    assert plain == other


VANISHING = "federation.availability={kind: drawn, dropout: 0.6, step_seconds: 1}"


@pytest.mark.parametrize(
    "changes",
    [
        ["federation.mode=sl"],
        ["federation.mode=sfl-v1", *ADC],
        ["federation.mode=sfl-v2", "training.client_state=keep", "evaluation={held_out: 0.2}"],
        ["federation.mode=sfl-v2", VANISHING],
        ["phases=[{kind: local, rounds: 1, upload_every: 1}, {kind: gradient, rounds: 1}, frozen]",
         "memory={passes: 1}", "federation.rounds=4"],
    ],
    ids=["sl", "sfl-v1", "sfl-v2", "vanishing", "phases"],
)  # fmt: skip
def test_over_grpc_a_run_comes_to_the_same_as_in_one_process(changes, tmp_path, monkeypatch):
    """Frames are on their way, and both ends compute at the same time."""
    scenario = small(*changes, "training.ahead=2", "federation.local_epochs=3")
    expected = simulate(scenario, runs=tmp_path / "inline")

    def listen(split) -> GrpcListener:
        place = {"host": HOST, "port": 0, "tls": None, "public": HOST}
        return GrpcListener(split, **place, run="run", attempt=1, streams=4, deadline=LONG, ahead=2)  # type: ignore[arg-type]

    monkeypatch.setattr("splitfed.server.app.InlineListener", listen)
    same(expected.folder, simulate(scenario, runs=tmp_path / "grpc").folder)


class Cutting(GrpcListener):
    """Is reached by a line that breaks under every seventh frame."""

    def __init__(self, split: SplitServer) -> None:
        self.handled: list[bytes] = []
        super().__init__(
            SimpleNamespace(most_bytes=split.most_bytes, open=partial(self._open, split)), host=HOST, port=0, tls=None,
            run="run", attempt=1, streams=4, deadline=LONG, ahead=2,
        )  # fmt: skip

    def _open(self, split: SplitServer, client: int, round: int) -> SimpleNamespace:
        session = split.open(client, round)

        def handle(buffer: bytes) -> bytes:
            reply = session.handle(buffer)
            self.handled.append(buffer)
            if len(self.handled) % 7 == 0:
                self.proxy.cut()
            return reply

        return SimpleNamespace(handle=handle, close=session.close)

    def __enter__(self) -> "Cutting":
        super().__enter__()
        self.proxy = Proxy(self.port).__enter__()
        return self

    def invite(self, client: int, round: int) -> Invitation:
        return Invitation(f"grpc:{HOST}:{self.proxy.port}", super().invite(client, round).token)

    def __exit__(self, *error: object) -> None:
        self.proxy.__exit__()
        super().__exit__(*error)


def test_over_a_line_that_breaks_again_and_again_each_mini_batch_is_trained_once(tmp_path, monkeypatch):
    scenario = small(*PLAIN, "training.ahead=2", "federation.local_epochs=3", "training.client_state=keep")
    expected, listeners = simulate(scenario, runs=tmp_path / "inline"), list[Cutting]()

    def listen(split: SplitServer) -> Cutting:
        listeners.append(Cutting(split))
        return listeners[0]

    monkeypatch.setattr("splitfed.server.app.InlineListener", listen)
    found = simulate(scenario, runs=tmp_path / "cut")
    assert data_rows(found.folder) == data_rows(expected.folder)
    weights = newest(expected.folder)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in newest(found.folder).items())
    handled = listeners[0].handled
    assert len(set(handled)) == 3 * 2 * 7 < len(handled)
    assert found.summary.bytes_wasted > 0


def test_an_answer_to_another_mini_batch_is_refused(tmp_path, monkeypatch):
    receive = InlineStream.receive
    monkeypatch.setattr(InlineStream, "receive", lambda stream: (receive(stream), receive(stream))[1])
    with pytest.raises(WireError, match=r"an answer to round 1, client ., step 2, where that to .*, step 1 is next"):
        simulate(small("training.ahead=1"), runs=tmp_path)
