"""Every mode, labels shared and private, with every key that says what crosses at all: it works, or is refused with a
reason, and in every engine alike."""

from itertools import product
from pathlib import Path

import pytest
from helpers import small, table
from safetensors.torch import save_file

from splitfed import simulate
from splitfed.errors import ScenarioError
from splitfed.model.build import build
from splitfed.seeds import Key

PAIRS = [
    pair for pair in product(("sl", "sfl-v1", "sfl-v2", "psl", "fl"), ("shared", "private"))
    if pair not in (("psl", "private"), ("fl", "private"))
]  # fmt: skip
SETTLES = "phases=[{kind: gradient, rounds: 1}, frozen]"
# By name: the keys, and why they are refused with fl and with private labels, where they are.
FRONT, TAIL, CUT = (
    "with fl there is no front apart",
    "the tail learns beside the front",
    "with fl nothing crosses a cut",
)
KEYS = {
    "frozen": ([SETTLES], FRONT, TAIL),
    "local": (["phases=[{kind: local, rounds: 1, upload_every: 2}, gradient]"], FRONT, TAIL),
    "align_every": (["phases=[{kind: local, upload_every: 1, align_every: 1}]"], FRONT, TAIL),
    "memory": ([SETTLES, "memory={passes: 1}"], FRONT, TAIL),
    "variants": (["data.augment=flip", "data.variants=2"], None, None),
    "delta": (["compression.smashed.delta=true"], CUT, None),
    "skip": (["compression.smashed.skip=0.9"], CUT, None),
    "gradient delta": (["compression.cut_gradient.delta=true"], CUT, None),
    "total_bytes": (["budget={kind: total_bytes, bytes: 1GB}"], None, None),
    "images": (["budget={kind: images, times: 1e6}"], None, None),
    "load": (["compression.front_weights.initial=load"], None, None),
    "weights": (["compression.front_weights.delta={kind: uniform, bits: 4}"], None, None),
}
TOGETHER = "phases=[{kind: gradient, rounds: 1}, {kind: local, rounds: 1, upload_every: 1, align_every: 2}, frozen]"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    vit = build(small("model.args.depth=3").model, 10, key=Key(77))
    save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, path)
    return f"model.weights={path}"


def plan(mode: str, labels: str, *more: str):
    without_server = ["training.server={}"] if mode == "fl" else []  # then it trains nothing
    base = ["model.args.depth=3", "federation.clients=2", "federation.rounds=5", "federation.local_epochs=2"]
    return small(*base, f"federation.mode={mode}", f"federation.labels={labels}", *without_server, *more)


def refused(name: str, mode: str, labels: str) -> str | None:
    _, whole, private = KEYS[name]
    return whole if mode == "fl" else private if labels == "private" else None


@pytest.mark.parametrize(("mode", "labels"), PAIRS)
@pytest.mark.parametrize("engine", ["inline", "{kind: ray, threads: 1}", "deployment"])
def test_each_is_taken_or_refused_with_its_reason(mode: str, labels: str, engine: str, weights: str) -> None:
    for name, (keys, *_) in KEYS.items():
        if why := refused(name, mode, labels):
            with pytest.raises(ScenarioError, match=why):
                plan(mode, labels, f"engine={engine}", weights, *keys)
        else:
            plan(mode, labels, f"engine={engine}", weights, *keys)


@pytest.mark.parametrize(("mode", "labels"), PAIRS)
def test_all_that_a_mode_takes_work_together(mode: str, labels: str, weights: str, tmp_path: Path) -> None:
    keys = [key for name, (keys, *_) in KEYS.items() if not refused(name, mode, labels) for key in keys]
    keys += [] if refused("memory", mode, labels) else [TOGETHER]
    folder = simulate(plan(mode, labels, weights, *keys), runs=tmp_path, observers=()).folder
    rows, metrics = table(folder / "ledger.csv"), table(folder / "metrics.csv")
    phases = [row["phase"] for row in metrics]
    if refused("memory", mode, labels):
        assert phases == ["gradient"] * 5
    else:
        assert phases == ["gradient", "local", "frozen", "memory"]
    assert all(0 < float(row["train_loss"]) < 5 for row in metrics if row["phase"] != "frozen")
    roles = {row["role"] for row in rows}
    assert ("ids" in roles) == (mode != "fl")
    assert ("aux_weights" in roles) == (mode != "fl" and labels == "shared")
    first = {(row["role"], row["direction"]) for row in rows if row["round"] == "1" and row["plane"] == "control"}
    if mode != "sl":  # there the second client gets what the first has made of the weights
        assert ("front_weights", "down") not in first
    assert ("front_weights", "up") in first
