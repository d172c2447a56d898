"""The split server at its door: what it accepts, in which order, and what it answers."""

from types import SimpleNamespace

import pytest
import torch
from helpers import ADC, small
from test_reducers import TopK
from torch import nn

from splitfed.channel import InlineListener, connect
from splitfed.compression.reducer import View
from splitfed.cut import Cut
from splitfed.errors import CodecError, WireError
from splitfed.ledger import Ledger
from splitfed.models import build, split
from splitfed.seeds import Key
from splitfed.server.backs import Shared, Trainer
from splitfed.server.split import SplitServer
from splitfed.wire import pack

KEY = Key(0)


class Door:
    """A split server with one round open for client 4, and the client's own means to talk to it."""

    def __init__(self, folder, *overrides: str, reducer=None) -> None:
        scenario = small(*overrides)
        compression = scenario.compression
        if reducer is not None:
            compression = compression.model_copy(update={"reducer": SimpleNamespace(build=lambda: reducer)})
        self.front, back = split(build(scenario.model, 10, key=KEY), 1)
        self.cut = Cut(compression, self.front.geometry(16, 10), torch.device("cpu"))
        self.pool = Shared(Trainer(back.train(), scenario.training.server))
        self.ledger = Ledger(folder, 1)
        self.server = SplitServer(self.pool, self.cut, self.ledger, KEY, "float32")
        self.server.start_round(2, 1e-3, {4: 100})
        self.session = self.server.open(4, 2)

    def frame(self, step: int = 1, *, examples: int = 6, labels=None, client: int = 4, round: int = 2, claim=None):
        """Return a mini-batch as a client packs it, with what it packed."""
        activations = self.front(torch.rand(examples, 3, 8, 8, generator=KEY.at(step).generator()))
        attention = torch.rand(examples, self.cut.geometry.tokens, generator=KEY.generator())
        plan = self.cut.reducer.plan(View(activations.detach(), 1, lambda: attention), KEY)
        smashed = plan.reduce(activations)
        targets = plan.targets(torch.arange(examples) % 10 if labels is None else labels, 10)
        packed = self.cut.pack_step(
            plan, smashed, targets, examples if claim is None else claim, KEY, round, client, step
        )  # fmt: skip
        return packed, smashed, targets


@pytest.fixture
def door(tmp_path):
    return Door(tmp_path)


def test_the_answer_is_the_gradient_of_the_loss(door):
    back = split(build(small().model, 10, key=KEY), 1)[1]
    packed, smashed, targets = door.frame()
    reply = door.cut.unpack_gradient(door.session.handle(packed.buffer), smashed)
    leaf = smashed.detach().requires_grad_()
    loss = nn.functional.cross_entropy(back(leaf), targets)
    loss.backward()
    assert torch.equal(reply.tensors["cut_gradient"], leaf.grad)
    assert reply.meta["loss"] == loss.item()


def test_both_ends_count_alike(door):
    packed, _, _ = door.frame()
    reply = door.session.handle(packed.buffer)
    done = door.session.handle(pack("end", 2, 4, 2, {}, {"up": packed.total, "down": len(reply)}).buffer)
    end = pack("end", 2, 4, 2, {}, {"up": packed.total, "down": len(reply)})
    assert door.ledger.open.select(direction="up").sent == packed.total + end.total
    assert door.ledger.open.select(direction="down").sent == len(reply) + len(done)


@pytest.mark.parametrize("wrong", [{"up": 1, "down": 2}, {}, {"up": "many", "down": 0}])
def test_a_client_that_counts_otherwise_is_refused(door, wrong):
    door.session.handle(door.frame()[0].buffer)
    with pytest.raises(WireError, match="counts"):
        door.session.handle(pack("end", 2, 4, 2, {}, wrong).buffer)


@pytest.mark.parametrize("place", [{"step": 2}, {"step": 1, "client": 3}, {"step": 1, "round": 1}])
def test_frames_of_another_place_are_refused(door, place):
    with pytest.raises(WireError, match="is next"):
        door.session.handle(door.frame(**place)[0].buffer)


