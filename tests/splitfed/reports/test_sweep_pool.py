"""Sweeps as they run: what is skipped, what goes on, what fails, and how they stop.

Most tests put a small script in the place of a training process; two train.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import BASE, table
from places import ROOT, python_path

from splitfed import compare, simulate, sweep
from splitfed.errors import RunError
from splitfed.reports.study.plots import draw
from splitfed.reports.sweep import pool as sweeping
from splitfed.reports.sweep.folder import prepare, rounds_done
from splitfed.reports.sweep.plan import Sweep
from splitfed.reports.sweep.text import show_plan
from splitfed.run.folder import locked

SWEEPS = ROOT / "sweeps"

# What a point does is in its label. A child that is asked to stop says so in a file.
SCRIPT = """
import json, os, shutil, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
name = folder.name
with open(folder.parent / "starts", "a") as starts:
    starts.write(name + "\\n")
def stopped(*_):
    (folder / "stopped").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, stopped)
if name.startswith("late"):
    (folder / "checkpoints" / "round-000000").mkdir(parents=True)
if name.startswith(("mistake", "late")):
    print("a library says something", file=sys.stderr)
    print("data.path: no such folder", file=sys.stderr)
    sys.exit(2)
if name.startswith("crash"):
    raise ValueError("out of luck")
if name.startswith("killed"):
    os.kill(os.getpid(), 9)
if name.startswith("silent"):
    sys.exit(0)
if name.startswith("removed"):
    shutil.rmtree(folder)
    sys.exit(1)
if name.startswith("long"):
    (folder / "metrics.csv").touch()
    time.sleep(60)
if name.startswith("meet"):
    (folder / "here").touch()
    while len(list(folder.parent.glob("meet*/here"))) < 2:
        time.sleep(0.01)
if "once" in name and not (folder / "again").exists():
    (folder / "again").touch()
    raise ValueError("the first time")
