"""What a run of many rounds takes: no more memory, threads and open files late than early."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployed import Process, deployment, descendants
from helpers import ADC, small

# Caches fill, allocators keep what they had, a file is open for a moment; what each round leaves adds up to more.
MOST = {"bytes": 32 << 20, "threads": 4, "files": 8}
EARLY = 20


@dataclass(frozen=True, slots=True)
class Held:
    """What a process has."""

    bytes: int
    threads: int
    files: int


def held(process: Process) -> dict[int, Held]:
    """Return what a process and those that it started have, by their ids."""
    found = {}
    for pid in {process.pid} | descendants(process.pid):
        folder = Path(f"/proc/{pid}")
        pages, threads = ((folder / name).read_text() for name in ("statm", "status"))
        found[pid] = Held(
            int(pages.split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            int(re.findall(r"^Threads:\s*(\d+)", threads, re.MULTILINE)[0]),
            len(os.listdir(folder / "fd")),
        )
    return found


def check(watched: list[Process], shown: Process, rounds: int) -> None:
    """Hold what processes have near the last round against what they had after the first ones."""
    seen = []
    for round in (EARLY, rounds - 10):
        shown.shows(rf"^\s*{round}/{rounds} ", seconds=900)
        seen.append([held(process) for process in watched])
    early, late = seen
    assert [one.keys() for one in early] == [one.keys() for one in late]  # nobody was started anew
    for before, after in zip(early, late, strict=True):
        for pid, had in before.items():
            grown = {name: getattr(after[pid], name) - getattr(had, name) for name in MOST}
            print(had, grown)
            assert all(grown[name] <= most for name, most in MOST.items()), (had, grown)


def many_rounds(rounds: int):
    return small(*ADC, f"federation.rounds={rounds}", "federation.clients=2", "data.limit=64", "data.test_limit=20")


@pytest.mark.long
def test_a_simulation_of_365_rounds_takes_no_more_and_more(tmp_path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(many_rounds(365).to_yaml())
    alone = Process(tmp_path / "log", "simulate", file, "--runs", tmp_path)
    try:
        check([alone], alone, 365)
        assert alone.end() == 0, alone.text
    finally:
        alone.kill()


@pytest.mark.long
def test_a_deployment_of_200_rounds_takes_no_more_and_more(tmp_path) -> None:
    """About three seconds a round: eight to ten minutes of short rounds."""
    with deployment(tmp_path) as here:
        server = here.serve(many_rounds(200))
        clients = [here.join(client) for client in range(2)]
        check([server, *clients], server, 200)
        assert [one.end() for one in (server, *clients)] == [0, 0, 0], server.text
