import math

import numpy as np
import pytest
import torch
from helpers import LABEL_BYTES, PLAIN, small, table
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splitfed import estimate, simulate
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.registry import ReducerConfig
from splitfed.compression.reducers.values.topk import RandomTopK, TopK, first_largest
from splitfed.errors import Diverged, WireError
from splitfed.seeds import Key
from splitfed.testing import arrive, assert_split_equals_whole, cut_for, plan_for, send
from splitfed.wire.frame import Place

read = TypeAdapter(ReducerConfig).validate_python
GEOMETRY = Geometry(batch=6, tokens=5, width=8, prefix=1, classes=4)
KINDS = [{"kind": "topk", "ratio": 0.2}, {"kind": "random_topk", "ratio": 0.2, "alpha": 0.3}]


def batch(samples=6, tokens=5, width=8, seed=0, dtype=torch.float64):
    generator = Key(seed).generator()
    activations = torch.randn(samples, tokens, width, generator=generator, dtype=dtype)
    return activations, torch.randint(4, (samples,), generator=generator)


def sorted_places(magnitudes, count):
    """The top k by a full sort, the first of equal ones first."""
    order = np.argsort(-magnitudes, axis=1, kind="stable")
    return np.sort(order[:, :count], axis=1)


@given(
    samples=st.integers(1, 5), size=st.integers(1, 40), share=st.floats(0.01, 1), levels=st.integers(1, 50),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_the_largest_are_those_of_a_sort_and_of_equal_ones_the_first(samples, size, share, levels, seed):
    scores = np.random.default_rng(seed).integers(0, levels, (samples, size)).astype(np.float32)
    count = max(1, int(share * size))
    assert first_largest(torch.from_numpy(scores), count).tolist() == sorted_places(scores, count).tolist()


def test_topk_keeps_the_largest_magnitudes_and_the_server_fills_in_zeros():
    activations, labels = batch()
    reducer = read(KINDS[0]).build()
    plan = plan_for(reducer, activations, Key(0))
    flat = activations.flatten(1).numpy()
    places = sorted_places(np.abs(flat.astype(np.float32)), 8)
    smashed = plan.reduce(activations)
    np.testing.assert_array_equal(smashed, np.take_along_axis(flat, places, 1))
    whole = np.zeros_like(flat)
    np.put_along_axis(whole, places, np.take_along_axis(flat, places, 1), 1)
    np.testing.assert_array_equal(reducer.restore(smashed, plan.side, plan.meta), whole.reshape(activations.shape))
    assert plan.targets(labels, 4) is labels


@pytest.mark.parametrize("section", KINDS, ids=lambda section: section["kind"])
def test_the_gradient_at_the_client_is_that_of_the_whole_model(section):
    activations, _ = batch()
    reducer = read(section).build()
    plan = plan_for(reducer, activations, Key(1))
    weights = torch.randn(5, 8, generator=Key(2).generator(), dtype=torch.float64)
    gradient = assert_split_equals_whole(reducer, plan, activations, lambda x: ((x * weights).tanh() ** 2).sum())
    assert gradient.shape == (6, 8)
    inputs = activations.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reducer.restore(plan.reduce(x), plan.side, plan.meta), inputs)
    assert torch.autograd.gradcheck(lambda s: reducer.restore(s, plan.side, plan.meta), plan.reduce(inputs))


