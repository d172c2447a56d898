"""Learning rates of what one side trains."""

from pathlib import Path

import pytest
import torch
from helpers import small
from models import newest
from torch import nn

from splitfed import Scenario, simulate
from splitfed.errors import ScenarioError
from splitfed.model.exits.heads import classifiers
from splitfed.model.optim import set_lr
from splitfed.split.assembly import assemble
from splitfed.split.auxiliary import Auxiliary
from splitfed.split.client_part import ClientPart

HEAD = "training.head_lr=0.5"
STILL, FL = "{optimiser: {kind: sgd, lr: 1e-30}}", ("federation.mode=fl", "training.server={}")
PRIVATE = ("federation.labels=private", "model.args.depth=3")


def rates(scenario: Scenario, part: nn.Module) -> dict[str, float]:
    """Return the rate of each parameter of a part, by its name, halfway through a schedule that halves it."""
    optimiser = scenario.training.client.optimiser_for(part, scenario.training.head_lr)
    set_lr(optimiser, scenario.training.client.optimiser.lr / 2)
    found = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    numbered = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert numbered == [id(p) for p in part.parameters() if p.requires_grad]  # moments are numbered so
    return {name: found[id(p)] for name, p in part.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("more", [(), PRIVATE, FL], ids=["shared", "private", "fl"])
def test_a_head_learns_at_its_rate_wherever_it_is(more) -> None:
    scenario = small(HEAD, *more)
    parts = assemble(scenario, 10)
    for part in (ClientPart.of(scenario, parts), parts.back):
        for name, rate in rates(scenario, part).items():
            wanted = 0.5 if name.split(".")[-2:] in (["head", "weight"], ["head", "bias"]) else 1e-3
            assert rate == pytest.approx(wanted / 2), name


def test_heads_of_exits_and_of_an_auxiliary_net_learn_at_it_too() -> None:
    scenario = small(HEAD, "model.exits={blocks: [1]}")
    parts = assemble(scenario, 10)
    part = ClientPart.of(scenario, parts).with_auxiliary(Auxiliary(parts.back, 1, 1))
    quick = {name for name, rate in rates(scenario, part).items() if rate > 0.1}
    assert quick == {name for name, _ in part.named_parameters() if "head." in name or "exits." in name}
    assert {name.split(".")[0] for name in quick} == {"front", "beside"}


def test_without_a_rate_of_its_own_a_head_is_one_of_the_group() -> None:
    scenario = small()
    back = assemble(scenario, 10).back
    (group,) = scenario.training.server.optimiser_for(back, scenario.training.head_lr).param_groups
    assert len(group["params"]) == len(list(back.parameters()))
    assert len(list(classifiers(back))) == 2


@pytest.mark.parametrize("more", [
    ("federation.mode=sfl-v1",), ("federation.mode=psl",), FL, PRIVATE, ("phases=[frozen]", "memory={disk: 1MB}"),
], ids=lambda more: more[0])  # fmt: skip
def test_what_else_is_still_the_head_learns(more, tmp_path: Path) -> None:
    server = () if more == FL else (f"training.server={STILL}",)
    scenario = small(HEAD, "federation.rounds=2", f"training.client={STILL}", *server, *more)
    found = newest(simulate(scenario, runs=tmp_path, observers=()).folder)
    start = {name: tensor for part in assemble(scenario, 10) if part for name, tensor in part.state_dict().items()}
    changed = {name for name, tensor in found.items() if (tensor - start[name]).abs().max() > 1e-4}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize("rate", ["0", "-1", "fast"])
def test_a_rate_that_is_none_is_refused(rate) -> None:
    with pytest.raises(ScenarioError, match=r"training\.head_lr: must be"):
        small(f"training.head_lr={rate}")


def test_an_optimiser_of_other_groups_reads_the_same_moments() -> None:
    """A run that goes on with another `head_lr` has the moments that it had."""
    scenario = small(HEAD)
    back = assemble(scenario, 10).back
    one, other = (scenario.training.server.optimiser_for(back, rate) for rate in (None, 0.5))
    for parameter in back.parameters():
        parameter.grad = torch.ones_like(parameter)
    one.step()
    other.load_state_dict({"state": one.state_dict()["state"], "param_groups": other.state_dict()["param_groups"]})
    for parameter in back.parameters():
        assert other.state[parameter]["exp_avg"].equal(one.state[parameter]["exp_avg"])
