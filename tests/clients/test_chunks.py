"""A mini-batch that a client computes a chunk at a time: the same gradients, from less memory."""

from pathlib import Path

import pytest
import torch
from helpers import DEEPER, few, small, table
from models import newest
from outcomes import data_rows

from splitfed import Scenario, simulate
from splitfed.clients.steps import WholeStep, front
from splitfed.errors import ModelError, ScenarioError
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.forward import draws, keyed_rng
from splitfed.seeds import Key
from splitfed.split.assembly import assemble, check_model
from splitfed.split.client_part import ClientPart
from splitfed.split.cut import Cut
from splitfed.wire.frame import Place

CPU = torch.device("cpu")
DROPS = "model.args={patch_size: 4, embed_dim: 16, depth: 4, num_heads: 2, drop_path_rate: 0.5, proj_drop_rate: 0.5}"
EXITS = "model.exits={blocks: [1, 2], weight: 0.7}"
IMAGES = torch.randn(11, 3, 8, 8, generator=Key(1).generator())
LABELS = torch.arange(11) % 10
SGD = [f"training.{side}.optimiser={{kind: sgd, lr: 0.1}}" for side in ("client", "server")]


def part_of(*changes: str) -> tuple[ClientPart, Scenario]:
    plan = small(*DEEPER, *changes)
    return ClientPart.of(plan, assemble(plan, 10)).train(), plan


def learned(part: ClientPart) -> list[torch.Tensor]:
    return [p.grad.clone() for p in part.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "changes", [(), (EXITS,), (EXITS, "training.client.checkpointing=true"), ("model.adapter=norms",)], ids=str
)
def test_a_front_learns_what_it_learns_at_once(changes: tuple[str, ...]) -> None:
    """Exits too, whose loss is a mean over all images, and in any division of the mini-batch."""
    part, _ = part_of(*changes)
    made = []
    for chunk in (None, 4, 1, 11, 64):
        activations = front(part, IMAGES, LABELS, Place(1, 0, 1), Key(5), chunk=chunk)
        activations.backward(torch.randn(activations.shape, generator=Key(3).generator()))
        made.append([activations.detach(), *learned(part)])
        part.zero_grad(set_to_none=True)
    assert len(made[0]) > 4
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=1e-5, atol=1e-5)


def test_a_chunk_draws_on_the_way_back_what_it_drew() -> None:
    """Its masks are those of its activations: with the same draws, autograd finds the same gradients."""
    part, _ = part_of(DROPS)
    assert draws(part)
    outgoing = torch.randn(11, 5, 16, generator=Key(3).generator())
    with keyed_rng(Key(2), CPU):
        made = front(part, IMAGES, LABELS, Place(1, 0, 1), Key(5), chunk=4)
    made.backward(outgoing)
    found = learned(part)
    part.zero_grad(set_to_none=True)
    with keyed_rng(Key(2), CPU):
        plain = torch.cat([part.front(some) for some in IMAGES.split(4)])
    plain.backward(outgoing)
    assert torch.equal(made, plain)
    torch.testing.assert_close(found, learned(part), rtol=1e-6, atol=1e-6)


def test_attention_is_read_of_all_chunks() -> None:
    part, _ = part_of()
    attention = ClsAttention(part.front)
    with torch.no_grad():
        front(part, IMAGES, LABELS, Place(1, 0, 1), Key(5), attention=attention)
        expected = attention.read()
    for chunk in (4, 11):
        made = front(part, IMAGES, LABELS, Place(1, 0, 1), Key(5), chunk=chunk, attention=attention)
        torch.testing.assert_close(attention.read(), expected)
        made.sum().backward()  # each chunk passes once more


def test_a_whole_model_sums_its_gradients() -> None:
    found = []
    for chunk in (None, 4):
        part, plan = part_of("federation.mode=fl", "training.server={}", "model.exits={blocks: [1, 3]}")
        cut = Cut.of(plan, part.front.geometry(16, 10), CPU)
        loss, *_ = WholeStep(part, cut, "float32", chunk)(None, IMAGES, LABELS, Key(5), Place(1, 0, 1))
        found.append([torch.tensor(loss), *learned(part)])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def saved(part: ClientPart, chunk: int | None) -> int:
    """Return the bytes that a forward pass saves for backward and that are no weights, as torch tells them."""
    known, kept = {p.untyped_storage().data_ptr() for p in part.parameters()}, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        made = front(part, IMAGES, LABELS, Place(1, 0, 1), Key(5), chunk=chunk)
    assert made.requires_grad
    return sum(kept.values())


def test_nothing_is_saved_that_is_computed_again() -> None:
    part, _ = part_of()
    assert saved(part, None) > 10 * IMAGES.nbytes
    assert saved(part, 4) <= IMAGES.nbytes + LABELS.nbytes


WAYS = {
    "exits": [EXITS, "federation.mode=psl", "federation.clients=2"],
    "private": ["federation.labels=private", "model.tail=1", "evaluation.held_out=0.5", "evaluation.every=1"],
    "phases": ["phases=[{kind: local, rounds: 1, upload_every: 2}, frozen]", "federation.rounds=2"],
    "merging": ["compression.reducer={kind: adc, ratio: 0.4}"],
}


@pytest.mark.parametrize("way", few(WAYS))
def test_a_run_comes_to_the_same(way: str, tmp_path: Path) -> None:
    """In each way to train, with as many numbers in the same frames."""
    found = []
    for chunk in ("null", "6"):
        tiny = ("federation.clients=1", "data.limit=40", "federation.rounds=1")
        plan = small(*DEEPER, *SGD, *tiny, *WAYS[way], f"training.client.chunk={chunk}")
        found.append(simulate(plan, runs=tmp_path / chunk).folder)
    one, other = ([row | {"sent_bytes": ""} for row in data_rows(folder)] for folder in found)
    assert one == other
    one, other = map(newest, found)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not all(map(torch.equal, one.values(), other.values()))  # or no chunk was computed
    one, other = (float(table(folder / "metrics.csv")[-1]["train_loss"]) for folder in found)
    assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["training.ahead=1"], "chunk: with training.ahead a mini-batch is gone back through when"),
        (["phases=[{kind: local, align_every: 2}]"], "chunk: with align_every in phases the auxiliary net is fitted"),
        (["compression.reducer=semantic_tokens"], "chunk: the gates of the reducer semantic_tokens open by all"),
        (["training.server.chunk=4"], "training.server.chunk: unknown key"),
    ],
    ids=str,
)
def test_where_a_mini_batch_is_needed_as_a_whole(changes: list[str], reason: str) -> None:
    with pytest.raises((ScenarioError, ModelError), match=reason):
        check_model(small("training.client.chunk=4", *changes))