@pytest.mark.parametrize("section", KINDS, ids=lambda section: section["kind"])
def test_bytes_are_the_values_and_the_bits_of_the_largest_gap(section):
    activations, labels = batch(dtype=torch.float32)
    cut = cut_for(section, GEOMETRY)
    plan = plan_for(cut.reducer, activations, Key(3))
    packed, arrived = send(cut, plan, activations, labels)
    places = plan.places.tolist()
    gaps = [b - a - 1 for row in places for a, b in zip([-1, *row], row, strict=False)]
    bits = max(1, max(gaps).bit_length())
    values, side = 4 * 6 * 8, 1 + math.ceil(6 * 8 * bits / 8)
    assert {role: sizes.sent for role, sizes in packed.sizes.items()} == {
        "smashed": values, "side": side, "targets": LABEL_BYTES * 6,
    }  # fmt: skip
    assert packed.total == len(packed.buffer) == values + side + LABEL_BYTES * 6 + packed.envelope
    assert packed.envelope < 256
    restored = cut.reducer.restore(arrived.smashed, arrived.side, arrived.frame.meta)
    kept = torch.zeros(6, 40).scatter(1, plan.places, activations.flatten(1).gather(1, plan.places))
    assert torch.equal(restored, kept.view(6, 5, 8))
    down = cut.pack_gradient(arrived.frame, torch.ones_like(arrived.smashed), 0.5, Key(4))
    assert down.sizes["cut_gradient"].sent == values
    assert cut.unpack_gradient(down.buffer, plan.reduce(activations)).tensors["cut_gradient"].shape == (6, 8)


def test_gaps_take_no_more_bits_than_places():
    generator = Key(0).generator()
    activations = torch.randn(8, 37, 192, generator=generator)
    for ratio in (0.01, 0.1, 0.5, 1.0):
        plan = plan_for(TopK(ratio), activations, Key(0))
        assert int(plan.side["gaps"].max()).bit_length() < int(plan.places.max()).bit_length()


@settings(max_examples=40, deadline=None)
@given(
    full=st.integers(1, 9), part=st.integers(1, 9), tokens=st.integers(1, 6), width=st.integers(1, 6),
    ratio=st.floats(0.001, 1), alpha=st.one_of(st.none(), st.floats(0, 0.99)), seed=st.integers(0, 3),
)  # fmt: skip
def test_every_batch_crosses_and_comes_back_as_it_was_kept(full, part, tokens, width, ratio, alpha, seed):
    section = {"kind": "topk", "ratio": ratio} | ({} if alpha is None else {"kind": "random_topk", "alpha": alpha})
    activations, labels = batch(min(part, full), tokens, width, seed, torch.float32)
    cut = cut_for(section, Geometry(full, tokens, width, 1, 4))
    plan = plan_for(cut.reducer, activations, Key(seed))
    count = max(1, math.floor(ratio * tokens * width + 1e-9))
    assert plan.places.shape == (len(activations), count)
    assert (plan.places.diff(dim=1) > 0).all()
    _, arrived = send(cut, plan, activations, labels)
    restored = cut.reducer.restore(arrived.smashed, arrived.side, arrived.frame.meta)
    kept = torch.zeros(len(activations), tokens * width, dtype=torch.bool).scatter(1, plan.places, True)
    assert torch.equal(restored, torch.where(kept.view_as(activations), activations, 0))


def test_alpha_zero_is_topk_and_ratio_one_is_everything():
    activations, _ = batch()
    top = plan_for(TopK(0.2), activations, Key(0)).places
    assert torch.equal(plan_for(RandomTopK(0.2, 0.0), activations, Key(5)).places, top)
    everything = plan_for(RandomTopK(1.0, 0.5), activations, Key(5))
    assert torch.equal(everything.reduce(activations), activations.flatten(1))


def test_draws_follow_the_key_alone():
    activations, _ = batch(64)
    reducer = RandomTopK(0.2, 0.3)
    places = [plan_for(reducer, activations, Key(seed)).places for seed in (1, 1, 2)]
    assert torch.equal(places[0], places[1])
    assert not torch.equal(places[0], places[2])


