"""Runs side by side, and no folder passed over in silence."""

import csv
import io
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import rich.console

from splitfed.comparison import compare
from splitfed.errors import RunError
from splitfed.metrics import HEADER, Metrics
from splitfed.summary import Summary

SUMMARY = Summary(
    "digits", 0, "inline", 12, 0.86199, 1_290_000, 19_130_000, 5_000, 24_052_500, 18.6457, 5.0219, 75.6, 0.51, 1 / 3,
    96_070_500, "rounds", "adc", "sfl-v1",
)  # fmt: skip
METRICS = Metrics(1, 1.25, None, None, 10, 20, 6.5, 40, 80, 500, 5, 0.05, 0.1)


def run(folder: Path, summary: Summary | None = SUMMARY, rounds: int = 12) -> Path:
    folder.mkdir()
    (folder / "ledger.csv").touch()
    (folder / "metrics.csv").write_text(HEADER + "".join(replace(METRICS, round=n + 1).line() for n in range(rounds)))
    if summary:
        summary.write(folder)
    return folder


def shown(folders: list[Path], width: int = 80) -> list[str]:
    file = io.StringIO()
    compare(folders).show(rich.console.Console(file=file, width=width))
    return file.getvalue().splitlines()


def test_a_row_shows_what_a_run_reached_and_cost(tmp_path: Path) -> None:
    folder = run(tmp_path / "digits-20261121T072016Z")
    lines = shown([folder])
    assert [re.split(r"\s{2,}", line.strip()) for line in (lines[0], lines[1], lines[3])] == [
        ["cut", "total", "cut", "total"],
        ["scenario", "seed", "rounds", "accuracy", "bytes", "bytes", "factor", "factor", "time", "waste", "run folder"],
        ["digits", "0", "12", "86.1 %", "1.29 MB", "19.13 MB", "18.6x", "5.02x", "1 min 16 s", "5.00 kB", str(folder)],
    ]
    assert len(lines) == 4


@pytest.mark.parametrize("width", [20, 80, 300])
def test_no_width_cuts_a_row(tmp_path: Path, width: int) -> None:
    folder = run(tmp_path / ("long" * 40 + "[b]:smile:"), replace(SUMMARY, scenario="[red]name"))
    lines = shown([folder], width)
    assert lines == shown([folder], 80)
    assert lines[3].rstrip().endswith(str(folder))
    assert "[red]name" in lines[3]


def test_rows_stand_in_the_order_given(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, replace(SUMMARY, seed=seed)) for seed, name in enumerate("cab")]
    result = compare(folders)
    assert [(folder.name, summary.seed) for folder, summary in result.runs] == [("c", 0), ("a", 1), ("b", 2)]
    assert result.left_out == []


def test_what_has_no_result_is_named_with_the_reason(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "early", None, rounds=0)
    run(tmp_path / "later", None, rounds=3)
    (run(tmp_path / "no-metrics", None) / "metrics.csv").unlink()
    with open(run(tmp_path / "live", None, rounds=2) / "metrics.csv", "a") as file:
        file.write("3,1.2")
    (run(tmp_path / "odd", None) / "metrics.csv").write_text(HEADER + "three\n")
    (run(tmp_path / "torn") / "summary.json").write_text('{"scenario": "dig')
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    result = compare([*sorted(tmp_path.iterdir()), tmp_path / "nowhere"])
    assert [folder.name for folder, _ in result.runs] == ["whole"]
    reasons = {folder.name: reason for folder, reason in result.left_out}
    none = "no summary.json, so the run is unfinished or this is no run folder"
    assert re.match(r"metrics\.csv: broken \(", reasons.pop("odd"))
    assert re.match(r"summary\.json: broken \(", reasons.pop("torn"))
    assert reasons == {
        "early": "unfinished after round 0", "later": "unfinished after round 3", "live": "unfinished after round 2",
        "no-metrics": "unfinished after round 0", "notes.txt": none, "empty": none, "nowhere": none,
    }  # fmt: skip
    below = shown(sorted(tmp_path.iterdir()))[4:]
    assert f"{tmp_path / 'later'}: unfinished after round 3" in below
    assert len(below) == 8


def test_nothing_finished_is_an_error_with_every_reason(tmp_path: Path) -> None:
    folders = [run(tmp_path / "a", None, rounds=2), tmp_path / "nowhere"]
    with pytest.raises(RunError) as caught:
        compare(folders)
    assert str(caught.value).splitlines() == [
        "no finished run to compare",
        f"  {folders[0]}: unfinished after round 2",
        f"  {folders[1]}: no summary.json, so the run is unfinished or this is no run folder",
    ]
    with pytest.raises(RunError, match="no finished run"):
        compare([])


def test_the_csv_holds_every_figure_in_full(tmp_path: Path) -> None:
    folder = run(tmp_path / "with, comma")
    text = compare([folder, tmp_path / "nowhere"]).to_csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows == [{"folder": str(folder), **{key: str(value) for key, value in asdict(SUMMARY).items()}}]
    assert float(rows[0]["eval_accuracy"]) == 1 / 3
    assert "\r" not in text
