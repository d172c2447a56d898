"""The split server at its door: what it accepts, in which order, and what it answers."""

from threading import Barrier, Condition, Event, Lock, Thread

import pytest
import torch
from channels import dial, listen, losing
from helpers import ADC, small
from split_server import KEY, Door, rows, same, train, wasted, weights
from torch import nn
from waiting import LONG

from splitfed.compression.reducers.values.topk import TopK
from splitfed.errors import CodecError, Diverged, WireError
from splitfed.model.build import build, split
from splitfed.server.back.pools import PerClient, Shared, Trainer
from splitfed.server.back.turns import Turns
from splitfed.wire.channel import InlineListener, connect_inline
from splitfed.wire.frame import pack


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


def test_a_repeated_frame_is_answered_again_and_not_trained_twice(door):
    buffer = door.frame()[0].buffer
    reply = door.session.handle(buffer)
    before, counted = weights(door.pool.trainer), door.ledger.open.total
    assert door.session.handle(buffer) == reply
    assert door.server.open(4, 2).handle(bytes(bytearray(buffer))) == reply
    assert same(weights(door.pool.trainer), before)
    assert door.ledger.open.total == counted
    assert sum(row[-1] for row in wasted(door.ledger.folder)) == 2 * (len(buffer) + len(reply))
    packed = door.frame(2)[0]
    reply2 = door.session.handle(packed.buffer)
    end = pack("end", 2, 4, 3, {}, {"up": len(buffer) + packed.total, "down": len(reply) + len(reply2)}).buffer
    assert door.session.handle(end) == door.session.handle(end)
    assert wasted(door.ledger.folder)[-1] == (3, 4, "down", "envelope", len(door.session.handle(end)))


@pytest.mark.parametrize("step", [1, 3])
def test_another_frame_of_the_same_step_or_a_later_one_is_refused_and_not_trained(door, step):
    """What comes late, a stream that was superseded may bring; what comes early, no honest client sends."""
    door.session.handle(door.frame(1)[0].buffer)
    before = weights(door.pool.trainer)
    with pytest.raises(WireError, match="is next"):
        door.session.handle(door.frame(step, examples=5)[0].buffer)
    assert same(weights(door.pool.trainer), before)
    assert wasted(door.ledger.folder) == []
    assert (door.server.refusal(4) is None) == (step == 1)
    if step == 1:
        assert door.session.handle(door.frame(2)[0].buffer)
    else:
        refused(door, door.frame(2)[0].buffer)


def test_a_frame_that_failed_in_training_is_not_trained_again(door, monkeypatch):
    buffer = door.frame()[0].buffer
    monkeypatch.setattr(door.cut, "pack_gradient", lambda *_: (_ for _ in ()).throw(CodecError("NaN")))
    with pytest.raises(CodecError):
        door.session.handle(buffer)
    before = weights(door.pool.trainer)
    with pytest.raises(WireError, match="is next"):
        door.session.handle(buffer)
    assert same(weights(door.pool.trainer), before)


def refused(door, buffer: bytes) -> None:
    """Hold that nothing more is taken of client 4, and that nobody waits for it to come back."""
    with pytest.raises(WireError, match="has gone on without client 4"):
        door.server.open(4, 2).handle(buffer)
    assert door.server.lost(1e9) == {4}
    assert not door.server.settle(4, taken=True)


def test_garbage_ends_a_clients_round(door):
    door.session.handle(door.frame(1)[0].buffer)
    with pytest.raises(WireError):
        door.session.handle(b"garbage")
    assert isinstance(door.server.refusal(4), WireError)
    refused(door, door.frame(2)[0].buffer)


