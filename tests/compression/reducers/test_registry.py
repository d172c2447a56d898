import pytest
import torch
from helpers import small
from pydantic import TypeAdapter, ValidationError

from splitfed import simulate
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.adc import Adc
from splitfed.compression.reducers.base import View, meta_number
from splitfed.compression.reducers.none import NoReduction
from splitfed.compression.reducers.registry import ReducerConfig
from splitfed.compression.reducers.samples.c3sl import C3sl
from splitfed.compression.reducers.samples.merge_samples import MergeSamples
from splitfed.compression.reducers.samples.merging import strongest
from splitfed.compression.reducers.tokens.discard_tokens import DiscardTokens
from splitfed.compression.reducers.tokens.semantic_tokens import SemanticTokens
from splitfed.compression.reducers.trained.layers import IDENTITY
from splitfed.compression.reducers.values.topk import RandomTopK, TopK
from splitfed.errors import WireError
from splitfed.seeds import Key
from splitfed.testing import check_reducer

read = TypeAdapter(ReducerConfig).validate_python
GEOMETRY = Geometry(batch=10, tokens=9, width=4, prefix=3, classes=5)
SECTIONS = [
    {"kind": "none"}, {"kind": "adc", "ratio": 0.3}, {"kind": "adc", "ratio": 0.3, "pooling": "cls", "fuse": True},
    {"kind": "adc", "ratio": 0.3, "pooling": "average"}, {"kind": "merge_samples", "kept_samples": 0.5},
    {"kind": "discard_tokens", "kept_tokens": 0.5}, {"kind": "topk", "ratio": 0.2},
    {"kind": "semantic_tokens"}, {"kind": "semantic_tokens", "budget": 0.3, "drawn": None},
    {"kind": "random_topk", "ratio": 0.2, "alpha": 0.2}, {"kind": "c3sl", "r": 5},
    {"kind": "bottleneck", "width": 2}, {"kind": "ae", "width": 2},
    {"kind": "jscc", "ratio": 0.5}, {"kind": "jscc", "ratio": 0.5, "drawn_ratio": [0.25, 1], "channel": "rayleigh"},
]  # fmt: skip


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
        ({"kind": "topk", "ratio": 0.1}, TopK, False),
        ({"kind": "random_topk", "ratio": 0.1}, RandomTopK, False),
        ({"kind": "c3sl", "r": 4}, C3sl, False),
        ({"kind": "semantic_tokens"}, SemanticTokens, False),
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


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section["kind"])
def test_settings_say_whether_there_is_a_decoder(section):
    settings = read(section)
    halves = settings.build().halves(GEOMETRY, Key(0))
    assert settings.layered == (halves is not None and halves.decoder is not IDENTITY)


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


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_every_reducer_keeps_the_contract(section):
    check_reducer(read(section), GEOMETRY)


@pytest.mark.parametrize("value", [None, True, 2.0, "2", -1, 6])
def test_a_number_in_a_peers_meta_is_whole_and_in_range(value):
    with pytest.raises(WireError, match="a step whose size is"):
        meta_number({"size": value}, "size", 0, 5)
    assert meta_number({"size": 5}, "size", 0, 5) == 5


NEW = ["{kind: topk, ratio: 0.1}", "{kind: random_topk, ratio: 0.1}", "{kind: c3sl, r: 8}",
       "{kind: adc, ratio: 0.3, pooling: average, fuse: true}"]  # fmt: skip


@pytest.mark.parametrize("section", NEW)
def test_evaluation_does_not_pass_the_reducer(section, tmp_path):
    """Weights that hardly move are evaluated alike whatever is trained through."""
    still = [f"training.{side}.optimiser={{kind: sgd, lr: 1e-30}}" for side in ("client", "server")]
    losses = [
        simulate(small(*still, f"compression.reducer={reducer}", "federation.rounds=1"), runs=tmp_path).rounds[-1]
        for reducer in (section, "none")
    ]
    assert losses[0].eval_loss == losses[1].eval_loss
    assert losses[0].train_loss != losses[1].train_loss


@pytest.mark.parametrize("section", NEW)
def test_few_bits_and_a_last_batch_of_one_sample(section, tmp_path):
    coarse = "{kind: uniform, bits: 4}"
    sets = [f"compression.{role}.codec={coarse}" for role in ("smashed", "targets", "cut_gradient")]
    plan = small(f"compression.reducer={section}", *sets, "data.limit=17", "federation.clients=1")
    result = simulate(plan, runs=tmp_path)
    assert result.summary.cut_factor > 2
    assert torch.tensor([row.train_loss for row in result.rounds]).isfinite().all()
