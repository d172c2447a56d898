"""The scenarios that ship, as a user runs them; the long ones are marked slow."""

import pytest
from places import SHARED

from splitfed import Scenario, simulate
from splitfed.scenario.scenario import shipped

WEIGHTS = SHARED / "weights" / "deit_tiny_patch16_224.safetensors"


@pytest.mark.slow
def test_digits_keeps_its_promise(tmp_path):
    """At least 85 % on the test split, with at most an eighth of all bytes."""
    summary = simulate("digits", runs=tmp_path).summary
    assert summary.test_accuracy >= 0.85
    assert summary.factor >= 8


def test_the_baseline_of_digits_differs_in_compression_alone():
    one, two = (Scenario.load(name).model_dump() for name in ("digits", "digits-uncompressed"))
    differing = {key for key in one if one[key] != two[key]}
    assert differing == {"name", "compression"}
    reducer = two["compression"].pop("reducer")
    assert reducer["kind"] == "none"
    for role in ("tail_smashed", "tail_gradient", "cache"):  # nothing crosses there, and none is kept
        assert one["compression"].pop(role) == two["compression"].pop(role)
    assert {p["codec"]["kind"] for p in two["compression"].values()} == {"float32"}
    assert {p["lossless"]["kind"] for p in two["compression"].values()} == {"none"}


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs CIFAR-100 and DeiT-Tiny's weights in ../shared/data")
@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith(("cifar100", "photos"))])
def test_real_images_and_weights_go_through(name, tmp_path):
    """First rounds of each scenario of photographs, on few images: the real files load, and what is sent shrinks."""
    data = SHARED / ("hymenoptera" if name.startswith("photos") else "cifar100")
    overrides = [
        f"data.path={data}", f"model.weights={WEIGHTS}", "data.limit=160", "data.test_limit=20",
        "data.workers=0", "data.validation=0.05", "data.partition=iid", "training.batch_size=16", "engine.threads=1",
        "budget=none",
    ]  # fmt: skip
    scenario = Scenario.load(name, [f"data.path={data}"])
    overrides.append(f"federation.rounds={3 if scenario.memory else 1}")
    if scenario.federation.clients > 5:
        overrides += ["federation.clients=4", "federation.cohort=2"]
    result = simulate(Scenario.load(name, overrides), runs=tmp_path)
    assert result.summary.cut_factor > 5
    losses = [found.train_loss for found in result.rounds if found.train_loss is not None]
    assert losses
    if not name.startswith("photos"):
        assert 3 < losses[0] < 6  # ln 100 = 4.6: a new head on pretrained blocks
