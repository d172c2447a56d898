"""An auxiliary net that is fitted to the server's gradients, on data that stands still."""

from contextlib import nullcontext

import pytest
import torch
from helpers import small
from torch import nn

from splitfed.seeds import Key
from splitfed.split.assembly import assemble
from splitfed.split.auxiliary import STEPS, Auxiliary, align

DEEP = "model.args={patch_size: 4, embed_dim: 16, depth: 4, num_heads: 2, proj_drop_rate: 0.0}"


def gradient(net: nn.Module, made: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    given = made.clone().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(net(given), labels), given)[0]


@pytest.fixture
def back():
    """A back of three blocks that has learned something of its own."""
    (_, back, _) = assemble(small(DEEP), 10)
    torch.manual_seed(0)
    for parameter in back.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return back


def drawn(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = Key(number).generator()
    return torch.randn(8, 5, 16, generator=generator), torch.randint(10, (8,), generator=generator)


def plainly(_: int):
    return nullcontext()


def apart(net: nn.Module, back: nn.Module, number: int) -> float:
    wanted, own = (gradient(one, *drawn(number)) for one in (back, net))
    return float((own - wanted).square().sum() / wanted.square().sum())


def test_its_gradient_comes_nearer_to_the_servers_and_to_what_it_has_not_seen(back):
    net, before = Auxiliary(back, 1, 1), Auxiliary(back, 1, 1)
    for number in range(4):
        made, labels = drawn(number)
        found = align(net, made, labels, gradient(back, made, labels), plainly)
        assert len(found) == STEPS
        assert found[-1] < found[0]
        assert found[0] == pytest.approx(apart(before, back, 0), rel=1e-4) or number
    assert apart(net, back, 0) < apart(before, back, 0) / 2
    assert apart(net, back, 9) < apart(before, back, 9)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_net_that_is_the_back_has_nothing_to_learn(back):
    made, labels = drawn(1)
    found = align(Auxiliary(back, 3, 1), made, labels, gradient(back, made, labels), plainly)
    assert found[0] < 1e-9  # but for what fused attention rounds otherwise


def test_what_a_reducer_left_out_is_not_asked_for(back):
    """With the gradient of some tokens at zero, as nothing of them went up, the others fit as they did."""
    made, labels = drawn(1)
    wanted = gradient(back, made, labels)
    wanted[:, 3:] = 0
    found = align(Auxiliary(back, 3, 1), made, labels, wanted, plainly)
    assert found[0] < 1e-9


def test_a_gradient_that_was_rounded_to_nothing_teaches_nothing(back):
    net, (made, labels) = Auxiliary(back, 1, 1), drawn(1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert align(net, made, labels, torch.zeros_like(made), plainly) == []
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())


def test_attention_is_fused_again_afterwards(back):
    net, (made, labels) = Auxiliary(back, 1, 1), drawn(1)
    align(net, made, labels, gradient(back, made, labels), plainly)
    assert all(module.fused_attn for module in net.modules() if hasattr(module, "fused_attn"))