def test_no_more_mini_batches_are_taken_than_are_planned(door):
    door.server.start_round(2, 1e-3, {4: 104}, {4: 2})
    session = door.server.open(4, 2)
    for step in (1, 2):
        session.handle(door.frame(step)[0].buffer)
    before = weights(door.pool.trainer)
    with pytest.raises(WireError, match="a mini-batch more than the 2 that the images of client 4 make"):
        session.handle(door.frame(3)[0].buffer)
    assert same(weights(door.pool.trainer), before)
    refused(door, door.frame(3)[0].buffer)


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
    """A reducer with a server half: its gaps travel, and the gradient is that of the kept values alone."""
    door = Door(tmp_path, reducer=TopK(9 / 80))
    packed, smashed, targets = door.frame()
    back = split(build(small().model, 10, key=KEY), 1)[1]
    reply = door.cut.unpack_gradient(door.session.handle(packed.buffer), smashed)
    assert packed.sizes["side"].reduced == 6 * 9 * 8
    assert packed.sizes["side"].coded < 6 * 9  # packed, though targets are float32 here
    assert door.ledger.open.select(role="side").sent == packed.sizes["side"].sent

    activations = door.front(torch.rand(6, 3, 8, 8, generator=KEY.at(1).generator())).detach()
    kept = activations.flatten(1).abs().topk(9, dim=1).indices.sort(dim=1).values
    leaf = torch.zeros_like(activations).flatten(1).scatter(1, kept, smashed.detach()).requires_grad_()
    nn.functional.cross_entropy(back(leaf.view_as(activations)), targets).backward()
    assert torch.equal(reply.tensors["cut_gradient"], leaf.grad.gather(1, kept))


def test_what_cannot_be_sent_names_its_place(door):
    door.front.cls_token.data.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"^round 2, client 4, step 1: the training diverges, smashed is NaN"):
        door.frame()


def test_a_gradient_of_another_shape_is_refused(door):
    packed, smashed, _ = door.frame()
    reply = door.session.handle(packed.buffer)
    with pytest.raises(WireError, match="not expected"):
        door.cut.unpack_gradient(reply, smashed[:3])


def test_nobody_listens_after_the_end(door):
    with InlineListener(door.server) as listener, connect_inline(listener.address, 4, 2) as stream:
        stream.exchange(door.frame()[0].buffer)
    with pytest.raises(WireError, match="nobody listens"):
        connect_inline(listener.address, 4, 2)


def test_a_client_that_comes_back_finds_its_session(door):
    first = door.frame()[0]
    door.session.handle(first.buffer)
    door.session.close()
    assert door.server.open(4, 2) is door.session
    assert door.session.handle(door.frame(2)[0].buffer)


def test_who_has_no_stream_for_longer_than_the_grace_is_lost(door):
    assert door.server.lost(10) == set()
    door.session.close()
    door.now = 4
    door.session.close()  # harmless: it has been away since 0
    door.now = 10
    assert door.server.lost(10) == set()
    door.now = 10.1
    assert door.server.lost(10) == {4}
    door.server.open(4, 2)
    assert door.server.lost(10) == set()
    door.session.close()
    door.now = 20
    assert door.server.lost(10) == set()


def test_who_finished_is_not_lost(door):
    door.session.handle(pack("end", 2, 4, 1, {}, {"up": 0, "down": 0}).buffer)
    door.session.close()
    door.now = 1000
    assert door.server.lost(10) == set()


class Pool(PerClient):
    """Remembers what becomes of its clients."""

    def __init__(self, trainer) -> None:
        super().__init__(trainer)
        self.became: list[tuple] = []

    def commit(self, client, trainer, examples):
        self.became.append(("commit", client, examples))
        super().commit(client, trainer, examples)

    def drop(self, client, trainer):
        self.became.append(("drop", client, trainer is not None))
        super().drop(client, trainer)


def test_what_becomes_of_a_client_is_settled_once(tmp_path):
    door = Door(tmp_path, pool=Pool, clients=(4, 5, 6, 7))
    sessions = {client: door.server.open(client, 2) for client in (4, 5, 6)}
    for client in (4, 5):
        sessions[client].handle(pack("end", 2, client, 1, {}, {"up": 0, "down": 0}).buffer)
    assert door.pool.became == []  # a finished stream alone decides nothing
    asked = ((4, True), (5, False), (6, True), (7, False), (7, True), (4, True), (99, True))
    assert [door.server.settle(client, taken) for client, taken in asked] == [True] + 6 * [False]
    assert door.pool.became == [("commit", 4, 104), ("drop", 5, True), ("drop", 6, True), ("drop", 7, False)]
    door.server.end_round()
    assert len(door.pool.became) == 4


