import math

import pytest
import torch
from helpers import small
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from splitfed import estimate, simulate
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.base import View
from splitfed.compression.reducers.samples.merging import kept, kept_tokens, weak
from splitfed.compression.reducers.settings import AdcConfig
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.build import build, split
from splitfed.model.settings import ModelConfig
from splitfed.seeds import Key
from splitfed.testing import cut_for, plan_for, send

CLASSES = 4


def batch(samples, tokens, width=3, seed=0, groups=5):
    """Random activations, labels and attention in a few loose groups, as k-means meets them."""
    generator = Key(seed).generator()
    activations = torch.randn(samples, tokens, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    centres = torch.randn(groups, tokens, generator=generator)[torch.randint(groups, (samples,), generator=generator)]
    attention = (centres + 0.5 * torch.randn(samples, tokens, generator=generator)).softmax(1)
    return activations, labels, attention


def slow_lloyd(points, start, iterations):
    centres = [list(row) for row in start]
    labels = None
    for _ in range(iterations + 1):
        previous, labels = labels, []
        for point in points:
            squares = [sum((a - b) ** 2 for a, b in zip(point, centre, strict=True)) for centre in centres]
            labels.append(squares.index(min(squares)))
        if labels == previous:
            break
        for c in range(len(centres)):
            members = [point for point, label in zip(points, labels, strict=True) if label == c]
            if members:
                centres[c] = [sum(column) / len(members) for column in zip(*members, strict=True)]
    return labels


def pooled(activations, attention, pooling):
    """What samples are compared by, one number at a time."""
    if pooling == "attention":
        return attention.double().tolist()
    if pooling == "cls":
        return [sample[0].tolist() for sample in activations]
    return [[sum(column) / len(sample) for column in zip(*sample, strict=True)] for sample in activations.tolist()]


def slow_adc(activations, labels, attention, ratio, prefix, key, pooling="attention", fuse=False):
    """Sections 3.1 and 3.2 of the paper, one number at a time; also which tokens each merged sample keeps."""
    samples, tokens, width = activations.shape
    share = math.sqrt(ratio)
    clusters = min(samples, max(2, int(share * samples + 1e-9)))
    count = min(tokens, max(2, prefix + 1, int(share * tokens + 1e-9)))
    rows = torch.randperm(samples, generator=key.generator())[:clusters].tolist()
    points, looks = pooled(activations, attention, pooling), attention.double().tolist()
    found = slow_lloyd(points, [points[row] for row in rows], 50)
    members = [[b for b in range(samples) if found[b] == c] for c in range(clusters)]
    smashed, targets, positions = [], [], []
    for group in filter(None, members):
        centroid = [sum(looks[b][i] for b in group) / len(group) for i in range(tokens)]
        best = sorted(range(prefix, tokens), key=lambda i: -centroid[i])[: count - prefix]
        positions.append(list(range(min(prefix, count))) + sorted(best))
        smashed.append([
            [sum(float(activations[b, i, f]) for b in group) / len(group) for f in range(width)] for i in positions[-1]
        ])  # fmt: skip
        if fuse and count < tokens:
            rest = [i for i in range(tokens) if i not in positions[-1]]
            left = sum(centroid[i] for i in rest)
            smashed[-1].append([
                sum(centroid[i] / left * sum(float(activations[b, i, f]) for b in group) / len(group) for i in rest)
                for f in range(width)
            ])  # fmt: skip
        targets.append([sum(int(labels[b]) == c for b in group) / len(group) for c in range(CLASSES)])
    return torch.tensor(smashed, dtype=torch.float64), torch.tensor(targets), positions, list(filter(None, members))


@pytest.mark.parametrize(
    ("samples", "tokens", "prefix", "ratio", "seed"),
    [
        (24, 17, 1, 0.1, 0), (24, 17, 1, 0.3, 1), (24, 17, 4, 0.1, 2), (9, 10, 1, 0.01, 3), (16, 10, 1, 0.81, 4),
        (2, 17, 1, 0.1, 5), (3, 5, 2, 0.25, 6), (30, 5, 4, 0.04, 7),
    ],
)  # fmt: skip
def test_it_is_the_papers_formulas(samples, tokens, prefix, ratio, seed):
    activations, labels, attention = batch(samples, tokens, seed=seed)
    activations.requires_grad_()
    key = Key(seed, ("adc",))
    smashed, targets, positions, members = slow_adc(activations.detach(), labels, attention, ratio, prefix, key)

    plan = AdcConfig(ratio=ratio).build().plan(View(activations.detach(), prefix, lambda: attention), key)
    reduced = plan.reduce(activations)
    torch.testing.assert_close(reduced, smashed, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plan.targets(labels, CLASSES), targets)
    assert plan.targets(labels, CLASSES).dtype == torch.float32
    assert plan.positions.tolist() == positions

    gradient = torch.randn(reduced.shape, generator=Key(seed).generator(), dtype=torch.float64)
    reduced.backward(gradient)
    expected = torch.zeros_like(activations)
    for c, group in enumerate(members):
        for b in group:
            for j, i in enumerate(positions[c]):
                expected[b, i] += gradient[c, j] / len(group)
    torch.testing.assert_close(activations.grad, expected, rtol=1e-12, atol=1e-12)
    assert samples < 9 or max(len(group) for group in members) > 1


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("pooling", ["attention", "cls", "average"])
@pytest.mark.parametrize(("samples", "tokens", "ratio"), [(24, 17, 0.1), (9, 10, 0.4), (6, 5, 0.81), (1, 8, 0.2)])
def test_pooling_and_fusing_are_what_their_words_say(pooling, fuse, samples, tokens, ratio):
    activations, labels, attention = batch(samples, tokens, seed=samples)
    key = Key(samples, ("adc",))
    smashed, targets, positions, _ = slow_adc(activations, labels, attention, ratio, 2, key, pooling, fuse)
    reducer = AdcConfig(ratio=ratio, pooling=pooling, fuse=fuse).build()
    plan = reducer.plan(View(activations, 2, lambda: attention), key)
    reduced = plan.reduce(activations)
    torch.testing.assert_close(reduced, smashed, rtol=1e-6, atol=1e-6)  # attention is float32
    torch.testing.assert_close(plan.targets(labels, CLASSES), targets)
    assert plan.positions.tolist() == positions
    assert reduced.shape[1] == len(positions[0]) + (fuse and len(positions[0]) < tokens)
    dims = reducer.expected(Geometry(samples, tokens, 3, 2, CLASSES))["smashed"][0].dims
    assert dims[1] == (reduced.shape[1], reduced.shape[1])


def test_pooling_decides_which_samples_merge():
    """Two pairs alike in attention, two others in their class token, two others in their mean."""
    activations = torch.zeros(4, 3, 1)
    activations[:, 0, 0] = torch.tensor([0.0, 9.0, 0.0, 9.0])
    activations[:, 1, 0] = torch.tensor([0.0, -9.0, 99.0, 90.0])
    attention = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2]])
    for pooling, pairs in (("attention", [0, 1, 1, 0]), ("cls", [0, 1, 0, 1]), ("average", [0, 0, 1, 1])):
        reducer = AdcConfig(kept_samples=0.5, kept_tokens=1.0, pooling=pooling).build()
        found = {
            tuple(a == b for a in plan for b in plan)
            for plan in (
                reducer.plan(View(activations, 1, lambda: attention), Key(seed)).merging.assignment.tolist()
                for seed in range(8)
            )
        }
        assert tuple(a == b for a in pairs for b in pairs) in found


