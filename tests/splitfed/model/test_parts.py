"""A model in three parts, and what a client holds of one."""

import pytest
import torch
from models import shaken, small

from splitfed.errors import ModelError
from splitfed.model.parts import Parts, split_twice, whole_state
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