def test_nothing_is_taken_from_who_is_settled(door):
    buffer = door.frame()[0].buffer
    door.session.handle(buffer)
    before = weights(door.pool.trainer)
    door.server.settle(4, taken=False)
    for frame in (buffer, door.frame(2)[0].buffer):
        with pytest.raises(WireError, match="gone on without client 4"):
            door.session.handle(frame)
    with pytest.raises(WireError, match="no part"):
        door.server.open(4, 2)
    assert same(weights(door.pool.trainer), before)


def test_who_is_left_at_the_end_is_settled(tmp_path):
    door = Door(tmp_path, pool=Pool, clients=(4, 5))
    door.session.handle(pack("end", 2, 4, 1, {}, {"up": 0, "down": 0}).buffer)
    door.server.end_round()
    assert door.pool.became == [("drop", 4, True), ("drop", 5, False)]
    with pytest.raises(WireError):
        door.session.handle(door.frame(2)[0].buffer)


def test_settling_waits_for_the_mini_batch_in_progress(door, monkeypatch):
    inside, go, settled = Event(), Event(), Event()
    buffer, update = door.frame()[0].buffer, door.pool.trainer.update
    monkeypatch.setattr(door.pool.trainer, "update", lambda: (inside.set(), go.wait(LONG), update()))
    replies: list[bytes] = []
    training = Thread(target=lambda: replies.append(door.session.handle(buffer)))
    settling = Thread(target=lambda: (door.server.settle(4, taken=False), settled.set()))
    training.start()
    assert inside.wait(LONG)
    settling.start()
    assert not settled.wait(0.05)
    go.set()
    assert settled.wait(LONG)
    training.join(LONG)
    assert len(replies) == 1


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_stream_cut_under_a_step_trains_it_once(tmp_path, at):
    """Against a round without a cut: the same weights, the same ledger, and what came twice is in the waste."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, cut = Door(tmp_path / "whole"), Door(tmp_path / "cut")
    with listen(whole.server) as listener, dial(listener.invite(4, 2)) as stream:
        train(whole, stream, 4)
    with losing(cut.server, at) as (stream, handled):
        train(cut, stream, 4)
    assert len(handled) == 6
    assert handled[at - 1] == handled[at]
    assert same(weights(cut.pool.trainer), weights(whole.pool.trainer))
    assert rows(cut) == rows(whole)
    again = wasted(cut.ledger.folder)
    assert {row[0] for row in again} == {at}
    assert sum(row[-1] for row in again if row[2] == "up") == len(handled[at])


@pytest.mark.parametrize("at", [1, 2, 4, 6, 7])
def test_a_stream_cut_under_frames_on_their_way_trains_each_once(tmp_path, at):
    """As above, of a client whose frames do not wait for answers: several come twice, and each is trained once."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, cut = Door(tmp_path / "whole"), Door(tmp_path / "cut", ahead=2)
    with listen(whole.server) as listener, dial(listener.invite(4, 2)) as stream:
        train(whole, stream, 4, steps=6)
    with losing(cut.server, at, ahead=2) as (stream, handled):
        train(cut, stream, 4, steps=6, ahead=2)
    assert len(set(handled)) == 7 < len(handled)
    assert same(weights(cut.pool.trainer), weights(whole.pool.trainer))
    assert rows(cut) == rows(whole)
    again = [frame for number, frame in enumerate(handled) if frame in handled[:number]]
    assert sum(row[-1] for row in wasted(cut.ledger.folder) if row[2] == "up") == sum(map(len, again))
    # Answers to the frames before may have been on their way too; no more than so many were without one.
    twice = {row[0] for row in wasted(cut.ledger.folder)}
    assert len(twice) <= 3
    assert twice <= set(range(at - 2, at + 3))


