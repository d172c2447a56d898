"""A model in three parts, and what a client holds of one."""

import pytest
import torch
from models import shaken, small

from splitfed.errors import ModelError
from splitfed.model.parts import Back, Front, Parts, Tail, split_twice, whole_state
from splitfed.split.client_part import ClientPart


@pytest.mark.parametrize("tail", [0, 1, 2])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_three_parts_are_the_model(tail, pool):
    vit = shaken(small(args={"depth": 4, "global_pool": pool}))
    parts = Parts(*split_twice(vit, 1, tail))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(parts.whole()(images), vit(images), rtol=0, atol=0)
    state = whole_state(*parts)
    assert list(state) == list(vit.state_dict())
    assert sum(len(part.state_dict()) for part in parts) == len(state)
    assert sorted({name.split(".")[1] for name in parts.back.state_dict()}) == [str(n) for n in range(1, 4 - tail)]
    assert {"norm.weight", "head.weight"} & parts.tail.state_dict().keys()


@pytest.mark.parametrize("tail", [None, 1])
def test_parts_that_share_blocks_are_the_model_wherever_they_are_cut(tail):
    vit = shaken(small(args={"depth": 5})).eval()
    front, back = Front(vit, 3), Back(vit, 1, tail)
    parts = Parts(front, back, torch.nn.Identity() if tail is None else Tail(vit, tail))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert list(whole_state(*parts)) == list(vit.state_dict())
    for cut in (1, 2, 3):
        one = parts.at(cut)
        torch.testing.assert_close(one.whole()(images), vit(images), rtol=0, atol=0)
        assert sum(len(part.state_dict()) for part in one) == len(vit.state_dict())
        assert [front.blocks[number] is one.front.blocks[number] for number in range(cut)] == [True] * cut
    assert parts.at(3).front is front
    assert parts.at(1).back is back
    with torch.no_grad():  # what is loaded into the front is in the back
        front.blocks[2].mlp.fc1.bias.fill_(7.0)
    assert torch.equal(parts.at(2).back.state_dict()["blocks.2.mlp.fc1.bias"], front.blocks[2].mlp.fc1.bias)


@pytest.mark.parametrize(("cut", "tail"), [(1, 3), (4, 0), (2, 2), (1, 9)])
def test_a_tail_that_leaves_the_server_nothing_is_refused(cut, tail):
    with pytest.raises(
        ModelError, match=rf"model.(cut: is {cut} and the tail has {tail} blocks.* none|tail: is {tail}).* 4"
    ):
        split_twice(small(args={"depth": 4}), cut, tail)


def test_what_a_client_holds_travels_as_one():
    one, other = (Parts(*split_twice(small(args={"depth": 4}, seed=seed), 1, 1)) for seed in (1, 2))
    held, taking = ClientPart(one.front, one.tail, "tail_weights"), ClientPart(other.front, other.tail, "tail_weights")
    assert set(held.roles()) == one.tail.state_dict().keys()
    assert set(held.travelling()) == one.front.state_dict().keys() | one.tail.state_dict().keys()
    taking.load_travelling(held.travelling())
    assert all(torch.equal(t, held.travelling()[name]) for name, t in taking.travelling().items())
    assert len(list(held.parameters())) == len(held.travelling())
