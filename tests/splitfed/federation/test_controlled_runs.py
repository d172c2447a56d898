"""Whole runs under a controller: what it chose is what crossed, and it goes on where it was."""

import math
import re
from collections import defaultdict
from pathlib import Path

import pytest
from helpers import small, table
from outcomes import outcome

from splitfed import Scenario, simulate
from splitfed.errors import ModelError, RunError
from splitfed.run.observer import Observer
from splitfed.run.summary import Summary
from splitfed.split.mistakes import of_the_federation

LINE = "link={kind: fixed, up: 1Mbit, down: 4Mbit, latency: 10ms}"
POINTS = (
    "fine: {}, coarse: {compression: {reducer: {kind: adc, ratio: 0.3}, cut_gradient: {codec: float16}}},"
    "few: {compression: {reducer: {kind: topk, ratio: 0.1}, smashed: {lossless: none}}}, quiet: {gradient_every: 2},"
    "mute: {gradient_every: null}"
)


def control(target: str, points: str = POINTS, more: str = "kind: drift_plus_penalty") -> str:
    return f"control={{{more}, target: {{{target}}}, points: {{{points}}}}}"


SECONDS = control("kind: seconds_per_round, seconds: 500ms")


def spent(folder: Path) -> dict[tuple[int, int], int]:
    """Return the bytes of each round and client, but for what surrounds messages."""
    found: dict[tuple[int, int], int] = defaultdict(int)
    for row in table(folder / "ledger.csv"):
        if (row["plane"], row["role"]) != ("control", "envelope"):
            found[int(row["round"]), int(row["client"])] += int(row["sent_bytes"])
    return found


@pytest.mark.parametrize("mode", ["sl", "sfl-v1", "sfl-v2", "psl"])
def test_each_client_sends_what_was_chosen_for_it(mode: str, tmp_path: Path) -> None:
    result = simulate(small(LINE, SECONDS, f"federation.mode={mode}", "federation.rounds=5"), runs=tmp_path)
    chosen, ledger = table(result.folder / "control.csv"), table(result.folder / "ledger.csv")
    assert len(chosen) == 15
    points = {row["point"] for row in chosen}
    assert len(points) >= 3
    sizes = spent(result.folder)
    for row in chosen:
        place = int(row["round"]), int(row["client"])
        assert int(row["bytes"]) == sizes[place]
        up = {
            role: sum(
                int(r["sent_bytes"]) for r in ledger if (int(r["round"]), int(r["client"]), r["role"]) == (*place, role)
            )
            for role in ("side", "cut_gradient", "smashed")
        }
        assert (up["side"] > 0) == (row["point"] == "few")
        assert (up["cut_gradient"] == 0) == (row["point"] == "mute")
        assert up["smashed"] > 0
    # After a point's first round what is expected is what comes.
    known = {point: min(row["round"] for row in chosen if row["point"] == point) for point in points}
    later = [row for row in chosen if row["round"] > known[row["point"]]]
    assert len(later) > 3
    assert all(math.isclose(int(row["expected_bytes"]), int(row["bytes"]), rel_tol=0.05) for row in later)


def slowest(folder: Path) -> float:
    """Return the seconds of a round in the mean of the slowest client, by the choices that were written down."""
    took = defaultdict(list)
    for row in table(folder / "control.csv"):
        took[row["client"]].append(float(row["seconds"]))
    return max(math.fsum(each) / len(each) for each in took.values())


class _Stops(Observer):
    def progress(self, round: int, share: float) -> None:
        if round == 3 and share > 0.5:
            raise KeyboardInterrupt


def test_a_resumed_run_chooses_the_same(tmp_path: Path) -> None:
    plan = small(LINE, SECONDS, "federation.rounds=5", "federation.cohort=2", "evaluation={held_out: 0.2}")
    whole = simulate(plan, runs=tmp_path / "whole").folder
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "stopped", observers=[_Stops()])
    (folder,) = (tmp_path / "stopped").iterdir()
    assert {row["round"] for row in table(folder / "control.csv")} == {"1", "2"}
    simulate(resume=folder)
    assert outcome(folder) == outcome(whole)
    assert (folder / "control.csv").read_text() == (whole / "control.csv").read_text()
    assert Summary.read(folder).target_spent == pytest.approx(slowest(whole))


def test_what_was_chosen_in_a_round_without_a_checkpoint_is_cut(tmp_path: Path) -> None:
    plan = small(LINE, SECONDS)
    with pytest.raises(KeyboardInterrupt):
        simulate(plan.with_(["federation.rounds=4"]), runs=tmp_path, observers=[_Stops()])
    (folder,) = tmp_path.iterdir()
    before = (folder / "control.csv").read_text()
    with open(folder / "control.csv", "a") as file:
        file.write(before.splitlines(keepends=True)[-1].replace("2,", "3,", 1))
    simulate(resume=folder)
    rows = [(row["round"], row["client"]) for row in table(folder / "control.csv")]
    assert len(rows) == len(set(rows)) == 12


def test_all_bytes_hold_in_a_run_without_time(tmp_path: Path) -> None:
    few = "compression.reducer={kind: adc, ratio: 0.1}"
    runs = [simulate(small("federation.rounds=8", *changes), runs=tmp_path) for changes in ([], [few])]
    half = sum(size for run in runs for (round, _), size in spent(run.folder).items() if round) // 2
    plan = control(
        f"kind: all_bytes, bytes: {half}",
        "fine: {utility: 1}, few: {compression: {reducer: {kind: adc, ratio: 0.1}}, utility: 0}",
    )
    kept = simulate(small(plan, "federation.rounds=8"), runs=tmp_path)
    sent = sum(size for (round, _), size in spent(kept.folder).items() if round)
    assert sent == pytest.approx(half, rel=0.15)
    assert {row["seconds"] for row in table(kept.folder / "control.csv")} == {""}


