import math

import pytest
import torch
from helpers import LABEL_BYTES, PLAIN, small
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splitfed import estimate, simulate
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.registry import ReducerConfig
from splitfed.compression.reducers.samples.c3sl import C3sl, bind, key_spectra, unbind
from splitfed.errors import ScenarioError, WireError
from splitfed.seeds import Key
from splitfed.testing import arrive, assert_split_equals_whole, cut_for, plan_for, send
from splitfed.wire.frame import Place

read = TypeAdapter(ReducerConfig).validate_python
GEOMETRY = Geometry(batch=8, tokens=3, width=5, prefix=1, classes=4)
CPU = torch.device("cpu")


def batch(samples=8, tokens=3, width=5, seed=0, dtype=torch.float64):
    generator = Key(seed).generator()
    activations = torch.randn(samples, tokens, width, generator=generator, dtype=dtype)
    return activations, torch.randint(4, (samples,), generator=generator)


def keys_of(number, r, size):
    """The keys, by the paper's words: random, of length 1."""
    drawn = torch.randn(r, size, generator=torch.Generator().manual_seed(number), dtype=torch.float64).tolist()
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in drawn]


def slow_bind(samples, keys):
    """sum_r k_r (*) z_r for each group, one product at a time."""
    size, groups = len(samples[0]), [samples[i : i + len(keys)] for i in range(0, len(samples), len(keys))]
    return [
        [
            sum(key[(i - j) % size] * z[j] for key, z in zip(keys, group, strict=False) for j in range(size))
            for i in range(size)
        ]
        for group in groups
    ]


def slow_unbind(bound, keys):
    """k_r (.) s for each key of each group."""
    size = len(bound[0])
    return [[sum(key[(i - j) % size] * s[i] for i in range(size)) for j in range(size)] for s in bound for key in keys]


@pytest.mark.parametrize(("samples", "size", "r"), [(6, 15, 3), (7, 14, 3), (1, 9, 4), (4, 1, 2), (5, 8, 1)])
def test_it_is_the_papers_formulas(samples, size, r):
    flat = torch.randn(samples, size, generator=Key(1).generator(), dtype=torch.float64)
    keys, spectra = keys_of(7, r, size), key_spectra(7, r, size, torch.complex128, CPU)
    bound = torch.tensor(slow_bind(flat.tolist(), keys), dtype=torch.float64)
    torch.testing.assert_close(bind(flat, spectra), bound)
    unbound = torch.tensor(slow_unbind(bound.tolist(), keys), dtype=torch.float64)
    torch.testing.assert_close(unbind(bound, spectra), unbound)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 9), size=st.integers(1, 30), r=st.integers(1, 5), seed=st.integers(0, 5))
