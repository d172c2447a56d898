"""A front with gates: its budget goes by the rate at which an image is sent, here and over a service."""

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from helpers import small

from splitfed import RemotePredictor, simulate
from splitfed.data.batches import normaliser
from splitfed.data.sources.base import open_digits
from splitfed.errors import SplitfedError
from splitfed.inference.fitting import fit
from splitfed.inference.rates import rates
from splitfed.inference.remote.bundle import read_bundle
from splitfed.inference.remote.walking import Walker
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.serve import Service
from splitfed.inference.tradeoff import tradeoff
from splitfed.run.origin import load_data

BUDGETS = (0.25, 0.5, 1.0)
PLAIN = "{codec: float32, lossless: none}"
RATES = [f"{budget}={{reducer: {{kind: semantic_tokens, budget: {budget}}}, smashed: {PLAIN}}}" for budget in BUDGETS]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = (
        "model.args={patch_size: 2, embed_dim: 16, depth: 3, num_heads: 2}", "federation.rounds=2", "data.limit=200",
        "data.test_limit=60", "compression.reducer={kind: semantic_tokens, budget: 0.5}",
    )  # fmt: skip
    return simulate(small(*changes), runs=tmp_path_factory.mktemp("gated")).folder


def whole(run: Path, pixels: torch.Tensor, budget: float) -> torch.Tensor:
    """The model's own forward pass."""
    model = RunModel.read(run)
    with torch.no_grad():
        return model.parts.whole()(normaliser(model.mean, model.std)(pixels), budget)


def test_each_rate_is_measured_at_its_own_budget(gated: Path) -> None:
    found, _ = tradeoff(gated, split="test", rates=RATES)
    images = load_data(RunModel.read(gated).scenario).test
    pixels = images.pixels(torch.arange(len(images)))
    bytes_ = []
    for budget in BUDGETS:
        (sent,) = found.sent[str(budget)].values()
        expected = whole(gated, pixels, budget).argmax(1) == images.labels
        assert (sent.right == expected).float().mean() >= 0.98  # ties aside
        bytes_.append(float(sent.smashed.float().mean()))
    assert bytes_[0] < bytes_[1] < bytes_[2]
    # 16 patches and the class token, 16 numbers of 4 bytes each.
    assert bytes_[2] == pytest.approx(17 * 64, abs=100)
    assert bytes_[1] == pytest.approx(9 * 64, rel=0.3)


def test_a_client_of_a_service_takes_the_budget_of_its_rate(gated: Path, tmp_path: Path) -> None:
    source = open_digits()[0]
    images = [source.image(row) for row in range(12)]
    pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])
    sizes = []
    with Service(gated, port=0, metrics_port=0, rates=RATES, batch=1, ledger=tmp_path / "ledger") as service:
        for budget in BUDGETS:
            where = f"127.0.0.1:{service.port}"
            with RemotePredictor(where, state=tmp_path / "state", rate=str(budget), batch=4) as predictor:
                found = predictor.predict(images)
                expected = whole(gated, pixels, budget).softmax(1)
                for one, own in zip(found, expected, strict=True):
                    assert one.probabilities[one.label] == pytest.approx(float(own.max()), abs=1e-4)
                sizes.append(predictor.bytes["up", "smashed"])
        (tmp_path / "bundle").write_bytes(service.backs.now.bundle)
        guessed = Walker(read_bundle(tmp_path / "bundle"), predictor.rule).sizes()
    assert sizes[0] < sizes[1] < sizes[2]
    assert guessed["0.25"] < guessed["0.5"] < guessed["1.0"]


def test_exits_are_not_measured_at_budgets_that_are_not_theirs(gated: Path, tmp_path: Path) -> None:
    run = Path(copytree(gated, tmp_path / "run"))
    fit(run, [1], epochs=1)
    tradeoff(run, rates=[RATES[1], "run"])
    with pytest.raises(SplitfedError, match=r"^--rate 0.25: gates with a budget of 0.25 .* than the 0.5 of the run"):
        tradeoff(run, rates=[RATES[0]])


def test_without_names_the_rates_are_the_runs_own_gates_in_other_codecs(gated: Path) -> None:
    found, _ = tradeoff(gated, limit=8)
    assert {*found.sent} == {"run", "8 bits", "3 bits"}


@pytest.mark.parametrize(
    ("own", "rate"),
    [
        ("none", "a={reducer: {kind: semantic_tokens, budget: 0.5}}"),
        ("semantic_tokens", "a={reducer: {kind: semantic_tokens, gates: 2}}"),
        ("semantic_tokens", "a={reducer: {kind: discard_tokens, kept_tokens: 0.5}}"),
    ],
)
def test_gates_serve_a_run_that_was_trained_with_as_many(own: str, rate: str) -> None:
    compression = small(f"compression.reducer={own}").compression
    with pytest.raises(SplitfedError, match=f"^--rate a: .* has not the layers .* its reducer is {own};"):
        rates(compression, [rate])
