"""Phases and memory in every engine: the same bytes, the same losses; and a server that goes on when all have left."""

import signal
from pathlib import Path

import pytest
from deployed import deployment
from helpers import small, table
from outcomes import data_rows

from splitfed import simulate
from splitfed.engines.ray.cluster import connected

MEMORY = [
    "federation.clients=2", "federation.rounds=8", "federation.mode=sfl-v1", "memory={disk: 1GB}", "data.augment=flip",
    "phases=[{kind: gradient, rounds: 1}, {kind: local, rounds: 1, upload_every: 1, align_every: 2}, frozen]",
    "data.variants=2", "compression.smashed.delta=true", "compression.cut_gradient.delta=true",
    "compression.front_weights={codec: {kind: uniform, bits: 8}, delta: {kind: uniform, bits: 4}}",
]  # fmt: skip


def learned(folder: Path) -> list[dict[str, str]]:
    without = ("seconds", "total_bytes", "total_raw_bytes")
    return list(table(folder / "metrics.csv", *without))


@pytest.mark.long
def test_ray(tmp_path: Path) -> None:
    here = simulate(small(*MEMORY), runs=tmp_path / "inline", observers=())
    with connected(None, {}):
        ray = simulate(small(*MEMORY, "engine={kind: ray, threads: 1}"), runs=tmp_path / "ray", observers=())
    assert data_rows(ray.folder) == data_rows(here.folder)
    assert learned(ray.folder) == learned(here.folder)


@pytest.mark.slow
def test_clients_leave_when_all_is_remembered_and_the_server_goes_on(tmp_path: Path) -> None:
    expected = simulate(small(*MEMORY), runs=tmp_path / "inline", observers=())
    with deployment(tmp_path) as here:
        server = here.serve(small(*MEMORY))
        clients = [here.join(client, "--threads", 1) for client in range(2)]
        assert [client.end() for client in clients] == [0, 0], [client.text for client in clients]
        assert all("done: the run goes on without this client" in client.text for client in clients)
        if server.running:
            server.shows(r"4/8 .* memory")
            server.kill(signal.SIGKILL)
            server.end()
        (folder,) = here.runs
        if not (folder / "summary.json").exists():
            again = here.serve(None, "--resume", folder)
            assert again.end() == 0, again.text
        assert data_rows(folder) == data_rows(expected.folder)
        assert learned(folder) == learned(expected.folder)
        assert not (folder / "memory").exists()
