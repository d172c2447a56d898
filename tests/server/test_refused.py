"""Numbers with which no training goes on: whoever sends them is refused, and the back is as it was before."""

from dataclasses import replace

import pytest
import torch
from helpers import ADC, small
from split_server import KEY, Door, same, weights

from splitfed.compression.expect import MOST_NUMBER
from splitfed.errors import Diverged, Refused, WireError
from splitfed.server.back.pools import PerClient, Shared
from splitfed.split.bounds import largest, shortened
from splitfed.split.cut import Cut
from splitfed.wire.frame import Place, pack


def spoil(module, factor: float) -> None:
    module.register_forward_hook(lambda _, inputs, output: output * factor)


def with_nan(door, step: int) -> bytes:
    """Return a frame that no honest client can pack."""
    _, smashed, targets = door.frame(step)
    packets = door.cut.encode({"smashed": smashed.detach(), "targets": targets}, KEY, "here")
    packet, lossless = packets["smashed"]
    spoilt = torch.full(packet.shape, torch.nan).numpy().tobytes()
    packets["smashed"] = replace(packet, buffer=spoilt), lossless
    return pack("step", 2, 4, step, packets, {"examples": 6}).buffer


def trained(door) -> None:
    """Train a first mini-batch, so that the optimiser has a state that can be spoilt."""
    door.session.handle(door.frame(1)[0].buffer)


def refuses(door, buffer: bytes, why: str) -> None:
    """Hold that a frame is refused, that back and optimiser stay as they are, and that nothing is taken any more."""
    trainer = door.session.trainer
    back, optimiser = weights(trainer), trainer.state_dict()
    with pytest.raises(Refused, match=why):
        door.session.handle(buffer)
    assert same(weights(trainer), back)
    assert same(trainer.state_dict(), optimiser)
    assert all(parameter.grad is None for parameter in trainer.back.parameters())
    with pytest.raises(WireError, match="has gone on without"):
        door.session.handle(door.frame(3)[0].buffer)
    assert door.server.lost(1e9) == {4}
    assert door.server.refusal(4) is door.session.refused
    assert not door.server.settle(4, taken=True)


@pytest.mark.parametrize("pool", [Shared, PerClient])
@pytest.mark.parametrize("factor", [1e7, 1e20, 1e38])
def test_absurd_activations(pool, factor, tmp_path):
    door = Door(tmp_path, pool=pool)
    trained(door)
    spoil(door.front, factor)
    refuses(door, door.frame(2)[0].buffer, r"step 2.* smashed is .* beyond 1e\+06")


@pytest.mark.parametrize("pool", [Shared, PerClient])
def test_activations_that_are_no_numbers(pool, tmp_path):
    door = Door(tmp_path, pool=pool)
    trained(door)
    refuses(door, with_nan(door, 2), "step 2.* NaN")


def test_absurd_probabilities(tmp_path, monkeypatch):
    door = Door(tmp_path, *ADC)
    trained(door)
    honest = Cut.pack_step
    monkeypatch.setattr(Cut, "pack_step", lambda cut, plan, smashed, targets, *rest: honest(
        cut, plan, smashed, targets * 1e6, *rest))  # fmt: skip
    refuses(door, door.frame(2)[0].buffer, "a target is")


@pytest.mark.parametrize("pool", [Shared, PerClient])
@pytest.mark.parametrize("factor", [1e9, 1e38, float("nan")])
def test_a_loss_with_which_nothing_can_be_learned(pool, factor, tmp_path):
    door = Door(tmp_path, pool=pool)
    trained(door)
    spoil(door.session.trainer.back, factor)
    refuses(door, door.frame(2)[0].buffer, "the loss is")


class Steep(torch.autograd.Function):
    """The identity, with a gradient that is too steep."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1e30


@pytest.mark.parametrize("clip", ["null", "1"])
def test_a_gradient_with_which_nothing_can_be_learned(clip, tmp_path):
    """Its loss is fine; what is to be clipped may be large, but not so large that its norm is infinite."""
    door = Door(tmp_path, f"training.server.clip={clip}")
    trained(door)
    door.session.trainer.back.register_forward_hook(lambda _, inputs, output: Steep.apply(output))
    refuses(door, door.frame(2)[0].buffer, "the norm of the gradient is")


@pytest.mark.parametrize("factor", [1e8, 1e30])
def test_an_absurd_gradient_where_labels_are_private(factor, tmp_path):
    door = Door(tmp_path)  # the back's logits stand for the features that a tail goes on from
    trainer, batch = door.session.trainer, door.cut.batch(door.cut.unpack_up(door.frame()[0].buffer))
    passes = door.session.context.passes
    back, optimiser = weights(trainer), trainer.state_dict()
    features = passes.forward(trainer, batch, KEY)
    with pytest.raises(Diverged, match=r"step 1.* tail_gradient is"):
        passes.backward(trainer, batch, features, torch.full_like(features, factor))
    assert same(weights(trainer), back)
    assert same(trainer.state_dict(), optimiser)


def test_an_evaluation_refuses_absurd_activations_too(tmp_path):
    door = Door(tmp_path)
    door.server.end_round()
    with door.server.evaluation(2, {4: 6}) as evaluation:
        session = door.server.open(4, 2)
        smashed = torch.full((6, 5, 16), 1e20)
        packed = door.looks.pack(smashed, torch.arange(6), KEY, Place(2, 4, 1))
        with pytest.raises(Refused, match=r"^the evaluation of round 2, client 4, step 1: .* smashed is"):
            session.handle(packed.buffer)
        assert evaluation.lost(1e9) == {4}
        assert evaluation.settle(4) is None
        assert evaluation.refused[4] is session.refused


def test_magnitudes():
    assert largest([]) == 0
    assert largest([torch.tensor([1.0, -3.0]), torch.zeros(2, 2), torch.empty(0)]) == 3
    for bad in (torch.nan, torch.inf):
        assert not largest([torch.ones(3), torch.tensor([0.0, bad, 1.0])]) <= MOST_NUMBER


def test_samples_are_shortened_each_by_itself():
    samples = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]], [[0.0, 0.0]]])
    torch.testing.assert_close(shortened(samples, 1.0), torch.tensor([[[0.6, 0.8]], [[0.3, 0.4]], [[0.0, 0.0]]]))
    assert shortened(samples, None) is samples


def test_activations_are_clipped_before_the_back_and_their_gradient_goes_through_it(tmp_path):
    clip = small("federation.clip.smashed=0.5").federation.clip
    door, plain = Door(tmp_path, clip=clip), Door(tmp_path)
    packed, smashed, _ = door.frame()
    assert float(smashed.detach().flatten(1).norm(dim=1).min()) > 0.5
    found = door.cut.unpack_gradient(door.session.handle(packed.buffer), smashed)
    leaf = smashed.detach().requires_grad_()
    lengths = leaf.flatten(1).norm(dim=1)[:, None, None]
    logits = plain.pool.trainer.back(leaf * (0.5 / lengths))
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(6))
    loss.backward()
    torch.testing.assert_close(found.tensors["cut_gradient"], leaf.grad)
    assert found.meta["loss"] == pytest.approx(loss.item())