(folder / "summary.json").write_text(json.dumps({
    "scenario": name, "seed": 0, "engine": "inline", "rounds": 2, "test_accuracy": 0.5, "cut_bytes": 1000,
    "total_bytes": 2000, "bytes_wasted": 0, "raw_bytes": 8000, "cut_factor": 8.0, "factor": 4.0, "seconds": 3.0,
    "test_loss": 1.0, "eval_accuracy": None, "total_raw_bytes": 8000, "stopped": "rounds", "reducer": "none",
    "mode": "sfl-v2",
}))
"""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "command", lambda folder: [sys.executable, "-I", "-c", SCRIPT, str(folder)])


def study(folder: Path, *labels: str, base: str = BASE) -> Path:
    """A sweep with points of these labels."""
    (folder / "base.yaml").write_text(base)
    points = "".join(f"  {label}: {{data.limit: {60 + n}}}\n" for n, label in enumerate(labels))
    path = folder / "study.yaml"
    path.write_text(f"scenario: base.yaml\npoints:\n{points}")
    return path


def starts(runs: Path) -> list[str]:
    return (runs / "study" / "starts").read_text().split()


def stop_when(ready: Callable[[], bool]) -> Callable[[str], None]:
    """A status that interrupts as Ctrl-C would, once something is so."""

    def status(_: str) -> None:
        if ready():
            raise KeyboardInterrupt

    return status


@pytest.mark.usefixtures("scripted")
def test_every_point_gets_a_folder_with_its_scenario_and_a_line(tmp_path: Path) -> None:
    lines: list[str] = []
    swept = sweep(study(tmp_path, "a", "bee"), runs=tmp_path, say=lines.append)
    assert swept.done == [tmp_path / "study" / name for name in ("a-seed0", "bee-seed0")]
    assert swept.failed == []
    assert lines == [
        f"study: 2 runs, 2 new; in {tmp_path / 'study'}",
        "1/2  a-seed0     50.0 %    1.00 kB cut    2.00 kB total   8.00x  3.0 s",
        "2/2  bee-seed0   50.0 %    1.00 kB cut    2.00 kB total   8.00x  3.0 s",
    ]
    for point in Sweep.load(tmp_path / "study.yaml").points:
        folder = tmp_path / "study" / point.name
        assert sorted(path.name for path in folder.iterdir()) == ["scenario.yaml", "summary.json"]
        assert (folder / "scenario.yaml").read_text() == point.scenario.to_yaml()


@pytest.mark.usefixtures("scripted")
def test_what_is_done_is_not_run_again_and_what_is_added_is(tmp_path: Path) -> None:
    sweep(study(tmp_path, "a"), runs=tmp_path)
    lines: list[str] = []
    swept = sweep(study(tmp_path, "a", "b"), runs=tmp_path, say=lines.append)
    assert len(swept.done) == 2
    assert starts(tmp_path) == ["a-seed0", "b-seed0"]
    assert lines[0] == f"study: 2 runs, 1 done, 1 new; in {tmp_path / 'study'}"
    assert lines[1].startswith("2/2  b-seed0 ")


@pytest.mark.usefixtures("scripted")
def test_a_folder_of_other_settings_is_refused_before_anything_runs(tmp_path: Path) -> None:
    sweep(study(tmp_path, "a"), runs=tmp_path)
    with pytest.raises(RunError) as caught:
        sweep(study(tmp_path, "b", "a"), runs=tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'study' / 'a-seed0'}: was run with other settings (data.limit: 60 there, 61 here): "
        "give the point another label, or remove the folder"
    )
    assert starts(tmp_path) == ["a-seed0"]
    (tmp_path / "study" / "b-seed0").mkdir()
    (tmp_path / "study" / "b-seed0" / "mine.txt").touch()
    with pytest.raises(RunError, match=r"b-seed0: no scenario\.yaml in it, so this is no run folder\n.*a-seed0: was"):
        sweep(tmp_path / "study.yaml", runs=tmp_path)


@pytest.mark.usefixtures("scripted")
def test_a_point_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    lines: list[str] = []
    plan = study(tmp_path, "mistake", "crash", "killed", "silent", "late", "once", "removed", "fine")
    swept = sweep(plan, runs=tmp_path, say=lines.append)
    assert [folder.name for folder in swept.done] == ["fine-seed0"]
    reasons, root = {folder.name: why for folder, why in swept.failed}, tmp_path / "study"
    log = f"see {root / 'NAME' / 'errors.txt'}"
    assert reasons == {
        "mistake-seed0": "data.path: no such folder",
        "crash-seed0": f"ended with code 1: ValueError: out of luck; {log.replace('NAME', 'crash-seed0')}",
        "killed-seed0": f"killed by signal 9: it said nothing; {log.replace('NAME', 'killed-seed0')}",
        "silent-seed0": f"{root / 'silent-seed0'}: no summary.json, so the run is unfinished or this is no run folder",
        "late-seed0": "data.path: no such folder",
        "removed-seed0": f"{root / 'removed-seed0'} or what was in it was removed while it ran",
        "once-seed0": f"ended with code 1: ValueError: the first time; {log.replace('NAME', 'once-seed0')}",
    }
    assert lines[1] == "1/8  mistake-seed0  failed: data.path: no such folder"
    # A mistake before anything ran leaves nothing behind; anything else leaves what there is.
    assert not (root / "mistake-seed0").exists()
    assert (root / "late-seed0" / "checkpoints").is_dir()
    assert "out of luck" in (root / "crash-seed0" / "errors.txt").read_text()
    again = sweep(plan, runs=tmp_path)
    assert [folder.name for folder in again.done] == ["once-seed0", "fine-seed0"]
    assert starts(tmp_path).count("fine-seed0") == 1


@pytest.mark.usefixtures("scripted")
def test_two_jobs_run_at_once(tmp_path: Path) -> None:
    """Each of the two waits for the other."""
    assert len(sweep(study(tmp_path, "meet-a", "meet-b"), runs=tmp_path, jobs=2).done) == 2


@pytest.mark.usefixtures("scripted")
def test_an_interrupt_stops_all_that_run_and_starts_no_more(tmp_path: Path) -> None:
    root = tmp_path / "study"
    ready = stop_when(lambda: len(list(root.glob("long*/metrics.csv"))) == 2)
    with pytest.raises(KeyboardInterrupt):
        sweep(study(tmp_path, "long-a", "long-b", "later"), runs=tmp_path, jobs=2, status=ready)
    assert len(list(root.glob("long*/stopped"))) == 2
    assert sorted(starts(tmp_path)) == ["long-a-seed0", "long-b-seed0"]
    assert not (root / "later-seed0").exists()
    assert not list(root.glob("*/errors.txt"))


@pytest.mark.usefixtures("scripted")
def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    with locked(tmp_path / "study"), pytest.raises(RunError, match="study: another process is running it"):
        sweep(study(tmp_path, "a"), runs=tmp_path)
    with pytest.raises(RunError, match=r"base\.yaml/study: cannot be created .*--runs"):
        sweep(tmp_path / "study.yaml", runs=tmp_path / "base.yaml")


def test_a_plan_shows_every_run_how_far_it_is_and_its_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Sweep.load(study(tmp_path, "a", "b", "c"))
    for point, metrics in zip(plan.points, ("", "round\n"), strict=False):
        prepare(tmp_path / "study" / point.name, point)
        (tmp_path / "study" / point.name / "metrics.csv").write_text(metrics)
    (tmp_path / "study" / "a-seed0" / "summary.json").touch()
    show_plan(plan, tmp_path)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "seed0" in line or "to run" in line]
    assert [row[:2] for row in rows] == [["a-seed0", "done"], ["b-seed0", "after"], ["c-seed0", "new"], ["2", "to"]]
    cut = [float(row[row.index("kB") - 1]) for row in rows]
    assert cut[3] == pytest.approx(cut[1] + cut[2], abs=0.02)
    assert cut[2] > 50


@pytest.mark.slow
def test_points_train_in_processes_of_their_own(tmp_path: Path) -> None:
    """With the same figures as the same scenario in this process."""
    path = study(tmp_path, "a", "b")
    swept = sweep(path, runs=tmp_path, jobs=2)
    assert swept.failed == []
    alone = simulate(Sweep.load(path).points[1].scenario, runs=tmp_path / "alone")
    aside = ("seconds",)
    assert table(swept.done[1] / "metrics.csv", *aside) == table(alone.folder / "metrics.csv", *aside)
    assert not (swept.done[1] / "errors.txt").exists()


@pytest.mark.long
def test_an_interrupted_point_goes_on_where_it_was(tmp_path: Path) -> None:
    path = study(tmp_path, "a", base=BASE.replace("rounds: 2", "rounds: 40"))
    folder = tmp_path / "study" / "a-seed0"
    with pytest.raises(KeyboardInterrupt):
        sweep(path, runs=tmp_path, status=stop_when(lambda: rounds_done(folder) >= 2))
    assert 2 <= rounds_done(folder) < 40
    lines: list[str] = []
    swept = sweep(path, runs=tmp_path, say=lines.append)
    assert lines[0].startswith("study: 1 run, 1 unfinished; ")
    alone = simulate(Sweep.load(path).points[0].scenario, runs=tmp_path / "alone")
    assert table(swept.done[0] / "metrics.csv", "seconds") == table(alone.folder / "metrics.csv", "seconds")


@pytest.mark.long
def test_the_example_runs_and_its_pictures_can_be_drawn(tmp_path: Path) -> None:
    few = ["federation.rounds=1", "federation.local_epochs=1", "data.limit=200", "data.test_limit=50"]
    once = (SWEEPS / "digits-bits.yaml").read_text().replace("[0, 1, 2]", "[0, 1]")
    (tmp_path / "digits-bits.yaml").write_text(once)
    swept = sweep(tmp_path / "digits-bits.yaml", runs=tmp_path, jobs=2, overrides=few)
    assert swept.failed == []
    groups = compare(swept.done).grouped("ratio").groups
    assert [one.label for one in groups][-1] == "uncompressed"
    assert [len(one.runs) for one in groups if one.label.endswith("-4bit")] == [2, 2]
    assert all(path.stat().st_size > 10_000 for path in draw(groups, tmp_path / "bits.png"))


@pytest.mark.slow
def test_points_end_when_their_sweep_is_killed(tmp_path: Path) -> None:
    path = study(tmp_path, "a", base=BASE.replace("rounds: 2", "rounds: 100000"))
    folder = tmp_path / "study" / "a-seed0"
    parent = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "splitfed", "sweep", str(path), "--runs", str(tmp_path)],
        {**os.environ, "PYTHONPATH": python_path(*sys.path)},
    )  # fmt: skip
    _until(lambda: rounds_done(folder) >= 1)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    _until(lambda: not _held(folder))


def _held(folder: Path) -> bool:
    try:
        with locked(folder):
            return False
    except RunError:
        return True


def _until(so: Callable[[], bool]) -> None:
    limit = time.monotonic() + 300
    while not so():
        assert time.monotonic() < limit
        time.sleep(0.1)
