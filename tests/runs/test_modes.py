"""Every mode, labels shared and private, in every engine: it works and sends the same, or is refused with a reason."""

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from deployed import deployment
from helpers import small, table

from splitfed import simulate
from splitfed.engines.ray.cluster import connected
from splitfed.errors import ScenarioError
from splitfed.scenario.sections import Federation

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
DEPLOYED = [("sl", "private"), ("sfl-v1", "private"), ("psl", "shared")]


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
@pytest.mark.parametrize(("mode", "labels"), IN_RAY)
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