def test_a_draw_is_the_papers_distribution():
    """Against all orders of drawing 2 of 5 without repetition, one after the other."""
    alpha, trials = 0.3, 40_000
    weights = np.array([(1 - alpha) / 2] * 2 + [alpha / 3] * 3)
    expected: dict[tuple[int, ...], float] = {}
    for a in range(5):
        for b in set(range(5)) - {a}:
            pair = tuple(sorted((a, b)))
            expected[pair] = expected.get(pair, 0) + weights[a] * weights[b] / (1 - weights[a])
    activations = torch.tensor([5.0, -4.0, 3.0, 2.0, 1.0]).expand(trials, 1, 5)
    drawn = plan_for(RandomTopK(0.4, alpha), activations, Key(0)).places
    pairs, counts = np.unique(drawn.numpy(), axis=0, return_counts=True)
    found = {tuple(pair): count / trials for pair, count in zip(pairs.tolist(), counts, strict=True)}
    assert found.keys() == expected.keys()
    for pair, share in expected.items():
        assert abs(found[pair] - share) < 5 * math.sqrt(share * (1 - share) / trials), pair


def test_the_share_of_others_is_what_the_docstring_says():
    activations, _ = batch(64, 40, 100)
    top = plan_for(TopK(0.01), activations, Key(0)).places
    drawn = plan_for(RandomTopK(0.01, 0.1), activations, Key(1)).places
    others = sum(len(set(d) - set(t)) for d, t in zip(drawn.tolist(), top.tolist(), strict=True)) / drawn.numel()
    assert others == pytest.approx(0.187, abs=0.04)  # five standard deviations of 2,560 draws
    assert abs(0.187 + 0.1 / 0.9 * math.log(0.187)) < 1e-3


