"""Every mode, labels shared and private, in every engine, alone and with every key that says what crosses at all: it
works and sends the same, or is refused with a reason."""

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from deployed import deployment
from helpers import small, table
from safetensors.torch import save_file

from splitfed import simulate
from splitfed.engines.ray.cluster import connected
from splitfed.errors import ScenarioError
from splitfed.model.build import build
from splitfed.scenario.sections import Federation
from splitfed.seeds import Key

MODES = get_args(Federation.model_fields["mode"].annotation)
REFUSED = {
    ("fl", "private"): "with fl no labels leave a client anyway",
    ("psl", "private"): "with psl the back takes a step for all clients at once",
}
WORKING = [pair for pair in product(MODES, ("shared", "private")) if pair not in REFUSED]
# Others do with more in it what is left out here: tests/splitfed/engines/test_ray.py has all modes that split over Ray,
# tests/deployments/test_engines.py and tests/runs/test_fl.py deploy shared labels. Clients train in turn, at once,
# together.
IN_RAY = [pair for pair in WORKING if pair[1] == "private" or pair[0] == "fl"]
DEPLOYED = [
    *(pytest.param(mode, "private", marks=pytest.mark.long) for mode in ("sl", "sfl-v1")), ("psl", "shared"),
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


def scenario(mode: str, labels: str, *more: str):
    without_server = ["training.server={}"] if mode == "fl" else []  # then it trains nothing
    return small(
        "federation.clients=2", "federation.rounds=1", "model.args.depth=3", f"federation.mode={mode}",
        f"federation.labels={labels}", *without_server, *more,
    )  # fmt: skip


def crossed(folder: Path) -> list[dict[str, str]]:
    """Return what crossed the cut, row by row."""
    return [row for row in table(folder / "ledger.csv") if row["plane"] == "data"]


@cache
def inline(mode: str, labels: str, runs: Path) -> Path:
    return simulate(scenario(mode, labels), runs=runs).folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("modes")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start Ray once for all."""
    with connected(None, {}):
        yield


def test_every_mode_is_named_here() -> None:
    assert {mode for mode, _ in WORKING} == set(MODES)


@pytest.mark.parametrize(("mode", "labels"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(mode: str, labels: str) -> None:
    with pytest.raises(ScenarioError, match=rf"federation\.labels: {REFUSED[mode, labels]}"):
        scenario(mode, labels)


@pytest.mark.parametrize(("mode", "labels"), WORKING)
def test_inline(mode: str, labels: str, runs: Path) -> None:
    rows = table(inline(mode, labels, runs) / "ledger.csv")
    roles = {row["role"] for row in rows}
    assert ("smashed" in roles) == ("cut_gradient" in roles) == (mode != "fl")
    assert ("targets" in roles) == (mode != "fl" and labels == "shared")
    assert ("tail_smashed" in roles) == ("tail_gradient" in roles) == (labels == "private")
    assert ("back_weights" in roles) == (mode == "fl")
    assert ("tail_weights" in roles) == (labels == "private")
    assert {row["client"] for row in rows if row["role"] == "front_weights"} == {"0", "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "labels"),
    [pytest.param(*one, marks=() if one[0] in ("sfl-v1", "fl") else pytest.mark.long) for one in IN_RAY],
)
def test_ray(mode: str, labels: str, runs: Path, cluster: None, tmp_path: Path) -> None:
    result = simulate(scenario(mode, labels, "engine={kind: ray, threads: 1}"), runs=tmp_path)
    assert crossed(result.folder) == crossed(inline(mode, labels, runs))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "labels"), DEPLOYED)
def test_deployment(mode: str, labels: str, runs: Path, tmp_path: Path) -> None:
    with deployment(tmp_path) as here:
        server = here.serve(scenario(mode, labels))
        clients = [here.join(client, "--threads", 1) for client in range(2)]
        assert server.end() == 0, server.text
        assert [client.end() for client in clients] == [0, 0], [client.text for client in clients]
        assert crossed(here.runs[0]) == crossed(inline(mode, labels, runs))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    vit = build(small("model.args.depth=3").model, 10, key=Key(77))
    save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, path)
    return f"model.weights={path}"


def plan(mode: str, labels: str, *more: str):
    return scenario(mode, labels, "federation.rounds=5", "federation.local_epochs=2", *more)


def refused(name: str, mode: str, labels: str) -> str | None:
    _, whole, private = KEYS[name]
    return whole if mode == "fl" else private if labels == "private" else None


@pytest.mark.parametrize(("mode", "labels"), WORKING)
@pytest.mark.parametrize("engine", ["inline", "{kind: ray, threads: 1}", "deployment"])
def test_each_is_taken_or_refused_with_its_reason(mode: str, labels: str, engine: str, weights: str) -> None:
    for name, (keys, *_) in KEYS.items():
        if why := refused(name, mode, labels):
            with pytest.raises(ScenarioError, match=why):
                plan(mode, labels, f"engine={engine}", weights, *keys)
        else:
            plan(mode, labels, f"engine={engine}", weights, *keys)


@pytest.mark.parametrize(("mode", "labels"), WORKING)
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
