"""What both ends keep from round to round, in every engine: the same bytes cross, and the same model comes out."""

from pathlib import Path

import pytest
from deployed import deployment
from helpers import small, table

from splitfed import simulate
from splitfed.engines.ray.cluster import connected

DELTA = "compression.front_weights={codec: {kind: uniform, bits: 8}, delta: {kind: uniform, bits: 4}}"
NORMS, LORA = "model.adapter=norms", "model.adapter={kind: lora, rank: 2}"
TURNS = "model.adapter={kind: hydra, parts: 2}"
EXITS = "model.exits={blocks: [1]}"


COPIES = (
    "compression.smashed={codec: {kind: uniform, bits: 3, rotation: true}, delta: true, skip: 0.99}",
    "compression.cut_gradient={codec: {kind: uniform, bits: 4}, delta: true}",
)


# A client keeps its budgets, and an embedding that is sent once.
BUDGETS = (
    "model.args={patch_size: 2, embed_dim: 16, depth: 4, num_heads: 2}", "model.cut=2", "training.ahead=1",
    "model.adaptive={kind: alast, trained: 2, alpha: 0.3, embedding: never}",
)  # fmt: skip


def scenario(*more: str):
    """Three rounds, as the first of differences is the second."""
    return small("federation.clients=2", "federation.rounds=3", "federation.mode=sfl-v1", *more)


def crossed(folder: Path) -> list[dict[str, str]]:
    """Return what crossed the cut and what weights crossed, row by row."""
    weights = ("front_weights", "exit_weights")
    return [row for row in table(folder / "ledger.csv") if row["plane"] == "data" or row["role"] in weights]


@pytest.mark.long
def test_ray(tmp_path: Path) -> None:
    with connected(None, {}):
        for number, more in enumerate(([NORMS, EXITS], [LORA, DELTA], COPIES, [TURNS], BUDGETS)):
            here = simulate(scenario(*more), runs=tmp_path / f"inline-{number}")
            ray = simulate(scenario(*more, "engine={kind: ray, threads: 1}"), runs=tmp_path / f"ray-{number}")
            assert crossed(ray.folder) == crossed(here.folder)
            assert ray.summary.test_loss == here.summary.test_loss


@pytest.mark.long
@pytest.mark.parametrize(
    "more", [(NORMS, EXITS, DELTA, *COPIES), (TURNS,), (DELTA, *BUDGETS)], ids=["copies", "turns", "budgets"]
)
def test_deployment(more: tuple[str, ...], tmp_path: Path) -> None:
    expected = simulate(scenario(*more), runs=tmp_path / "inline")
    with deployment(tmp_path) as here:
        server = here.serve(scenario(*more))
        clients = [here.join(client, "--threads", 1) for client in range(2)]
        assert server.end() == 0, server.text
        assert [client.end() for client in clients] == [0, 0], [client.text for client in clients]
        assert crossed(here.runs[0]) == crossed(expected.folder)