HOSTILE = {
    "beyond the sample": lambda gaps: gaps.index_fill(1, torch.tensor([7]), 40),
    "beyond it in sum": lambda gaps: torch.full_like(gaps, 5),
    "back to a place before": lambda gaps: gaps.index_fill(1, torch.tensor([3]), -1),
    "an overflow": lambda gaps: torch.full_like(gaps, 2**62),
    "the largest number": lambda gaps: torch.full_like(gaps, 2**63 - 1),
    "the smallest number": lambda gaps: torch.full_like(gaps, -(2**63)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_gaps_that_lead_nowhere_are_refused(name):
    activations, labels = batch(dtype=torch.float32)
    cut = cut_for(KINDS[0], GEOMETRY)
    plan = plan_for(cut.reducer, activations, Key(0))
    _, arrived = send(cut, plan, activations, labels)
    side = {"gaps": HOSTILE[name](arrived.side["gaps"])}
    with pytest.raises(WireError, match="lead out of a sample of 40 values"):
        cut.reducer.check(arrived.smashed, arrived.targets, side, arrived.frame.meta, GEOMETRY)


def test_gaps_up_to_the_last_place_are_taken():
    reducer, gaps = TopK(0.2), torch.zeros(2, 8, dtype=torch.int64)
    gaps[:, 7] = 32
    meta = {"tokens": 5, "width": 8}
    reducer.check(torch.ones(2, 8), torch.zeros(2), {"gaps": gaps}, meta, GEOMETRY)
    assert reducer.restore(torch.ones(2, 8), {"gaps": gaps}, meta)[0, 4, 7] == 1
    with pytest.raises(WireError):
        reducer.check(torch.ones(2, 8), torch.zeros(2), {"gaps": gaps.clamp(max=32) + gaps // 32}, meta, GEOMETRY)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokens": 4}, "tokens is 4"), ({"tokens": 10**9}, "tokens is 1000000000"), ({"width": 8.0}, "width is 8.0"),
        ({"tokens": True}, "tokens is True"), ({"width": "x" * 200}, "width is 'x"),
    ],
)  # fmt: skip
def test_a_lying_frame_is_refused_by_the_server(change, why):
    activations, labels = batch(dtype=torch.float32)
    cut = cut_for(KINDS[0], GEOMETRY)
    plan = plan_for(cut.reducer, activations, Key(0))
    plan.meta |= change
    with pytest.raises(WireError, match=why):
        send(cut, plan, activations, labels)


def test_side_tensors_of_another_batch_are_refused_by_the_server():
    activations, labels = batch(dtype=torch.float32)
    cut = cut_for(KINDS[0], GEOMETRY)
    plan = plan_for(cut.reducer, activations, Key(0))
    gaps = plan.side["gaps"]
    for wrong, why in ((gaps[:5], "gaps"), (gaps[:, :7], "side/gaps"), (gaps.new_full((6, 8), 39), "lead out")):
        plan.side["gaps"] = wrong
        with pytest.raises(WireError, match=why):
            send(cut, plan, activations, labels)
    plan.side["gaps"] = gaps
    packed = cut.pack_step(plan, plan.reduce(activations), labels[:5], 6, Key(0), Place(1, 0, 1))
    with pytest.raises(WireError, match="5 targets for 6 smashed"):
        arrive(cut, packed)


@pytest.mark.parametrize("section", KINDS, ids=lambda section: section["kind"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_sent_to_the_codec_which_refuses_it(section, value):
    activations, labels = batch(dtype=torch.float32)
    activations[3, 2, 1] = value
    cut = cut_for({**section, "ratio": 0.5} if section["kind"] == "topk" else {**section, "ratio": 1.0}, GEOMETRY)
    plan = plan_for(cut.reducer, activations, Key(0))
    with pytest.raises(Diverged, match="NaN or infinite"):
        send(cut, plan, activations, labels)


def test_half_precision_activations_keep_their_type_until_they_are_packed():
    activations, _ = batch(dtype=torch.bfloat16)
    plan = plan_for(TopK(0.3), activations, Key(0))
    assert plan.reduce(activations).dtype == torch.bfloat16
    assert (plan.places.diff(dim=1) > 0).all()  # with the many equal magnitudes of 8 bits


@pytest.mark.parametrize("section", KINDS, ids=lambda section: section["kind"])
def test_a_run_sends_what_the_formula_says(section, tmp_path):
    """20 images a client in batches of 16 and 4, 5 tokens of 16 features: k = 16 of 80 values."""
    given = ", ".join(f"{key}: {value}" for key, value in section.items())
    scenario = small(*PLAIN, f"compression.reducer={{{given}}}", "data.limit=60", "federation.rounds=1")
    result = simulate(scenario, runs=tmp_path)
    for role in ("smashed", "cut_gradient"):
        assert result.totals.select(role=role).sent == 4 * 60 * 16
        assert result.totals.select(role=role).raw == 4 * 60 * 80
    side = result.totals.select(role="side")
    assert side.reduced == 8 * 60 * 16
    assert 60 * 16 * 3 / 8 < side.sent < 60 * 16  # 3 to 7 bits a gap, where a place would take 7
    rows = [r for r in table(result.folder / "ledger.csv") if r["role"] == "side"]
    assert {r["direction"] for r in rows} == {"up"}
    assert result.summary.test_accuracy is not None
    expected = estimate(scenario).round
    assert expected.select(role="cut_gradient").coded == 4 * 60 * 16
    assert expected.select(role="side").coded == pytest.approx(side.coded, rel=0.3)
    again = simulate(scenario, runs=tmp_path)
    assert again.rounds[-1].train_loss == result.rounds[-1].train_loss


@pytest.mark.parametrize(
    "section",
    [
        {"kind": "topk"}, {"kind": "topk", "ratio": 0}, {"kind": "topk", "ratio": 1.01},
        {"kind": "topk", "ratio": 0.1, "alpha": 0.1}, {"kind": "random_topk", "ratio": 0.1, "alpha": -0.1},
        {"kind": "random_topk", "ratio": 0.1, "alpha": 1}, {"kind": "random_topk", "alpha": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_sections_are_refused(section):
    with pytest.raises(ValidationError):
        read(section)


def test_the_papers_alpha_is_the_default():
    reducer = read({"kind": "random_topk", "ratio": 0.1}).build()
    assert isinstance(reducer, RandomTopK)
    assert (reducer.ratio, reducer.alpha, reducer.needs_attention) == (0.1, 0.1, False)