def test_a_repeated_frame_is_not_trained_twice(door):
    buffer = door.frame()[0].buffer
    door.session.handle(buffer)
    before = {n: t.clone() for n, t in door.pool.trainer.back.state_dict().items()}
    with pytest.raises(WireError, match="is next"):
        door.session.handle(buffer)
    assert all(torch.equal(before[n], t) for n, t in door.pool.trainer.back.state_dict().items())


@pytest.mark.parametrize("labels", [torch.full((6,), 10), torch.full((6,), -1)])
def test_labels_beyond_the_classes_are_refused(door, labels):
    with pytest.raises((WireError, CodecError)):
        door.session.handle(door.frame(labels=labels)[0].buffer)


@pytest.mark.parametrize("claim", [0, -1, 17, 2**40, True, "six"])
def test_a_wrong_number_of_examples_is_refused(door, claim):
    with pytest.raises(WireError, match="examples"):
        door.session.handle(door.frame(claim=claim)[0].buffer)


def test_too_many_samples_are_refused(door):
    with pytest.raises(WireError, match="not expected"):
        door.session.handle(door.frame(examples=17, claim=16)[0].buffer)


@pytest.mark.parametrize("kind", ["gradient", "done", "weights", "error"])
def test_other_kinds_are_refused(door, kind):
    with pytest.raises(WireError, match="kind"):
        door.session.handle(pack(kind, 2, 4, 1, {}).buffer)


def test_nothing_is_taken_after_the_end(door):
    door.session.handle(pack("end", 2, 4, 1, {}, {"up": 0, "down": 0}).buffer)
    with pytest.raises(WireError, match="ended"):
        door.session.handle(door.frame(2)[0].buffer)


def test_only_the_rounds_own_clients_may_open(door):
    for client, round in ((5, 2), (4, 1), (4, 3)):
        with pytest.raises(WireError, match="no part"):
            door.server.open(client, round)


def test_a_plan_of_adc_crosses_and_comes_back(tmp_path):
    door = Door(tmp_path, *ADC)
    packed, smashed, targets = door.frame(examples=16)
    assert targets.shape == (len(smashed), 10)
    reply = door.cut.unpack_gradient(door.session.handle(packed.buffer), smashed)
    assert reply.tensors["cut_gradient"].shape == smashed.shape


def test_side_tensors_cross_and_restore(tmp_path):
    """A reducer with a server half: its indices travel, and the gradient is that of the kept values alone."""
    door = Door(tmp_path, reducer=TopK(9))
    packed, smashed, targets = door.frame()
    back = split(build(small().model, 10, key=KEY), 1)[1]
    reply = door.cut.unpack_gradient(door.session.handle(packed.buffer), smashed)
    assert packed.sizes["side"].coded == 6 * 9 * 8  # targets are float32 here, so integers go as they are
    assert door.ledger.open.select(role="side").sent == packed.sizes["side"].sent

    activations = door.front(torch.rand(6, 3, 8, 8, generator=KEY.at(1).generator())).detach()
    kept = activations.flatten(1).abs().topk(9, dim=1).indices
    leaf = torch.zeros_like(activations).flatten(1).scatter(1, kept, smashed.detach()).requires_grad_()
    nn.functional.cross_entropy(back(leaf.view_as(activations)), targets).backward()
    assert torch.equal(reply.tensors["cut_gradient"], leaf.grad.gather(1, kept))


def test_what_cannot_be_sent_names_its_place(door):
    door.front.cls_token.data.fill_(float("nan"))
    with pytest.raises(CodecError, match=r"smashed at round 2, client 4, step 1 cannot be sent: .*"):
        door.frame()


def test_a_gradient_of_another_shape_is_refused(door):
    packed, smashed, _ = door.frame()
    reply = door.session.handle(packed.buffer)
    with pytest.raises(WireError, match="not expected"):
        door.cut.unpack_gradient(reply, smashed[:3])


def test_nobody_listens_after_the_end(door):
    with InlineListener(door.server) as listener, connect(listener.address, 4, 2) as stream:
        stream.exchange(door.frame()[0].buffer)
    with pytest.raises(WireError, match="nobody listens"):
        connect(listener.address, 4, 2)