def test_the_gradient_of_a_fused_token_reaches_what_it_was_made_of():
    activations, _, attention = batch(12, 9)
    reducer = AdcConfig(kept_samples=0.5, kept_tokens=0.4, fuse=True).build()
    plan = reducer.plan(View(activations, 1, lambda: attention.double()), Key(0))
    inputs = activations.clone().requires_grad_()
    assert torch.autograd.gradcheck(plan.reduce, inputs)
    plan.reduce(inputs).sum().backward()
    sizes = plan.merging.sizes[plan.merging.assignment]
    torch.testing.assert_close(inputs.grad.sum((1, 2)) / 3, (3 + 1) / sizes.double())  # weights sum to 1
    assert (inputs.grad > 0).all()


def test_fused_tokens_without_attention_weigh_the_same():
    weights = weak(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.3, 0.0]]), torch.tensor([[0, 1], [0, 1]]))
    torch.testing.assert_close(weights, torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 1, 0]]))


def test_fusing_adds_a_token_to_what_crosses():
    """3 merged samples of 4 tokens and a fused one, 3 features in float32, and 4 soft targets in float32 each."""
    activations, labels, attention = batch(6, 9)
    geometry = Geometry(6, 9, 3, 1, CLASSES)
    for fuse, tokens in ((False, 4), (True, 5)):
        section = {"kind": "adc", "kept_samples": 0.5, "kept_tokens": 0.5, "fuse": fuse}
        cut = cut_for(section, geometry)
        plan = plan_for(cut.reducer, activations, Key(0), attention)
        packed, arrived = send(cut, plan, activations, labels)
        merged = len(plan.merging.sizes)
        assert packed.sizes["smashed"].sent == 4 * merged * tokens * 3
        assert packed.sizes["targets"].sent == 4 * merged * CLASSES
        down = cut.pack_gradient(arrived.frame, arrived.smashed, 0.1, Key(0))
        assert down.sizes["cut_gradient"].sent == 4 * merged * tokens * 3


