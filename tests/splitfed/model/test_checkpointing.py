"""A front whose blocks are computed again on the way back: the same numbers, from less memory."""

from collections.abc import Callable

import pytest
import torch
from helpers import ADC, DEEPER, small
from outcomes import outcome
from torch.profiler import ProfilerActivity, profile

from splitfed import estimate, simulate
from splitfed.errors import ScenarioError
from splitfed.model.forward import autocast, keyed_rng
from splitfed.model.parts import Front
from splitfed.seeds import Key
from splitfed.split.assembly import assemble

CPU = torch.device("cpu")
DROPS = "model.args={patch_size: 4, embed_dim: 16, depth: 4, num_heads: 2, drop_path_rate: 0.5, proj_drop_rate: 0.5}"
GATES = "compression.reducer={kind: semantic_tokens, gates: 2}"
SHORT = ("federation.rounds=1", "federation.clients=1", "data.limit=48")
DEEP = ("model.args={patch_size: 8, embed_dim: 48, depth: 6, num_heads: 3}", "model.image_size=32")


def front(*changes: str, again: bool) -> Front:
    return assemble(small(*DEEPER, *changes, f"training.client.checkpointing={str(again).lower()}"), 10).front.train()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [(), (DROPS,), (GATES,), ("model.adapter=norms",)], ids=len)
def test_no_number_changes(changes: tuple[str, ...], precision: str) -> None:
    """With dropout too, which draws again what it drew."""
    made, images = [], torch.randn(6, 3, 8, 8, generator=Key(1).generator())
    for again in (False, True):
        part = front(*changes, again=again)
        with keyed_rng(Key(2), CPU), autocast(precision, CPU):
            activations = part(images)
        activations.backward(torch.randn(activations.shape, generator=Key(3).generator()))
        learned = [p.grad for p in part.parameters() if p.requires_grad]
        assert all(gradient is not None for gradient in learned)
        made.append([activations.detach(), *learned])
    assert all(map(torch.equal, *made))


def test_a_run_comes_to_the_same(tmp_path, identity) -> None:
    """With a reducer that reads attention, which passes through the block once more, and exits that look at one."""
    exits = "model.exits={blocks: [1, 3]}"
    ran = [
        simulate(
            small(*ADC, *DEEPER, *SHORT, exits, f"training.client.checkpointing={again}"), runs=tmp_path / again
        ).folder
        for again in ("false", "true")
    ]
    one, other = map(outcome, ran)
    assert one == other


@pytest.mark.parametrize("again", ["false", "true"])
def test_the_memory_that_is_foretold_is_what_a_step_takes(again: str) -> None:
    """At its peak, beside weights and moments, within a seventh; by what torch says that it allocates."""
    wanted = (*DEEP, "model.cut=4", "training.batch_size=32", f"training.client.checkpointing={again}")
    scenario = small(*wanted, "training.client.optimiser={kind: sgd, lr: 0.1}")
    part, images = assemble(scenario, 10).front.train(), torch.randn(32, 3, 32, 32)

    def step() -> None:
        made = part(images)
        made.backward(torch.ones_like(made))
        part.zero_grad(set_to_none=True)

    step()
    client = estimate(scenario).client
    gradients = 4 * client.parameters
    assert peak(step) == pytest.approx(client.activations + gradients, rel=1 / 7)
    assert client.activations > gradients  # or it would say little


def peak(run: Callable[[], None]) -> int:
    """Return by how many bytes what is allocated grows at most while `run` does."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    now, most = 0, 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_it_takes_a_third_of_the_memory_and_one_more_forward_pass() -> None:
    kept, again = (
        estimate(small(*DEEP, "model.cut=4", f"training.client.checkpointing={again}")) for again in ("false", "true")
    )
    assert again.client.activations < 0.4 * kept.client.activations
    assert again.client.state == kept.client.state
    assert again.server == kept.server
    assert 1.2 < again.operations.client / kept.operations.client < 1.4


def test_not_through_weights_that_have_moved_on() -> None:
    with pytest.raises(ScenarioError, match="checkpointing: with training\\.ahead a mini-batch is gone back through"):
        small("training.ahead=1", "training.client.checkpointing=true")
    with pytest.raises(ScenarioError, match="training\\.server\\.checkpointing"):
        small("training.server.checkpointing=true")