def test_what_became_of_the_target_is_told(tmp_path: Path) -> None:
    """For each kind of target, as `control.csv` has it."""

    def run(target: str, *more: str) -> tuple[Summary, str, list[dict[str, str]]]:
        plan = small(LINE, control(target), "federation.rounds=4", "federation.clients=2", *more)
        folder = simulate(plan, runs=tmp_path).folder
        (line,) = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("target")]
        return Summary.read(folder), line, table(folder / "control.csv")

    for seconds, held in ("1ms", False), ("1000s", True):
        found, line, rows = run(f"kind: seconds_per_round, seconds: {seconds}")
        mean = max(math.fsum(float(r["seconds"]) for r in rows if r["client"] == who) / 4 for who in "01")
        assert (found.target_spent, found.target_held) == (pytest.approx(mean), held)
        assert f" a client's round: {mean:.3g} s in the mean of the slowest client, " in line
        assert line.endswith("within it" if held else "above it")
    found, line, rows = run("kind: bytes_per_second, bytes: 20kB")
    most = max(sum(int(row["bytes"]) for row in rows if row["client"] == who) for who in "01")
    assert found.target_spent == pytest.approx(most / found.simulated_seconds)
    assert re.fullmatch(r"target +20\.00 kB/s a client: [\d.]+ kB/s of the client with most, above it", line)
    found, line, rows = run("kind: all_bytes, bytes: 1MB, rounds: 2", "evaluation.held_out=0.2")
    sizes = spent(tmp_path / max(path.name for path in tmp_path.iterdir()))
    assert found.target_spent == sum(size for (round, _), size in sizes.items() if round in (1, 2))
    assert re.fullmatch(r"target +1\.00 MB by round 2: [\d.]+ [km]B, within it", line, re.I)
    found, line, rows = run("kind: all_bytes, bytes: 1kB")
    assert found.target_spent == sum(int(row["bytes"]) for row in rows)
    assert re.fullmatch(r"target +1\.00 kB in all: [\d.]+ [km]B, above it", line, re.I)


OWN = """
from splitfed.federation.control.base import Controller

class InTurn(Controller):
    def __init__(self, first: int = 0) -> None:
        self.number = first
        self.heard = []

    def choose(self, round, client, queue, options):
        self.number += 1
        return options[self.number % len(options)].name

    def learn(self, round, client, point, gain):
        self.heard.append(point)

class Wrong(InTurn):
    def choose(self, round, client, queue, options):
        return "nowhere"

class Fails(InTurn):
    def learn(self, round, client, point, gain):
        raise ValueError("so it is")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in_turn.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def of_ones_own(name: str, more: str = "") -> Scenario:
    return small(control("kind: all_bytes, bytes: 1MB", more=f'kind: "{name}"{more}'), "federation.rounds=4")


def test_a_controller_of_ones_own_keeps_what_it_has(own: None, tmp_path: Path) -> None:
    plan = of_ones_own("in_turn:InTurn", ", first: 3")
    whole = simulate(plan, runs=tmp_path / "whole").folder
    names = list(plan.points)
    rows = table(whole / "control.csv")
    assert sorted(row["point"] for row in rows) == sorted(names[number % 5] for number in range(4, 16))
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "stopped", observers=[_Stops()])
    (folder,) = (tmp_path / "stopped").iterdir()
    simulate(resume=folder)
    assert table(folder / "control.csv") == rows


@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("in_turn:InTurn", ", last: 3", "control.last: unknown argument, known: 'first' (of in_turn:InTurn)"),
        ("in_turn:InTurn", ", first: a", "control.first: "),
        ("in_turn:Nobody", "", "control: in_turn:Nobody cannot be imported: AttributeError"),
        ("nowhere:Nobody", "", "control: nowhere:Nobody cannot be imported: ModuleNotFoundError"),
        ("pathlib:Path", "", "control: pathlib:Path is not a subclass of splitfed.federation.control.base.Controller"),
        (
            "splitfed.federation.control.base:Controller",
            "",
            "control: splitfed.federation.control.base:Controller lacks",
        ),
    ],
)
def test_a_controller_that_cannot_be_used_is_told(own: None, name: str, more: str, why: str) -> None:
    plan = of_ones_own(name, more)  # reading imports nothing
    (key, said), = of_the_federation(plan)  # fmt: skip
    assert f"{key}: {said}".startswith(why)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("in_turn:Wrong", "control: in_turn:Wrong: choose returned 'nowhere', which is no point of the scenario"),
        ("in_turn:Fails", "control: in_turn:Fails: learn of round 1: ValueError: so it is"),
    ],
)
def test_a_controller_that_fails_ends_the_run_with_a_line(own: None, name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"^{why}$"):
        simulate(of_ones_own(name), runs=tmp_path / "runs")


def test_a_reducer_with_layers_is_the_same_at_all_points(tmp_path: Path) -> None:
    points = "a: {}, b: {compression: {reducer: {kind: bottleneck, width: 4}}}"
    plan = small(control("kind: all_bytes, bytes: 1MB", points))
    why = r"control\.points\.b\.compression\.reducer: bottleneck has not the layers of none"
    with pytest.raises(ModelError, match=why):
        simulate(plan, runs=tmp_path)