@pytest.mark.parametrize("option", ["pooling: cls", "pooling: average", "fuse: true"])
def test_a_run_with_each_option_trains(option, tmp_path):
    runs = [
        simulate(small(f"compression.reducer={{kind: adc, ratio: 0.4, {o}}}", "federation.rounds=1"), runs=tmp_path)
        for o in (option, "iterations: 50")
    ]
    assert runs[0].rounds[-1].train_loss != runs[1].rounds[-1].train_loss
    if option == "fuse: true":
        assert estimate(small("compression.reducer={kind: adc, ratio: 0.4, fuse: true}")).steps == 6
        sent = [run.totals.select(role="smashed").reduced for run in runs]
        assert sent[0] / sent[1] == pytest.approx(4 / 3, rel=0.2)  # 3 of 5 tokens, and one more


def test_the_sizes_at_the_papers_setting():
    activations, _, attention = batch(128, 197, groups=128)
    for ratio, samples, tokens in ((0.1, 40, 62), (0.5, 90, 139), (0.01, 12, 19)):
        reducer = AdcConfig(ratio=ratio).build()
        plan = reducer.plan(View(activations, 1, lambda: attention), Key(0))
        assert plan.reduce(activations).shape[1:] == (tokens, 3)
        geometry = Geometry(128, 197, 192, 1, 100)
        assert reducer.expected(geometry)["smashed"][0].dims == ((1, samples), (tokens, tokens), (192, 192))
        assert reducer.expected(geometry)["targets"][0].dims == ((1, samples), (100, 100))


def test_a_share_is_a_floor_that_float_errors_do_not_lower():
    assert 0.29 * 100 < 29
    for hundredths in range(1, 101):
        assert kept(hundredths / 100, 100, 1) == hundredths
    assert kept(math.sqrt(0.81), 10) == 9
    assert [kept(0.1, n) for n in (1, 2, 3, 29, 30)] == [1, 2, 2, 2, 3]
    assert [kept_tokens(0.1, 17, prefix) for prefix in (1, 4, 16, 17, 20)] == [2, 5, 17, 17, 17]


@given(
    full=st.integers(1, 40), part=st.integers(1, 40), tokens=st.integers(2, 20), prefix=st.integers(1, 5),
    ratio=st.floats(0.001, 1), pooling=st.sampled_from(["attention", "cls", "average"]), fuse=st.booleans(),
    seed=st.integers(0, 3),
)  # fmt: skip
def test_no_batch_leaves_the_expected_bounds(full, part, tokens, prefix, ratio, pooling, fuse, seed):
    part = min(part, full)
    activations, labels, attention = batch(part, tokens, seed=seed)
    reducer = AdcConfig(ratio=ratio, pooling=pooling, fuse=fuse).build()
    plan = reducer.plan(View(activations, prefix, lambda: attention), Key(seed))
    expected = reducer.expected(Geometry(full, tokens, 3, prefix, CLASSES))
    smashed, targets = plan.reduce(activations.float()), plan.targets(labels, CLASSES)
    assert expected["smashed"][0].allows("float32", tuple(smashed.shape))
    assert expected["targets"][0].allows("float32", tuple(targets.shape))
    assert not plan.side
    assert set(expected) == {"smashed", "targets"}
    assert smashed.isfinite().all()
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))