def test_as_many_frames_may_come_again_as_a_client_is_ahead_and_one(tmp_path):
    door = Door(tmp_path, ahead=2)
    frames = [door.frame(step)[0].buffer for step in range(1, 5)]
    replies = [door.session.handle(frame) for frame in frames]
    before = weights(door.pool.trainer)
    assert [door.session.handle(frame) for frame in frames[1:]] == replies[1:]
    with pytest.raises(WireError, match="step 1, where 2, 4, 5 is next"):
        door.session.handle(frames[0])
    assert same(weights(door.pool.trainer), before)
    assert door.server.refusal(4) is None  # a stream that was superseded may bring it


def test_sixteen_streams_at_once_train_as_one_after_another(tmp_path):
    """`sfl-v1`: the same weights bit for bit, and the same ledger, whoever comes first."""
    clients = tuple(range(16))
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    one = Door(tmp_path / "one", pool=PerClient, clients=clients)
    for client in clients:
        with InlineListener(one.server) as listener, connect_inline(listener.address, client, 2) as stream:
            train(one, stream, client)
    steps, lock = [], Lock()

    def on_step(round: int, client: int) -> None:
        assert lock.acquire(blocking=False), "two threads report at once"
        steps.append(client)
        lock.release()

    many = Door(tmp_path / "many", pool=PerClient, clients=clients, at_once=4, on_step=on_step)
    barrier = Barrier(len(clients))

    def run(client: int) -> None:
        with dial(listener.invite(client, 2)) as stream:
            barrier.wait(LONG)
            train(many, stream, client)

    with listen(many.server, streams=16) as listener:
        threads = [Thread(target=run, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(steps) == sorted(4 * clients)
    for door in (one, many):
        for client in reversed(clients):
            door.server.settle(client, taken=True)
        door.server.end_round()
    assert same(weights(many.pool.trainer), weights(one.pool.trainer))
    assert rows(many) == rows(one)


def test_turns_are_taken_in_order_and_by_no_more_than_allowed():
    for at_once in (1, 3):
        turns, inside, most, order, lock, go = Turns(at_once), [0], [0], [], Lock(), Event()

        def work(number: int, turns=turns, inside=inside, most=most, order=order, lock=lock, go=go) -> None:
            with turns:
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    order.append(number)
                assert go.wait(LONG)
                with lock:
                    inside[0] -= 1

        threads = [Thread(target=work, args=(number,)) for number in range(9)]
        for number, thread in enumerate(threads):
            thread.start()
            # It has come: only the queue itself knows that a thread stands in it, and nothing else asks.
            while len(turns._waiting) + inside[0] < number + 1:
                thread.join(0.001)
        go.set()
        for thread in threads:
            thread.join(LONG)
        assert most[0] == at_once
        if at_once == 1:
            assert order == list(range(9))


def training_at_once(door, monkeypatch, others: float) -> int:
    """Train a mini-batch of four clients, each in a thread, with updates that wait so many seconds for all to be there;
    return how many trained at the same time, at most."""
    inside, most, changed, update = 0, 0, Condition(), Trainer.update

    def slow(trainer) -> None:
        nonlocal inside, most
        with changed:
            inside += 1
            most = max(most, inside)
            changed.notify_all()
            changed.wait_for(lambda: most == 4, others)
        update(trainer)
        with changed:
            inside -= 1

    monkeypatch.setattr(Trainer, "update", slow)
    sent = [(door.server.open(client, 2), door.frame(client=client)[0].buffer) for client in range(4)]
    threads = [Thread(target=session.handle, args=(buffer,)) for session, buffer in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return most


@pytest.mark.parametrize(
    ("pool", "overrides", "most"),
    [(Shared, [], 1), (PerClient, ["model.args.proj_drop_rate=0.1"], 1), (PerClient, [], 4)],
    ids=["one back", "draws", "copies"],
)
def test_one_trains_at_a_time_where_two_would_meet_whatever_is_asked_for(tmp_path, monkeypatch, pool, overrides, most):
    """Two would meet in a shared back, or in torch's global generator."""
    door = Door(tmp_path, *overrides, pool=pool, clients=range(4), at_once=4)
    assert training_at_once(door, monkeypatch, others=LONG if most == 4 else 0.1) == most
