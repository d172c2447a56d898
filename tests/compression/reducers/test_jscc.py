"""JSCC: symbols of unit power, a channel whose noise is that of its formula, layers that learn through it, in runs."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import DEEPER, PLAIN, small, table
from models import newest
from scipy.special import exp1
from torch import nn

from splitfed import estimate, simulate
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.settings import JsccConfig
from splitfed.compression.reducers.trained.jscc import SymbolDecoder, SymbolEncoder, SymbolsPlan
from splitfed.compression.reducers.trained.radio import capacity, received, unit_power
from splitfed.errors import ModelError, ScenarioError, WireError
from splitfed.reports.costs.text import text
from splitfed.seeds import Key
from splitfed.split.assembly import assemble
from splitfed.split.cut import Cut
from splitfed.testing import arrive, cut_for, plan_for
from splitfed.wire.frame import pack

GEOMETRY = Geometry(batch=6, tokens=5, width=12, prefix=1, classes=4)
REDUCER = "compression.reducer={kind: jscc, ratio: 0.25}"
DRAWN = "compression.reducer={kind: jscc, ratio: 0.25, drawn_ratio: [0.1, 0.5]}"
EXACT = [*PLAIN, "compression.parts.lossless=none"]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=Key(seed).generator())


def complex_of(pairs: torch.Tensor) -> np.ndarray:
    return torch.view_as_complex(pairs.unflatten(-1, (-1, 2)).contiguous()).numpy()


def planned(settings: JsccConfig, x: torch.Tensor, seed: int = 1) -> SymbolsPlan:
    reducer = settings.build()
    encoder = reducer.halves(GEOMETRY, Key(3)).encoder.to(x.dtype)
    return plan_for(reducer, x, Key(seed), encoder=encoder)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_symbols_of_every_token_have_unit_power(count: int) -> None:
    encoder = SymbolEncoder(12, 6, 6, Key(0)).double()
    symbols = complex_of(encoder(random(3, 5, 12) * 50, count).detach())
    assert symbols.shape == (3, 5, count)
    np.testing.assert_allclose((np.abs(symbols) ** 2).mean(-1), 1)


def test_fewer_symbols_are_the_first_of_more() -> None:
    encoder, x = SymbolEncoder(12, 6, 4, Key(0)).double(), random(3, 5, 12)
    most, few = encoder(x, 6), encoder(x, 2)
    torch.testing.assert_close(few, unit_power(most[..., :4]))
    torch.testing.assert_close(encoder(x), encoder(x, 4))


def test_layers_are_those_of_the_formula() -> None:
    """Three layers whose widths go evenly from one end to the other, ReLU between; a part each for Re and Im."""
    encoder, decoder, x = SymbolEncoder(12, 3, 3, Key(0)).double(), SymbolDecoder(12, 3, Key(1)).double(), random(2, 12)

    def by_hand(layers: nn.Module, x: np.ndarray) -> np.ndarray:
        tensors = [tensor.numpy() for tensor in layers.state_dict().values()]
        for place in range(0, 6, 2):
            x = np.maximum(x, 0) if place else x
            x = x @ tensors[place].T + tensors[place + 1]
        return x

    assert [layer.out_features for layer in encoder.real if isinstance(layer, nn.Linear)] == [9, 6, 3]
    assert [layer.in_features for layer in decoder.layers if isinstance(layer, nn.Linear)] == [6, 8, 10]
    v = by_hand(encoder.real, x.numpy()) + 1j * by_hand(encoder.imaginary, x.numpy())
    expected = math.sqrt(3) * v / np.linalg.norm(v, axis=-1, keepdims=True)
    np.testing.assert_allclose(complex_of(encoder(x).detach()), expected)
    two = random(2, 4)
    filled = np.concatenate([two.numpy(), np.zeros((2, 2))], 1)
    np.testing.assert_allclose(decoder(two).detach().numpy(), by_hand(decoder.layers, filled))


@pytest.mark.parametrize("snr", [-10.0, 0.0, 13.0])
def test_noise_has_the_variance_of_its_decibels(snr: float) -> None:
    x = unit_power(random(4, 200, 100))
    variance = 10 ** (-snr / 10)
    noise = complex_of(received(x, torch.full((4,), snr), False, Key(0)) * (1 + variance) - x)
    assert abs(noise.mean()) < 0.02 * math.sqrt(variance)
    for part in (noise.real, noise.imag):
        assert part.var() == pytest.approx(variance / 2, rel=0.03)
    assert abs(np.mean(noise.real * noise.imag)) < 0.02 * variance
    signal = complex_of(x)
    assert np.mean(np.abs(signal) ** 2) / np.mean(np.abs(noise) ** 2) == pytest.approx(10 ** (snr / 10), rel=0.03)


def test_fading_is_that_of_complex_gains_which_the_receiver_knows() -> None:
    """Against a channel of complex numbers, by what one can see of it: the moments of what is received."""
    samples, snr, variance = 20_000, 5.0, 10**-0.5
    x = unit_power(random(samples, 1, 8))
    found = complex_of(received(x, torch.full((samples,), snr), True, Key(0)))[:, 0]
    draws, sent = np.random.default_rng(0), complex_of(x)[:, 0]
    gain = (draws.normal(size=(samples, 1)) + 1j * draws.normal(size=(samples, 1))) / math.sqrt(2)
    noise = (draws.normal(size=sent.shape) + 1j * draws.normal(size=sent.shape)) * math.sqrt(variance / 2)
    expected = gain.conj() * (gain * sent + noise) / (np.abs(gain) ** 2 + variance)
    for moment in (
        lambda z: np.mean(np.abs(z) ** 2), lambda z: np.mean((z * sent.conj()).real),
        lambda z: np.mean(np.abs(z) ** 4), lambda z: np.mean(np.abs(z - sent) ** 2),
        lambda z: np.var((z * sent.conj()).real.mean(1)),
    ):  # fmt: skip
        assert moment(found) == pytest.approx(moment(expected), rel=0.05)


def test_a_gain_holds_for_an_image_and_samples_have_their_own() -> None:
    x = unit_power(random(3, 4000, 2))
    z = complex_of(received(x, torch.full((3,), 0.0), True, Key(0)))
    share = (z * complex_of(x).conj()).real[..., 0]
    halves = share[:, :2000].mean(1), share[:, 2000:].mean(1)
    np.testing.assert_allclose(*halves, atol=0.06)  # the noise of a mean of 2,000
    assert np.ptp(halves[0]) > 0.15


def test_without_noise_symbols_come_as_they_are() -> None:
    x = unit_power(random(3, 5, 8))
    torch.testing.assert_close(received(x, torch.full((3,), 300.0), True, Key(0)), x)
    plan = planned(JsccConfig(ratio=0.5, drawn_snr=None), random(6, 5, 12))
    torch.testing.assert_close(plan.reduce(random(6, 5, 12)), plan.encoder(random(6, 5, 12), 6))


def test_draws_follow_the_key_alone() -> None:
    x, settings = random(6, 5, 12), JsccConfig(ratio=0.5, drawn_ratio=(0.25, 1.0), channel="rayleigh")
    state = torch.get_rng_state()
    ones = [planned(settings, x, seed).reduce(x) for seed in (1, 1, *range(2, 40))]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ones[0], ones[1])
    counts = {one.shape[-1] // 2 for one in ones}
    assert counts == set(range(3, 13))  # of 12 features, from a quarter to all
    alike = [one for one in ones[1:] if one.shape == ones[0].shape]
    assert len(alike) > 1
    assert not torch.equal(alike[0], alike[1])
    plan = planned(settings, x)
    assert plan.snr.min() >= -20
    assert plan.snr.max() <= 20
    assert len(plan.snr.unique()) == 6


def test_answers_draw_nothing_but_noise() -> None:
    settings = JsccConfig(ratio=0.5, drawn_ratio=(0.25, 1.0), snr=7).settled()
    plans = [planned(settings, random(6, 5, 12), seed) for seed in range(9)]
    assert {plan.count for plan in plans} == {6}
    assert all(plan.snr.eq(7).all() for plan in plans)


def test_the_gradient_goes_through_the_channel_to_the_encoder() -> None:
    """The encoder's gradient, by what crosses, is autograd's of the whole, whose channel is written out here."""
    settings = JsccConfig(ratio=0.5, channel="rayleigh")
    reducer, x = settings.build(), random(6, 5, 12)
    halves = reducer.halves(GEOMETRY, Key(3))
    encoder, decoder = halves.encoder.double(), halves.decoder.double()
    plan = plan_for(reducer, x, Key(2), encoder=encoder)

    def end(tokens: torch.Tensor) -> torch.Tensor:
        return (decoder(tokens) ** 3).sum()

    symbols = encoder(x, 6)
    variance = 10 ** (-plan.snr.double().view(-1, 1, 1) / 10)
    whole = plan.reduce(x)
    with torch.no_grad():
        other = received(symbols + 1, plan.snr, True, plan.key)
        slope = (other - received(symbols, plan.snr, True, plan.key)).mean((1, 2), keepdim=True)
        rest = whole - slope * symbols
    assert bool((slope < 1).all())
    gain = slope * variance / (1 - slope)  # what the slope g / (g + v) tells of g
    torch.testing.assert_close(slope, gain / (gain + variance))
    end(slope * symbols + rest).backward()
    expected = [parameter.grad.clone() for parameter in encoder.parameters()]
    encoder.zero_grad()
    smashed = plan.reduce(x)
    arrived = smashed.detach().requires_grad_()
    end(arrived).backward()
    smashed.backward(arrived.grad)
    for parameter, gradient in zip(encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
        assert bool(gradient.ne(0).any())


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.0])
def test_capacity_is_shannons(snr: float) -> None:
    ratio = 10 ** (snr / 10)
    assert capacity(snr, False) == pytest.approx(math.log2(1 + ratio))
    ergodic = math.exp(1 / ratio) * exp1(1 / ratio) / math.log(2)
    assert capacity(snr, True) == pytest.approx(ergodic, rel=2e-3)


@pytest.mark.parametrize("width", [1, 5, 8, 26])
def test_half_a_symbol_and_more_or_fewer_than_there_are_layers_for_are_refused(width: int) -> None:
    cut = cut_for({"kind": "jscc", "ratio": 0.5, "drawn_ratio": [0.25, 0.5]}, GEOMETRY)
    tensors = {"smashed": torch.zeros(6, 5, width), "targets": torch.zeros(6, dtype=torch.int64)}
    packed = pack("step", 1, 0, 1, cut.encode(tensors, Key(0), ""), {"examples": 6})
    if width == 8:
        assert arrive(cut, packed).smashed.shape == (6, 5, 8)
    else:
        with pytest.raises(WireError):
            arrive(cut, packed)


def test_one_model_serves_noise_and_ratios() -> None:
    """Trained on points around the corners of a cube through drawn ratios and noise: more symbols and less noise never
    bring less, but for what chance gives and takes."""
    classes, width = 8, 16
    corners = 2.0 * random(classes, width, seed=5, dtype=torch.float32)
    settings = JsccConfig(ratio=0.5, drawn_ratio=(1 / 16, 0.5), drawn_snr=(-10, 10))
    geometry = Geometry(batch=128, tokens=1, width=width, prefix=1, classes=classes)
    reducer, key = settings.build(), Key(7)
    halves = reducer.halves(geometry, key)
    optimiser = torch.optim.Adam([*halves.encoder.parameters(), *halves.decoder.parameters()], lr=1e-2)

    def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = key.at("batch", number).generator()
        labels = torch.randint(classes, (128,), generator=generator)
        return corners[labels].unsqueeze(1) + 0.5 * torch.randn(128, 1, width, generator=generator), labels

    for number in range(200):
        x, labels = batch(number)
        plan = plan_for(reducer, x, key.at("plan", number), encoder=halves.encoder)
        loss = nn.functional.cross_entropy(halves.decoder(plan.reduce(x))[:, 0, :classes], labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    @torch.no_grad()
    def accuracy(ratio: float, snr: float) -> float:
        one, right = JsccConfig(ratio=ratio, snr=snr, drawn_snr=None).build(), 0.0
        for number in range(1000, 1016):
            x, labels = batch(number)
            plan = plan_for(one, x, key.at("test", number), encoder=halves.encoder)
            made = halves.decoder(plan.reduce(x))[:, 0, :classes]
            right += float((made.argmax(1) == labels).float().mean()) / 16
        return right

    found = [[accuracy(ratio, snr) for snr in (-10, 0, 10)] for ratio in (1 / 16, 1 / 4, 1 / 2)]
    assert found[2][2] > 0.9
    assert found[0][0] < 0.6
    for table_ in (found, list(zip(*found, strict=True))):
        for row in table_:
            assert all(more > less - 0.02 for less, more in pairwise(row)), found


@pytest.mark.parametrize("more", [["federation.mode=psl"], [*DEEPER, "federation.labels=private"]])
def test_a_run_sends_what_was_foretold_and_counts_its_symbols(more: list[str], tmp_path) -> None:
    scenario = small(*EXACT, REDUCER, "federation.rounds=1", *more)
    guess, result = estimate(scenario), simulate(scenario, runs=tmp_path)
    real = result.totals
    for role in ("smashed", "cut_gradient", "parts", "front_weights"):
        assert guess.round.select(role=role) == real.select(role=role), role
    images = real.select(role="smashed").raw // (4 * 5 * 16)  # of 5 tokens of 16 features
    assert real.select(role="smashed").sent == images * 5 * 4 * 8
    assert result.summary.symbols == images * 5 * 4
    assert f"{images * 5 * 4:,} a round go up" in text(guess)


def test_drawn_ratios_are_foretold_by_their_mean(tmp_path) -> None:
    scenario = small(*EXACT, DRAWN, "federation.rounds=1", "training.batch_size=2", "data.limit=200")
    guess, result = estimate(scenario), simulate(scenario, runs=tmp_path)
    rows = [row for row in table(result.folder / "ledger.csv") if (row["role"], row["direction"]) == ("smashed", "up")]
    counts = {int(row["reduced_bytes"]) * 16 // (2 * int(row["raw_bytes"])) for row in rows}
    assert counts == set(range(1, 9))
    told = result.totals.select(role="smashed")
    assert guess.round.select(role="smashed").sent == pytest.approx(told.sent, rel=0.15)
    assert result.summary.symbols == told.reduced // 8


def test_a_frozen_front_keeps_every_bit_while_coder_and_back_learn(tmp_path) -> None:
    scenario = small(*EXACT, DRAWN, "model.adapter=frozen")
    before = assemble(scenario, 10)
    result = simulate(scenario, runs=tmp_path)
    after, start = newest(result.folder), before.front.state_dict()
    for name, tensor in start.items():
        assert after[name].equal(tensor) != name.startswith("encoder."), name
    assert not all(after[name].equal(tensor) for name, tensor in before.back.state_dict().items())
    numbers = sum(tensor.numel() for name, tensor in start.items() if not name.startswith("encoder."))
    weights = result.totals.select(role="front_weights")
    assert weights.sent == 3 * 4 * numbers  # once to each of three clients
    assert result.totals.select(role="parts").sent > 0


@pytest.mark.long
@pytest.mark.parametrize(
    "more",
    [
        ["phases=[{kind: frozen}]", "memory={disk: 10MB}"], ["phases=[{kind: local, upload_every: 2, align_every: 1}]"],
        ["training.ahead=1"], ["evaluation={held_out: 0.25}"],
        [*DEEPER, "federation.labels=private", "model.adapter=frozen"],
        ["control={kind: drift_plus_penalty, target: {kind: all_bytes, bytes: 1MB}, points: {few: {compression: "
         "{reducer: {kind: jscc, ratio: 0.1, drawn_ratio: [0.1, 0.5]}}}, many: {}}}"],
    ],
    ids=["memory", "local", "ahead", "evaluation", "private", "control"],
)  # fmt: skip
def test_it_goes_with(more: list[str], tmp_path) -> None:
    result = simulate(small(DRAWN, *more), runs=tmp_path)
    assert math.isfinite(result.summary.test_loss)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([REDUCER, "compression.smashed.codec={kind: uniform, bits: 8}"], "compression.smashed.codec: uniform: the re"),
        ([REDUCER, "compression.smashed.delta=true"], "compression.smashed.delta: with the reducer jscc noise makes"),
        ([REDUCER, "compression.cut_gradient.delta=true"], "with the reducer jscc noise makes a sample another"),
        ([REDUCER, "federation.mode=fl"], "compression.reducer: with fl nothing crosses a cut"),
        (["compression.reducer={kind: jscc, drawn_snr: [20, 0]}"], "drawn_snr: .* goes from more to less"),
        (["compression.reducer={kind: jscc, ratio: 0.6, drawn_ratio: [0.1, 0.5]}"], "ratio: 0.6 is none of drawn_r"),
        (["compression.reducer={kind: jscc, ratio: 0}"], "ratio"),
        (["compression.reducer={kind: jscc, snr: 90}"], "snr"),
        (["compression.reducer={kind: jscc, channel: optical}"], "channel"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(keys: list[str], why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        small(*keys)


def test_a_frozen_front_without_layers_that_learn_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.adapter: frozen: .* set one that has, such as jscc, or leave it out"):
        assemble(small("model.adapter=frozen"), 10)


def test_half_of_the_bytes_are_a_codecs(tmp_path) -> None:
    cut = Cut.of(small(REDUCER, "compression.smashed={codec: float16, lossless: none}"), GEOMETRY, torch.device("cpu"))
    x = random(6, 5, 12, dtype=torch.float32)
    plan = planned(JsccConfig(ratio=0.25), x)
    packed = cut.pack_step(plan, plan.reduce(x), torch.zeros(6, dtype=torch.int64), 6, Key(0), (1, 0, 1))
    assert packed.sizes["smashed"].sent == 2 * 6 * 5 * 2 * 3
