"""Joint steps of parallel split learning: who is waited for, what each client gets back, and that nobody hangs."""

from threading import Condition, Event, Thread
from types import SimpleNamespace

import pytest
import torch
from channels import dial, listen
from helpers import ADC, small
from split_server import KEY, Door, rows, same, train, weights
from torch import nn
from waiting import LONG

from splitfed.engines.compute_lock import Baton
from splitfed.errors import Refused, WireError
from splitfed.model.build import build, split
from splitfed.server.back import joint_steps
from splitfed.server.back.passes import Passes
from splitfed.server.back.pools import Together
from splitfed.wire.channel import InlineStream
from splitfed.wire.frame import pack

SGD = ["training.server.optimiser={kind: sgd, lr: 0.1}"]


class Trio(Door):
    """A round of psl for clients 4, 5 and 6, with as many images a step as each number says."""

    def __init__(self, folder, *overrides: str, patience: float | None = None) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, *overrides, pool=Together, clients=(4, 5, 6), patience=patience)
        self.front.eval()  # what it sends must repeat
        self.sessions = {client: self.server.open(client, 2) for client in (4, 5, 6)}
        self.baton = Baton()

    def sent(self, client: int, step: int = 1):
        """Return what a client sends: other images than the others', and another number of them."""
        return self.frame(step, client=client, examples=client)

    def send(self, client: int, step: int = 1) -> SimpleNamespace:
        """Send a client's mini-batch in a thread, and return once it waits for its joint step, or that step is done.
        Its `reply` or `error` is there when the thread has ended."""
        found, buffer = SimpleNamespace(reply=None, error=None), self.sent(client, step)[0].buffer
        begun = Event()

        def run() -> None:
            try:
                with self.baton:  # which it gives away while it waits
                    begun.set()
                    found.reply = self.sessions[client].handle(buffer)
            except Exception as error:
                found.error = error

        found.thread = Thread(target=run, daemon=True)
        found.thread.start()
        assert begun.wait(LONG)
        with self.baton:
            return found

    def without_six(self) -> None:
        """Train a first step of 4 and 5, as 6 has hung up before it sent anything; it may come back."""
        self.sessions[6].close()
        done(self.send(4), self.send(5))


def done(*sent: SimpleNamespace) -> list[bytes]:
    for one in sent:
        one.thread.join(LONG)
        assert one.error is None
        assert one.reply is not None, "it still waits"
    return [one.reply for one in sent]


def test_a_joint_step_is_one_large_batch_and_each_gets_the_gradient_of_its_own_loss(tmp_path):
    trio = Trio(tmp_path, *SGD)
    replies = done(*[trio.send(client) for client in (6, 4, 5)])
    back = split(build(small().model, 10, key=KEY), 1)[1].train()
    optimiser = torch.optim.SGD(back.parameters(), lr=1e-3)  # the round's rate
    frames = {client: trio.sent(client) for client in (4, 5, 6)}
    for client, reply in zip((6, 4, 5), replies, strict=True):
        _, smashed, targets = frames[client]
        leaf = smashed.detach().requires_grad_()
        loss = nn.functional.cross_entropy(back(leaf), targets)
        (gradient,) = torch.autograd.grad(loss, leaf)
        found = trio.cut.unpack_gradient(reply, smashed)
        torch.testing.assert_close(found.tensors["cut_gradient"], gradient)
        assert found.meta["loss"] == pytest.approx(loss.item(), rel=1e-5)
    inputs, labels = (torch.cat([frames[client][place] for client in (4, 5, 6)]) for place in (1, 2))
    nn.functional.cross_entropy(back(inputs.detach()), labels).backward()
    optimiser.step()
    for name, tensor in trio.pool.trainer.back.state_dict().items():
        torch.testing.assert_close(tensor, back.state_dict()[name], msg=name)


