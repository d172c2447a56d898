"""What a client's memory must hold, and with which chunk, mini-batch or cut it would do."""

import re

import pytest
import torch
from helpers import DEEPER, small
from torch.profiler import ProfilerActivity, profile

from splitfed import estimate
from splitfed.clients.steps import front
from splitfed.reports.costs.text import text
from splitfed.seeds import Key
from splitfed.split.assembly import assemble
from splitfed.split.client_part import ClientPart
from splitfed.split.computing.room import needed
from splitfed.wire.frame import Place

DEEP = (
    "model.args={patch_size: 8, embed_dim: 48, depth: 6, num_heads: 3}", "model.image_size=32", "model.cut=4",
    "training.batch_size=32", "training.client.optimiser={kind: sgd, lr: 0.1}",
)  # fmt: skip


def peak(run) -> int:
    """Return by how many bytes what is allocated grows at most while `run` does."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    now, most = 0, 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_chunks_take_the_memory_that_is_foretold() -> None:
    """At its peak, beside weights, within a seventh; by what torch says that it allocates."""
    scenario = small(*DEEP, "training.client.chunk=4")
    part = ClientPart.of(scenario, assemble(scenario, 10)).train()
    images, labels = torch.randn(32, 3, 32, 32), torch.zeros(32, dtype=torch.int64)

    def step() -> None:
        made = front(part, images, labels, Place(1, 0, 1), Key(0), chunk=4)
        made.backward(torch.ones_like(made))
        part.zero_grad(set_to_none=True)

    step()
    found = estimate(scenario)
    gradients = 4 * found.client.parameters
    assert peak(step) == pytest.approx(found.client.activations + gradients - images.nbytes, rel=1 / 7)
    assert found.client.activations < 0.3 * estimate(small(*DEEP)).client.activations
    again = found.operations.front / estimate(small(*DEEP)).operations.front
    assert again == pytest.approx(4 / 3, rel=0.05)  # one forward pass more


@pytest.mark.parametrize(
    "more",
    [(), ("federation.mode=fl", "training.server={}"), ("federation.labels=private",), ("training.ahead=2",),
     ("model.adapter=norms",), ("phases=[{kind: local, rounds: 1}, frozen]",), ("training.precision=bfloat16",),
     ("training.client.checkpointing=true",)],
    ids=str,
)  # fmt: skip
def test_what_is_foreseen_of_one_image_is_what_is_measured(more: tuple[str, ...]) -> None:
    scenario = small(*DEEP, "training.client.optimiser=adam", *more)
    found, need = estimate(scenario), needed(scenario, 10)
    assert need.fixed == pytest.approx(found.client.state, rel=0.001)
    assert need.activations(found.batch) == pytest.approx(found.client.activations, rel=0.05)


def test_ways_out_fit_and_the_next_does_not() -> None:
    """Each by an estimate of its own, a scenario that says no more than that."""

    def told(memory: int, *more: str) -> str:
        profile = f"federation.profiles={{phone: {{share: 1, device: {{memory: {memory}B}}}}}}"
        lines = text(estimate(small(*DEEPER, "model.cut=3", profile, *more))).splitlines()
        (line,) = [line for line in lines if line.startswith("memory, phone")]
        return line

    client = estimate(small(*DEEPER, "model.cut=3")).client
    memory = client.state + client.activations * 2 // 3
    ways = re.findall(r"(\S+) (\d+)", told(memory).split("needs: ")[1])
    assert [key for key, _ in ways] == ["training.client.chunk", "training.batch_size", "model.cut"]
    for key, value in ways:
        assert told(memory, f"{key}={value}").endswith("enough"), key
        assert not told(memory, f"{key}={int(value) + 1}").endswith("enough"), key
    assert "chunk" not in told(memory, "training.ahead=1")  # does not go with that
