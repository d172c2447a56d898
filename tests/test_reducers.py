from dataclasses import dataclass

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from splitfed.compression.adc import Adc
from splitfed.compression.discard_tokens import DiscardTokens
from splitfed.compression.merge_samples import MergeSamples
from splitfed.compression.merging import strongest
from splitfed.compression.none import NoReduction
from splitfed.compression.reducer import Plan, Reducer, View, expected_targets
from splitfed.compression.reducers import ReducerConfig
from splitfed.errors import WireError
from splitfed.expect import Expect, Geometry
from splitfed.seeds import Key

read = TypeAdapter(ReducerConfig).validate_python
GEOMETRY = Geometry(batch=10, tokens=9, width=4, prefix=3, classes=5)


@pytest.fixture
def batch():
    generator = Key(0).generator()
    activations = torch.randn(10, 9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    attention = torch.randn(10, 9, generator=generator).softmax(1)
    labels = torch.randint(5, (10,), generator=generator)
    return activations, attention, labels


def planned(reducer, activations, attention):
    return reducer.plan(View(activations.detach(), 3, lambda: attention), Key(1))


def within(reducer, plan, smashed, targets):
    expected = reducer.expected(GEOMETRY)
    tensors = {"smashed": smashed.float(), "targets": targets}
    tensors |= {f"side/{name}": tensor for name, tensor in plan.side.items()}
    return expected.keys() == tensors.keys() and all(
        any(e.allows(str(tensors[name].dtype).removeprefix("torch."), tuple(tensors[name].shape)) for e in alternatives)
        for name, alternatives in expected.items()
    )


def test_kinds_build_their_reducers():
    for section, kind, attention in (
        ("none", NoReduction, False),
        ({"kind": "none"}, NoReduction, False),
        ({"kind": "adc", "ratio": 0.1}, Adc, True),
        ({"kind": "merge_samples", "kept_samples": 0.5}, MergeSamples, True),
        ({"kind": "discard_tokens", "kept_tokens": 1}, DiscardTokens, True),
    ):
        reducer = read(section).build()
        assert type(reducer) is kind
        assert reducer.needs_attention is attention


@pytest.mark.parametrize(
    "section",
    [
        "adc", "huffman", {"kind": "none", "ratio": 0.1}, {"kind": "merge_samples"},
        {"kind": "merge_samples", "kept_samples": 0}, {"kind": "discard_tokens", "kept_tokens": 1.1},
        {"kind": "discard_tokens", "kept_tokens": "0.5"},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_sections_are_refused(section):
    with pytest.raises(ValidationError):
        read(section)


def test_none_is_the_identity(batch):
    activations, attention, labels = batch
    reducer = read("none").build()
    plan = planned(reducer, activations, attention)
    assert plan.reduce(activations) is activations
    assert plan.targets(labels, 5) is labels
    assert within(reducer, plan, activations, labels)


def test_merging_alone_averages_whole_samples(batch):
    activations, attention, labels = batch
    reducer = read({"kind": "merge_samples", "kept_samples": 0.5}).build()
    plan = planned(reducer, activations, attention)
    smashed, targets = plan.reduce(activations), plan.targets(labels, 5)
    assert 1 < len(smashed) <= 5
    for c in range(len(smashed)):
        members = [b for b in range(10) if int(plan.merging.assignment[b]) == c]
        torch.testing.assert_close(smashed[c], sum(activations[b] for b in members) / len(members))
        torch.testing.assert_close(targets[c], sum(torch.eye(5)[labels[b]] for b in members) / len(members))
    assert within(reducer, plan, smashed, targets)
    assert reducer.expected(GEOMETRY)["smashed"][0].dims == ((1, 5), (9, 9), (4, 4))


@pytest.mark.parametrize(("share", "count"), [(0.01, 4), (0.6, 5), (0.8, 7), (1.0, 9)])
def test_discarding_alone_keeps_registers_and_the_strongest_tokens_in_order(batch, share, count):
    activations, attention, labels = batch
    reducer = read({"kind": "discard_tokens", "kept_tokens": share}).build()
    plan = planned(reducer, activations, attention)
    smashed = plan.reduce(activations)
    gradient = torch.randn(smashed.shape, dtype=torch.float64)
    smashed.backward(gradient)
    expected_gradient = torch.zeros_like(activations)
    for b in range(10):
        ranked = sorted(range(3, 9), key=lambda i: -float(attention[b, i]))
        positions = [0, 1, 2, *sorted(ranked[: count - 3])]
        assert torch.equal(smashed[b], activations[b, positions])
        for j, i in enumerate(positions):
            expected_gradient[b, i] = gradient[b, j]
    assert torch.equal(activations.grad, expected_gradient)
    assert torch.equal(plan.targets(labels, 5), labels)
    assert within(reducer, plan, smashed, labels)


def test_equal_tokens_are_kept_from_the_front():
    assert strongest(torch.full((2, 7), 1 / 7), 4, 1).tolist() == [[0, 1, 2, 3]] * 2
    assert strongest(torch.full((2, 3), 1 / 3), 2, 3).tolist() == [[0, 1]] * 2


def test_adc_is_merging_followed_by_discarding(batch):
    activations, attention, _ = batch
    both = planned(read({"kind": "adc", "kept_samples": 0.5, "kept_tokens": 0.6}).build(), activations, attention)
    merged = planned(read({"kind": "merge_samples", "kept_samples": 0.5}).build(), activations, attention)
    centroids = merged.merging.average(attention)
    discarded = planned(
        read({"kind": "discard_tokens", "kept_tokens": 0.6}).build(), merged.reduce(activations), centroids
    )
    torch.testing.assert_close(both.reduce(activations), discarded.reduce(merged.reduce(activations)))


@dataclass(kw_only=True)
class TopKPlan(Plan):
    """Which values of each flattened sample travel; their places do, too."""

    def reduce(self, activations: Tensor) -> Tensor:
        return activations.flatten(1).gather(1, self.side["indices"])

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        return labels


class TopK(Reducer):
    """The k values of each sample with the largest magnitude; the server puts them back among zeros."""

    def __init__(self, k: int) -> None:
        self.k = k

    def plan(self, view, key):
        _, tokens, width = view.activations.shape
        indices = view.activations.flatten(1).abs().topk(self.k, dim=1).indices
        return TopKPlan(side={"indices": indices}, meta={"tokens": tokens, "width": width})

    def restore(self, smashed, side, meta):
        indices, size = side["indices"], meta["tokens"] * meta["width"]
        if indices.shape != smashed.shape or indices.min() < 0 or indices.max() >= size:
            raise WireError("indices that do not fit")
        whole = smashed.new_zeros(len(smashed), size).scatter(1, indices, smashed)
        return whole.unflatten(1, (meta["tokens"], meta["width"]))

    def expected(self, geometry):
        return {
            "smashed": (Expect.floats((1, geometry.batch), self.k),),
            "side/indices": (Expect.integers((1, geometry.batch), self.k),),
            "targets": expected_targets(geometry),
        }


def test_the_contract_carries_a_reducer_with_side_tensors_and_a_server_half(batch):
    activations, attention, labels = batch
    reducer = TopK(6)
    plan = planned(reducer, activations, attention)
    smashed = plan.reduce(activations)
    assert within(reducer, plan, smashed, plan.targets(labels, 5))
    # the server sees only what travelled, and sends back the gradient of just that
    received = smashed.detach().requires_grad_()
    restored = reducer.restore(received, plan.side, plan.meta)
    largest = activations.abs().flatten(1).sort(1, descending=True).values[:, 5:6, None]
    kept = torch.where(activations.abs() >= largest, activations, 0)
    assert torch.equal(restored, kept)
    (restored**3).sum().backward()
    assert received.grad.shape == smashed.shape
    smashed.backward(received.grad)
    torch.testing.assert_close(activations.grad, 3 * kept.detach() ** 2)
    with pytest.raises(WireError):
        reducer.restore(received, {"indices": plan.side["indices"] + 40}, plan.meta)