def test_decoding_is_the_adjoint_of_encoding(samples, size, r, seed):
    """<bind(z), s> = <z, unbind(s)>: so gradients are coded as activations are decoded, and the other way round."""
    generator = Key(seed).generator()
    spectra, groups = key_spectra(seed, r, size, torch.complex128, CPU), -(-samples // r)
    z = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    s = torch.randn(groups, size, generator=generator, dtype=torch.float64)
    left, right = (bind(z, spectra) * s).sum(), (z * unbind(s, spectra)[:samples]).sum()
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("samples", [8, 7, 1])
def test_the_gradient_at_the_client_is_that_of_the_whole_model(samples):
    activations, _ = batch(samples)
    reducer = C3sl(4)
    plan = plan_for(reducer, activations, Key(1))
    weights = torch.randn(3, 5, generator=Key(2).generator(), dtype=torch.float64)
    gradient = assert_split_equals_whole(reducer, plan, activations, lambda x: ((x * weights).tanh() ** 2).sum())
    assert gradient.shape == (-(-samples // 4), 3, 5)
    inputs = activations.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reducer.restore(plan.reduce(x), plan.side, plan.meta), inputs)
    assert torch.autograd.gradcheck(lambda s: reducer.restore(s, plan.side, plan.meta), plan.reduce(inputs))


@pytest.mark.parametrize(("samples", "groups"), [(8, 2), (6, 2), (4, 1), (3, 1), (1, 1)])
def test_bytes_are_those_of_the_groups_and_keys_do_not_travel(samples, groups):
    activations, labels = batch(samples, dtype=torch.float32)
    cut = cut_for({"kind": "c3sl", "r": 4}, GEOMETRY)
    plan = plan_for(cut.reducer, activations, Key(3))
    packed, arrived = send(cut, plan, activations, labels)
    values = 4 * groups * 15
    assert {role: sizes.sent for role, sizes in packed.sizes.items()} == {
        "smashed": values, "targets": LABEL_BYTES * samples,
    }  # fmt: skip
    assert packed.total == len(packed.buffer) == values + LABEL_BYTES * samples + packed.envelope
    assert packed.envelope < 256
    assert torch.equal(arrived.targets, labels)
    down = cut.pack_gradient(arrived.frame, torch.ones_like(arrived.smashed), 0.5, Key(4))
    assert down.sizes["cut_gradient"].sent == values
    restored = cut.reducer.restore(arrived.smashed, arrived.side, arrived.frame.meta)
    assert restored.shape == activations.shape
    keys = keys_of(plan.meta["keys"], 4, 15)
    bound = slow_bind(activations.double().flatten(1).tolist(), keys)
    expected = torch.tensor(slow_unbind(bound, keys)[: 4 * groups])[:samples]
    torch.testing.assert_close(restored.flatten(1), expected, rtol=1e-4, atol=1e-4)


def test_a_run_has_one_set_of_keys_and_another_seed_has_another():
    activations, _ = batch()
    number = plan_for(C3sl(4), activations, Key(5, ("step", 1, 2, 3))).meta["keys"]
    assert plan_for(C3sl(4), activations, Key(5, ("step", 9, 0, 1))).meta["keys"] == number
    assert plan_for(C3sl(4), activations, Key(6, ("step", 1, 2, 3))).meta["keys"] != number


def test_what_comes_back_is_the_sample_in_noise():
    """Correlation with the right key finds each sample: the estimate is closer to it than to any other one."""
    activations, _ = batch(32, 37, 24, dtype=torch.float32)
    plan = plan_for(C3sl(4), activations, Key(0))
    restored = C3sl(4).restore(plan.reduce(activations), plan.side, plan.meta)
    alike = torch.nn.functional.normalize(restored.flatten(1)) @ torch.nn.functional.normalize(activations.flatten(1)).T
    assert torch.equal(alike.argmax(1), torch.arange(32))
    assert 0.3 < alike.diagonal().mean() < 0.6  # 1 / sqrt(1 + R): each key adds as much noise as there is signal


@settings(max_examples=40, deadline=None)
@given(
    full=st.integers(1, 9), part=st.integers(1, 9), tokens=st.integers(1, 6), width=st.integers(1, 6),
    r=st.integers(1, 10), seed=st.integers(0, 3),
)  # fmt: skip
def test_every_batch_crosses_and_comes_back_in_its_shape(full, part, tokens, width, r, seed):
    activations, labels = batch(min(part, full), tokens, width, seed, torch.float32)
    cut = cut_for({"kind": "c3sl", "r": r}, Geometry(full, tokens, width, 1, 4))
    plan = plan_for(cut.reducer, activations, Key(seed))
    _, arrived = send(cut, plan, activations, labels)
    assert arrived.smashed.shape == (-(-len(activations) // r), tokens, width)
    restored = cut.reducer.restore(arrived.smashed, arrived.side, arrived.frame.meta)
    assert restored.shape == activations.shape
    assert torch.equal(restored, cut.reducer.restore(plan.reduce(activations), plan.side, plan.meta))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"samples": 9}, "samples is 9"), ({"samples": 0}, "samples is 0"), ({"samples": 4}, "for 4 samples"),
        ({"samples": 5}, "8 targets and 2 groups of 4 for 5 samples"), ({"samples": "8"}, "samples is '8'"),
        ({"keys": -1}, "keys is -1"), ({"keys": 1.5}, "keys is 1.5"), ({"keys": True}, "keys is True"),
    ],
)  # fmt: skip
def test_a_lying_frame_is_refused_by_the_server(change, why):
    activations, labels = batch(dtype=torch.float32)
    cut = cut_for({"kind": "c3sl", "r": 4}, GEOMETRY)
    plan = plan_for(cut.reducer, activations, Key(0))
    plan.meta |= change
    with pytest.raises(WireError, match=why):
        send(cut, plan, activations, labels)


