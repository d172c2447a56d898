"""What is taken of weights that come back: none that no training makes, and no update longer than a scenario says."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from helpers import small

from splitfed.compression.expect import MOST_WEIGHT, most_weight
from splitfed.errors import Diverged
from splitfed.seeds import Key
from splitfed.server.weights.differences import WeightDifferences
from splitfed.server.weights.exchange import WholeWeights
from splitfed.server.weights.guard import Guard
from splitfed.split.weights.wire import WeightWire

SHAPES = {"a": (3, 4), "b": (7,)}


def front(scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def record(weights) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(tensor)) for name, tensor in weights.items()})


@pytest.fixture(params=["whole", "whole, 8 bits", "differences"])
def exchange(request):
    """Return an exchange with a round open for client 3, given a clip, and what the client was sent."""

    def make(clip=None, weights=None):
        changes = {
            "whole": [], "whole, 8 bits": ["compression.front_weights.codec={kind: uniform, bits: 8}"],
            "differences": ["compression.front_weights.delta=true"],
        }[request.param]  # fmt: skip
        weights = front() if weights is None else weights
        wire, guard = WeightWire(weights, small(*changes).compression), Guard(clip)
        made = WeightDifferences(wire, guard) if wire.delta else WholeWeights(wire, guard=guard)
        made.open(1, [3])
        frame, _ = made.down(record(weights), 3, 1, Key(0))
        sent, _ = wire.unpack(frame.weights)

        def back(returned):
            if wire.delta:
                returned = {name: returned[name] - sent[name] for name in sent}
            packed = wire.pack(returned, Key(1), 1, 3, 1 if wire.delta else None)
            return made.up(packed.buffer, 3)[0]

        return back, sent

    return make


def test_what_training_makes_is_taken(exchange):
    back, sent = exchange()
    wanted = {name: tensor + 0.1 for name, tensor in sent.items()}
    for name, tensor in back(wanted).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0.02)


@pytest.mark.parametrize("value", [1.1e3, -1e6, 1e30, -3e38])
def test_a_single_absurd_weight_is_refused(exchange, value):
    back, sent = exchange()
    spoilt = {name: tensor.clone() for name, tensor in sent.items()}
    spoilt["b"][2] = value
    with pytest.raises(
        Diverged, match=r"^round 1, client 3: .* the largest of its weights is .*: lower training\.client"
    ):
        back(spoilt)


def test_large_weights_may_grow_to_twice_their_size(exchange):
    big = {name: tensor * 1e4 for name, tensor in front().items()}
    back, sent = exchange(weights=big)
    most = max(float(tensor.abs().max()) for tensor in sent.values())
    assert most_weight(most) == pytest.approx(2 * most)
    assert most_weight(1.0) == MOST_WEIGHT
    back({name: tensor * 1.9 for name, tensor in sent.items()})
    with pytest.raises(Diverged):
        back({name: tensor * 2.1 for name, tensor in sent.items()})


def test_an_update_is_shortened_in_its_direction(exchange):
    back, sent = exchange(clip=2.0)
    update = {name: torch.full_like(tensor, 100.0) for name, tensor in sent.items()}
    taken = back({name: sent[name] + update[name] for name in sent})
    moved = torch.cat([(taken[name] - sent[name]).flatten() for name in sent])
    assert float(moved.norm()) == pytest.approx(2.0, rel=1e-4)
    torch.testing.assert_close(moved, torch.full_like(moved, 2 / moved.numel() ** 0.5), rtol=0.02, atol=1e-3)


def test_a_short_update_is_left_alone(exchange):
    (back, sent), (unclipped, _) = exchange(clip=50.0), exchange()
    wanted = {name: tensor + 1 for name, tensor in sent.items()}
    for name, tensor in back(wanted).items():
        assert torch.equal(tensor, unclipped(wanted)[name])