def test_who_comes_first_makes_no_difference(tmp_path):
    """Bit for bit, in the back, in what each gets, and in the ledger; with dropout in the back and merged samples."""
    found = []
    for number, order in enumerate([(4, 5, 6), (6, 5, 4), (5, 6, 4)]):
        trio = Trio(tmp_path / str(number), *ADC, "model.args.proj_drop_rate=0.1")
        replies = {}
        for step in (1, 2):
            sent = {client: trio.send(client, step) for client in order}
            replies[step] = dict(sorted(zip(sent, done(*sent.values()), strict=True)))
        found.append((replies, rows(trio), weights(trio.pool.trainer)))
    for replies, counted, back in found[1:]:
        assert replies == found[0][0]
        assert counted == found[0][1]
        assert same(back, found[0][2])


def test_inputs_of_different_lengths_make_one_step(tmp_path):
    """Each is one group, and the losses are weighed as if they were one batch."""
    trio = Trio(tmp_path, *SGD)
    back, passes = trio.pool.trainer.back, Passes(trio.cut, "float32", shared=True, draws=False, at_once=1)
    before = weights(trio.pool.trainer)
    clients = {4: 5, 5: 3, 6: 5}  # tokens of each
    batches = [
        SimpleNamespace(
            frame=SimpleNamespace(client=client, meta={}, place="here"), side={}, answered=True, reducer=None,
            lengths=None, examples=client,
            smashed=torch.randn(client, tokens, 16, generator=KEY.at(client).generator()), targets=torch.arange(client),
        )
        for client, tokens in clients.items()
    ]  # fmt: skip
    outcomes = passes.train(trio.pool.trainer, batches, KEY)
    whole = split(build(small().model, 10, key=KEY), 1)[1].train()
    whole.load_state_dict(before)
    total = 0.0
    for batch, (gradient, loss) in zip(batches, outcomes, strict=True):
        leaf = batch.smashed.detach().requires_grad_()
        own = nn.functional.cross_entropy(whole(leaf), batch.targets)
        total = total + own * batch.examples / 15
        torch.testing.assert_close(gradient, torch.autograd.grad(own, leaf, retain_graph=True)[0])
        assert loss == pytest.approx(own.item(), rel=1e-5)
    total.backward()
    for (name, parameter), after in zip(whole.named_parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(after.detach(), (parameter - 1e-3 * parameter.grad).detach(), msg=name)


def test_who_finishes_or_is_lost_or_never_came_holds_up_nobody(tmp_path):
    trio = Trio(tmp_path)
    trio.sessions[4].handle(pack("end", 2, 4, 1, {}, {"up": 0, "down": 0}).buffer)
    five = trio.send(5)
    assert five.reply is None  # it waits for 6
    trio.server.settle(6, taken=False)  # it never sent anything
    done(five)
    assert not trio.server.settle(5, taken=True)  # it had not finished
    with pytest.raises(WireError, match="gone on without client 5"):
        trio.sessions[5].handle(trio.sent(5, 2)[0].buffer)


def test_settling_a_client_that_waits_wakes_it_and_does_not_hang(tmp_path):
    trio = Trio(tmp_path)
    before = weights(trio.pool.trainer)
    four, five = trio.send(4), trio.send(5)
    settling = Thread(target=lambda: trio.server.settle(4, taken=False), daemon=True)
    settling.start()
    settling.join(LONG)
    four.thread.join(LONG)
    assert not settling.is_alive()
    assert isinstance(four.error, WireError)
    assert same(weights(trio.pool.trainer), before)
    done(five, trio.send(6))


def test_a_late_client_joins_the_next_step(tmp_path, monkeypatch):
    trio, steps, train = Trio(tmp_path), [], Passes.train
    trio.without_six()

    def spy(passes, trainer, batches, key):
        steps.append([batch.frame.client for batch in batches])
        return train(passes, trainer, batches, key)

    monkeypatch.setattr(Passes, "train", spy)
    late = trio.send(6)  # its first step, where the others are at their second
    done(late, trio.send(5, 2), trio.send(4, 2))
    assert steps == [[4, 5, 6]]


def test_who_was_missed_is_not_waited_for_until_it_is_back(tmp_path):
    trio = Trio(tmp_path)
    trio.without_six()
    done(trio.send(4, 2), trio.send(5, 2))  # it would hang
    late = trio.send(6)
    done(trio.send(4, 3), trio.send(5, 3), late)
    four, five = trio.send(4, 4), trio.send(5, 4)
    assert four.reply is five.reply is None  # now it is
    done(trio.send(6, 2), four, five)


def test_a_client_that_has_died_unnoticed_costs_its_patience_once(tmp_path, monkeypatch):
    """By a clock that moves when it is told to, which those who wait look at again and again."""
    clock = SimpleNamespace(now=100.0)

    class Looking(Condition):
        def wait(self, timeout=None):
            return super().wait(0.01)

    monkeypatch.setattr(joint_steps, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(joint_steps, "Condition", Looking)
    trio = Trio(tmp_path, patience=2.5)
    four, five = trio.send(4), trio.send(5)
    clock.now += 2.4
    four.thread.join(0.1)
    assert four.reply is five.reply is None
    clock.now += 0.2
    done(four, five)
    for step in (2, 3):
        done(trio.send(4, step), trio.send(5, step))  # they would wait: the clock stands


def test_a_step_that_fails_fails_all_of_it_and_the_next_one_is_trained(tmp_path, monkeypatch):
    trio = Trio(tmp_path)
    update = trio.pool.trainer.update
    monkeypatch.setattr(trio.pool.trainer, "update", lambda: (_ for _ in ()).throw(MemoryError("full")))
    sent = [trio.send(client) for client in (4, 5, 6)]
    for one in sent:
        one.thread.join(LONG)
        assert isinstance(one.error, MemoryError)
    monkeypatch.setattr(trio.pool.trainer, "update", update)
    done(*[trio.send(client, 2) for client in (4, 5, 6)])


def test_only_the_wave_is_waited_for(tmp_path):
    trio = Trio(tmp_path)
    trio.server.start_wave([4, 6])
    done(trio.send(4), trio.send(6))
    with pytest.raises(WireError, match="gone on without client 5"):
        trio.sessions[5].handle(trio.sent(5)[0].buffer)
    trio.server.start_wave([5])
    done(trio.send(5, 2))


def test_over_grpc_as_in_one_process(tmp_path):
    """Three clients with streams of their own: the same back and the same rows as without a network."""
    trio, near = Trio(tmp_path / "far"), Trio(tmp_path / "near")

    def run(client: int) -> None:
        with dial(listener.invite(client, 2)) as stream:
            train(trio, stream, client)

    with listen(trio.server) as listener:
        threads = [Thread(target=run, args=(client,)) for client in (4, 5, 6)]
        direct = {client: InlineStream(near.sessions[client]) for client in (6, 5, 4)}
        threads += [Thread(target=train, args=(near, stream, client)) for client, stream in direct.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert same(weights(trio.pool.trainer), weights(near.pool.trainer))
    assert rows(trio) == rows(near)
    assert all(session.finished for session in trio.sessions.values())


@pytest.mark.parametrize("how", ["activations", "loss"])
def test_a_joint_step_goes_on_with_the_others(how, tmp_path):
    """The back, and what the others hear, are as if the client had not been there."""
    without, trio = Trio(tmp_path / "without", *SGD), Trio(tmp_path / "with", *SGD)
    without.server.settle(5, taken=False)
    expected = done(without.send(4), without.send(6))
    if how == "activations":
        hook = trio.front.register_forward_hook(lambda _, inputs, output: output * 1e20)
        spoilt = trio.send(5)
        hook.remove()
    else:  # of five images alone: those of client 5
        big = torch.tensor(1e30)
        trio.pool.trainer.back.get_submodule("decoder").register_forward_hook(
            lambda _, inputs, output: output * (big if len(output) == 5 else 1)
        )
        spoilt = trio.send(5)
    assert done(trio.send(4), trio.send(6)) == expected
    spoilt.thread.join(LONG)
    assert isinstance(spoilt.error, Refused)
    assert same(weights(trio.pool.trainer), weights(without.pool.trainer))
    assert done(trio.send(4, 2), trio.send(6, 2)) == done(without.send(4, 2), without.send(6, 2))