def test_missing_or_extra_groups_are_refused_by_the_server():
    activations, labels = batch(dtype=torch.float32)
    cut = cut_for({"kind": "c3sl", "r": 4}, GEOMETRY)
    plan = plan_for(cut.reducer, activations[:4], Key(0))
    for groups, why in ((2, "2 groups of 4 for 4 samples"), (3, "smashed")):
        packed = cut.pack_step(plan, torch.ones(groups, 3, 5), labels[:4], 4, Key(0), Place(1, 0, 1))
        with pytest.raises(WireError, match=why):
            arrive(cut, packed)


def test_half_precision_is_widened_for_the_transform_and_autocast_changes_nothing():
    activations, _ = batch(dtype=torch.float32)
    plan, reducer = plan_for(C3sl(4), activations, Key(0)), C3sl(4)
    smashed = plan.reduce(activations)
    assert plan.reduce(activations.bfloat16()).dtype == torch.float32
    restored = reducer.restore(smashed, plan.side, plan.meta)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plan.reduce(activations), smashed)
        assert torch.equal(reducer.restore(smashed, plan.side, plan.meta), restored)


def test_a_run_sends_what_the_formula_says(tmp_path):
    """22 images a client in batches of 16 and 6, four to a group: 4 + 2 groups of 5 tokens with 16 features."""
    scenario = small(*PLAIN, "compression.reducer={kind: c3sl, r: 4}", "data.limit=66", "federation.rounds=1",
                     "data.partition={kind: iid}")  # fmt: skip
    result = simulate(scenario, runs=tmp_path)
    for role in ("smashed", "cut_gradient"):
        assert result.totals.select(role=role).sent == 4 * 3 * (4 + 2) * 80
        assert result.totals.select(role=role).raw == 4 * 66 * 80
        assert estimate(scenario).round.select(role=role).coded == 4 * 3 * (4 + 2) * 80
    assert result.totals.select(role="targets").sent == LABEL_BYTES * 66
    assert result.totals.select(role="side").sent == 0
    assert simulate(scenario, runs=tmp_path).rounds[-1].train_loss == result.rounds[-1].train_loss


def test_a_group_that_does_not_divide_the_batch_is_refused_with_the_way_out():
    with pytest.raises(ScenarioError, match=r"c3sl: r: 5 does not divide training.batch_size: 16; r could be 4 or 8"):
        small("compression.reducer={kind: c3sl, r: 5}")
    with pytest.raises(ScenarioError, match=r"r could be 16$"):
        small("compression.reducer={kind: c3sl, r: 32}")
    assert small("compression.reducer={kind: c3sl, r: 5}", "training.batch_size=20").training.batch_size == 20


@pytest.mark.parametrize(
    "section", [{"kind": "c3sl"}, {"kind": "c3sl", "r": 0}, {"kind": "c3sl", "r": 2.0}, {"kind": "c3sl", "R": 2}],
    ids=str,
)  # fmt: skip
def test_wrong_sections_are_refused(section):
    with pytest.raises(ValidationError):
        read(section)