def test_the_last_batch_of_one_sample_stays_that_sample():
    activations, labels, attention = batch(1, 17)
    plan = AdcConfig(ratio=0.1).build().plan(View(activations, 1, lambda: attention), Key(0))
    assert torch.equal(plan.reduce(activations), activations[:, plan.positions[0]])
    assert plan.targets(labels, CLASSES).tolist() == torch.eye(CLASSES)[labels].tolist()


def test_identical_samples_become_one():
    activations, labels, attention = batch(1, 17)
    activations, attention = activations.expand(8, -1, -1), attention.expand(8, -1)
    plan = AdcConfig(ratio=0.5).build().plan(View(activations, 1, lambda: attention), Key(0))
    torch.testing.assert_close(plan.reduce(activations), activations[:1, plan.positions[0]])
    assert plan.targets(labels.expand(8), CLASSES).shape == (1, CLASSES)


@pytest.mark.parametrize("fuse", [False, True])
def test_ratio_one_keeps_everything_and_leaves_nothing_to_fuse(fuse):
    activations, labels, attention = batch(8, 17)
    plan = AdcConfig(ratio=1.0, fuse=fuse).build().plan(View(activations, 1, lambda: attention), Key(0))
    assert torch.equal(plan.reduce(activations), activations)
    assert torch.equal(plan.targets(labels, CLASSES).argmax(1), labels)


def test_autocast_does_not_narrow_the_means():
    activations, labels, attention = batch(16, 17)
    activations = activations.float()
    plan = AdcConfig(ratio=0.3, fuse=True).build().plan(View(activations, 1, lambda: attention), Key(0))
    expected = plan.reduce(activations), plan.targets(labels, CLASSES)
    assert expected[0].shape[1] == 10
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plan.reduce(activations), expected[0])
        assert torch.equal(plan.targets(labels, CLASSES), expected[1])


@pytest.mark.parametrize("registers", [0, 3])
def test_it_trains_a_split_model_through_the_cut(registers):
    args = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "reg_tokens": registers}
    config = ModelConfig(name="vit_tiny_patch16_224", cut=1, image_size=16, args=args)
    front, back = split(build(config, CLASSES, key=Key(0)), 1)
    attention, geometry = ClsAttention(front), front.geometry(12, CLASSES)
    reducer = AdcConfig(kept_samples=0.5, kept_tokens=0.4).build()
    activations = front(torch.randn(12, 3, 16, 16, generator=Key(1).generator()))
    plan = reducer.plan(View(activations.detach(), geometry.prefix, attention.read), Key(2))
    smashed = plan.reduce(activations)
    assert reducer.expected(geometry)["smashed"][0].allows("float32", tuple(smashed.shape))
    assert (plan.positions[:, : registers + 1] == torch.arange(registers + 1)).all()
    assert (plan.positions.diff(dim=1) > 0).all()
    targets = plan.targets(torch.arange(12) % CLASSES, CLASSES)
    torch.nn.functional.cross_entropy(back(reducer.restore(smashed, plan.side, plan.meta)), targets).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for half in (front, back) for p in half.parameters())


def test_shares_are_given_or_derived():
    assert AdcConfig(ratio=0.25).shares() == (0.5, 0.5)
    assert AdcConfig(kept_samples=0.3, kept_tokens=0.7).shares() == (0.3, 0.7)
    assert AdcConfig(ratio=0.1, kept_samples=0.5).shares() == (0.5, 0.2)
    assert AdcConfig(ratio=0.1, kept_tokens=0.1).shares() == (1.0, 0.1)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({}, "give ratio, or both"),
        ({"kept_samples": 0.5}, "give ratio, or both"),
        ({"ratio": 0.1, "kept_samples": 0.5, "kept_tokens": 0.2}, "two of the three"),
        ({"ratio": 0.5, "kept_tokens": 0.4}, "kept_tokens is below ratio"),
        ({"ratio": 0.5, "kept_samples": 0.4}, "kept_samples is below ratio"),
        ({"ratio": 0.0}, "greater than 0"),
        ({"ratio": 1.5}, "less than or equal to 1"),
        ({"ratio": 0.5, "iterations": 0}, "iterations"),
        ({"ratio": 0.5, "pooling": "max"}, "attention"),
        ({"ratio": 0.5, "fuse": 1}, "fuse"),
    ],
)
def test_shares_that_do_not_fit_are_refused(wrong, reason):
    with pytest.raises(ValidationError, match=reason):
        AdcConfig(**wrong)
