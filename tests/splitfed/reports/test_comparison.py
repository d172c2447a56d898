"""Runs side by side, and no folder passed over in silence."""

import csv
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from splitfed.cli.main import app
from splitfed.errors import RunError, SplitfedError
from splitfed.reports.study.comparison import By, compare
from splitfed.reports.study.groups import Spread
from splitfed.run.ledger import COLUMNS
from splitfed.run.metrics import HEADER, Metrics, read_metrics
from splitfed.run.summary import Summary

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
        ["cut", "total", "cut", "total", "images"],
        ["scenario", "seed", "rounds", "accuracy", "bytes", "bytes", "factor", "factor", "factor", "time", "waste",
         "run folder"],
        ["digits", "0", "12", "86.2 %", "1.29 MB", "19.13 MB", "18.6x", "5.02x", "-", "1 min 16 s", "5.00 kB",
         str(folder)],
    ]  # fmt: skip
    assert len(lines) == 4


def test_what_was_sent_is_a_multiple_of_what_the_images_weigh_or_a_dash(tmp_path: Path) -> None:
    known = replace(SUMMARY, images_bytes=8_900_000, images_factor=19_130_000 / 8_900_000)
    below = replace(known, images_bytes=31_883_333, images_factor=19_130_000 / 31_883_333)
    folders = [run(tmp_path / name, summary) for name, summary in (("a", known), ("b", below), ("c", SUMMARY))]
    assert [re.split(r"\s{2,}", line.strip())[8] for line in shown(folders)[3:]] == ["2.15x", "0.6x", "-"]
    written = json.loads((folders[2] / "summary.json").read_text())
    for name in ("images_bytes", "images_factor", "images_reported"):
        del written[name]  # as in a run of an earlier version
    (folders[2] / "summary.json").write_text(json.dumps(written))
    assert compare(folders[2:]).runs[0][1] == SUMMARY
    rows = list(csv.DictReader(io.StringIO(compare(folders).to_csv())))
    assert [row["images_bytes"] for row in rows] == ["8900000", "31883333", ""]
    assert [row["images_reported"] for row in rows] == ["False"] * 3


def test_below_the_table_stands_whose_images_weigh_what_their_clients_said(tmp_path: Path) -> None:
    known = replace(SUMMARY, images_bytes=8_900_000, images_factor=2.15)
    folders = [run(tmp_path / "a", replace(known, images_reported=True)), run(tmp_path / "b", known)]
    assert shown(folders)[5:] == [f"{folders[0]}: what its images weigh is as its clients report it"]
    folders = [study(tmp_path, "c", 0.4, seed, 0.5, images_bytes=9, images_factor=1.0, images_reported=seed == 1)
               for seed in (0, 1)]  # fmt: skip
    assert grouped(folders)[4:] == [["c: what its images weigh is as its clients report it"]]


def test_groups_have_the_mean_multiple_and_none_where_a_run_has_none(tmp_path: Path) -> None:
    folders = [
        study(tmp_path, "a", ratio, seed, 0.5, 3_000_000, images_bytes=weight, images_factor=weight and 6e6 / weight)
        for ratio, seed, weight in ((0.4, 0, 1_000_000), (0.4, 1, 3_000_000), (0.8, 0, 1_000_000), (0.8, 1, None))
    ]
    assert [row[-2] for row in grouped(folders, "total")[3:]] == ["4.0x", "-"]
    rows = list(csv.DictReader(io.StringIO(compare(folders).grouped().to_csv())))
    assert [(row["images_bytes"], row["images_factor"]) for row in rows] == [("2000000", "4.0"), ("", "")]


@pytest.mark.parametrize("width", [20, 80, 300])
def test_no_width_cuts_a_row(tmp_path: Path, width: int) -> None:
    folder = run(tmp_path / ("long" * 40 + "[b]:smile:"), replace(SUMMARY, scenario="[red]name"))
    lines = shown([folder], width)
    assert lines == shown([folder], 80)
    assert lines[3].rstrip().endswith(str(folder))
    assert "[red]name" in lines[3]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 80, 300])
def test_on_a_terminal_columns_without_room_stand_below(tmp_path: Path, width: int) -> None:
    folders = [run(tmp_path / name) for name in "ab"]
    file = Terminal()
    compare(folders).show(rich.console.Console(file=file, width=width, color_system=None))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    whole = shown(folders)
    found = [word for line in lines for word in re.split(r"\s{2,}", line.strip())]
    for cell in re.split(r"\s{2,}", whole[3].strip())[1:-1]:
        assert found.count(cell) == 2, "each figure once for each run, whole"
    blocks = [line for line in lines if line.strip().startswith("scenario")]
    assert (len(blocks) > 1) == (width < len(whole[0]))
    assert sum(line.strip().startswith("digits") for line in lines) == 2 * len(blocks)


def test_rows_stand_in_the_order_given(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, replace(SUMMARY, seed=seed)) for seed, name in enumerate("cab")]
    result = compare(folders)
    assert compare([str(folder) for folder in folders]) == result
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
        "no-metrics": "unfinished after round 0", "empty": none,
        "notes.txt": "is a file, not the folder of a run", "nowhere": "there is no such folder",
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
        f"  {folders[1]}: there is no such folder",
    ]
    with pytest.raises(RunError, match="no finished run"):
        compare([])


def test_the_csv_holds_every_figure_in_full(tmp_path: Path) -> None:
    folder = run(tmp_path / "with, comma")
    text = compare([folder, tmp_path / "nowhere"]).to_csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    figures = {key: "" if value is None else str(value) for key, value in asdict(SUMMARY).items()}
    assert rows == [{"folder": str(folder), **figures}]
    assert float(rows[0]["eval_accuracy"]) == 1 / 3
    assert "\r" not in text


SCENARIO = """
name: {name}
seed: {seed}
data: {{path: digits}}
compression: {{reducer: {{kind: adc, ratio: {ratio}}}, smashed: {{codec: float32}}}}
engine: {{kind: inline, threads: {seed}}}
"""


def study(root: Path, name: str, ratio: float, seed: int, accuracy: float, cut: int = 1_000_000, **more) -> Path:
    """A finished run of three rounds, evaluated after the second and the third."""
    summary = replace(
        SUMMARY, scenario=name, seed=seed, test_accuracy=accuracy, cut_bytes=cut, total_bytes=2 * cut,
        raw_bytes=10_000_000, total_raw_bytes=12_000_000, seconds=60.0 + seed, rounds=3 + seed % 2, **more,
    )  # fmt: skip
    folder = run(root / f"{name}-{ratio}-seed{seed}", summary, rounds=0)
    (folder / "scenario.yaml").write_text(SCENARIO.format(name=name, seed=seed, ratio=ratio))
    rounds = [(1, None), (2, accuracy - 0.25), (3, accuracy - 0.125)]
    lines = [replace(METRICS, round=n, eval_accuracy=e, cut_bytes=n * cut // 3).line() for n, e in rounds]
    (folder / "metrics.csv").write_text(HEADER + "".join(lines))
    rows = [
        f"1,1,0,up,data,smashed,1000,500,{int(800 * ratio)},1", f"1,1,0,up,data,side,0,0,{int(200 * ratio)},1",
        "1,1,0,up,data,targets,80,80,80,80", f"1,1,0,down,data,cut_gradient,1000,500,{int(500 * ratio)},1",
        "1,0,0,up,control,front_weights,9000,9000,9000,9000",
    ]  # fmt: skip
    (folder / "ledger.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return folder


def with_weights(folder: Path, each: int, wasted: int = 0) -> Path:
    """The run of a folder, had it also sent so many bytes of weights each round, and wasted some in the first."""
    path, summary = folder / "metrics.csv", Summary.read(folder)
    rows = [replace(row, total_bytes=row.cut_bytes + row.round * each) for row in read_metrics(path)]
    path.write_text(HEADER + "".join(row.line() for row in rows))
    total = rows[-1].total_bytes + wasted
    replace(summary, total_bytes=total, bytes_wasted=wasted, total_raw_bytes=2 * total).write(folder)
    return folder


def grouped(folders: list[Path], by: By | None = None, at: int | None = None) -> list[list[str]]:
    file = io.StringIO()
    compare(folders).grouped(by).show(rich.console.Console(file=file, width=80), at=at)
    return [re.split(r"\s{2,}", line.strip()) for line in file.getvalue().splitlines()]


def test_seeds_of_the_same_settings_are_one_row(tmp_path: Path) -> None:
    folders = [
        study(tmp_path, "adc", 0.4, 0, 0.50, 3_000_000), study(tmp_path, "adc", 0.4, 1, 0.60, 3_300_000),
        study(tmp_path, "light", 0.9, 0, 0.75, 9_000_000),
    ]  # fmt: skip
    head, below, _, *rows = grouped(folders)
    assert (head, below) == (
        ["lowest to", "cut", "total", "cut", "total", "images"],
        ["scenario", "seeds", "rounds", "accuracy", "highest", "bytes", "bytes", "ratio", "factor", "factor", "factor",
         "time"],
    )  # fmt: skip
    assert rows == [
        ["adc", "0, 1", "3 to 4", "55.0 %", "50.0 to 60.0 %", "3.15 MB", "6.30 MB", "0.300", "3.17x", "1.90x",
         "-", "1 min 01 s"],
        ["light", "0", "3", "75.0 %", "-", "9.00 MB", "18.00 MB", "0.675", "1.11x", "0.67x", "-",
         "1 min 00 s"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("by", "order"), [("bytes", "acb"), ("total", "acb"), ("ratio", "bca"), ("time", "bac"), (None, "abc")]
)
def test_groups_are_sorted_by_what_is_asked_for(tmp_path: Path, by: By | None, order: str) -> None:
    folders = [
        study(tmp_path, "a", 0.8, 5, 0.5, 1_000), study(tmp_path, "b", 0.2, 0, 0.5, 3_000),
        study(tmp_path, "c", 0.4, 9, 0.5, 2_000),
    ]  # fmt: skip
    assert "".join(row[0] for row in grouped(folders, by)[3:]) == order


def test_an_order_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--by size: runs can be sorted by bytes, total, ratio, time"):
        compare([study(tmp_path, "a", 0.4, 0, 0.5)]).grouped("size")  # type: ignore[arg-type]


def test_what_was_reached_at_a_budget(tmp_path: Path) -> None:
    """On a straight line between evaluated rounds, of a run and of all seeds of a group; outside of them a dash, and
    below why."""
    folders = [study(tmp_path, "adc", 0.4, seed, 0.5 + seed / 10, 3_000_000 + 300 * seed) for seed in (0, 1)]
    for at, mean, runs in (
        (2_000_000, "-", ["25.0 %", "-"]),
        (2_000_200, "30.0 %", ["25.0 %", "35.0 %"]),
        (2_500_100, "36.2 %", ["31.3 %", "41.2 %"]),
        (3_000_000, "42.5 %", ["37.5 %", "47.5 %"]),
        (3_000_200, "-", ["-", "47.5 %"]),
    ):
        head, below, _, row, *why = grouped(folders, at=at)
        assert head[1:3] == ["validation", "cut"]
        assert below[5] == f"at {at / 1e6:.2f} MB"
        assert row[5] == mean
        reasons = {2_000_000: "adc: seed 1 first evaluated after 2.00 MB",
                   3_000_200: "adc: seed 0 shorter, last evaluated after 3.00 MB"}  # fmt: skip
        said = [[f"no validation accuracy at {at / 1e6:.2f} MB of cut bytes:"], [reasons[at]]] if at in reasons else []
        assert why == said
        file = io.StringIO()
        compare(folders).show(rich.console.Console(file=file), at=at)
        lines = file.getvalue().splitlines()[3:]
        assert [re.split(r"\s{2,}", line.strip())[4] for line in lines[:2]] == runs
        assert len(lines) == 2 + 2 * ("-" in runs)


def test_a_dash_says_why(tmp_path: Path) -> None:
    """Also of a run that has no curve at all; the others are shown."""
    whole, blind, uncut, bare = (study(tmp_path, name, 0.4, 0, 0.5, 3_000_000) for name in "abcd")
    for folder, change in ((blind, {"eval_accuracy": None}), (uncut, {"cut_bytes": 0})):
        rows = [replace(row, **change) for row in read_metrics(folder / "metrics.csv")]  # type: ignore[arg-type]
        (folder / "metrics.csv").write_text(HEADER + "".join(row.line() for row in rows))
    (bare / "metrics.csv").unlink()
    file = io.StringIO()
    found = compare([whole, blind, uncut, bare])
    found.show(rich.console.Console(file=file, width=80), at=2_500_000)
    table, _, notes = file.getvalue().partition("no validation accuracy at 2.50 MB of cut bytes:\n")
    assert [re.split(r"\s{2,}", line.strip())[4] for line in table.splitlines()[3:]] == ["31.3 %", "-", "-", "-"]
    assert notes.splitlines() == [
        f"  {blind}: never evaluated on the validation split",
        f"  {uncut}: has no cut to send bytes across",
        f"  {bare}: metrics.csv: cannot be read (No such file or directory)",
    ]
    rows = list(csv.DictReader(io.StringIO(found.to_csv(at=2_500_000))))
    assert [row["at_eval_accuracy"] for row in rows] == ["0.3125", "", "", ""]
    whole_table = io.StringIO()
    found.show(rich.console.Console(file=whole_table, width=80))
    assert "no validation" not in whole_table.getvalue()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_a_mean_lies_between_the_lowest_and_the_highest(values: list[float]) -> None:
    spread = Spread.of(values)
    assert min(values) == spread.low <= spread.mean <= spread.high == max(values)
    assert spread.mean == pytest.approx(sum(values) / len(values), abs=1e-11)


def test_names_that_several_share_are_told_apart_by_settings(tmp_path: Path) -> None:
    folders = [study(tmp_path, "adc", ratio, 0, 0.5) for ratio in (0.4, 0.9)]
    (study(tmp_path, "adc", 0.1, 0, 0.5) / "scenario.yaml").unlink()
    assert [row[0] for row in grouped([*folders, tmp_path / "adc-0.1-seed0"])[3:]] == [
        "adc: path=digits, reducer=adc, ratio=0.4, codec=float32",
        "adc: path=digits, reducer=adc, ratio=0.9, codec=float32",
        f"adc: folder={tmp_path / 'adc-0.1-seed0'}",
    ]
    assert [row[0] for row in grouped(folders)[3:]] == ["adc: ratio=0.4", "adc: ratio=0.9"]


def test_a_run_with_broken_files_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    whole, torn, gone = (study(tmp_path, name, 0.4, 0, 0.5) for name in ("whole", "torn", "gone"))
    with open(torn / "ledger.csv", "a") as ledger:
        ledger.write("2,1,0,up,da")
    (gone / "metrics.csv").unlink()
    open_ = run(tmp_path / "open", None, rounds=1)
    result = compare([whole, torn, gone, open_]).grouped()
    assert [one.label for one in result.groups] == ["whole"]
    reasons = dict(result.left_out)
    assert reasons.pop(torn).startswith("ledger.csv: broken (")
    assert reasons == {
        gone: "metrics.csv: cannot be read (No such file or directory)", open_: "unfinished after round 1"
    }  # fmt: skip
    with pytest.raises(RunError, match=r"no finished run to compare\n  .*torn-0.4-seed0: ledger\.csv: broken"):
        compare([torn]).grouped()


def test_the_csv_of_groups_holds_means_and_extremes(tmp_path: Path) -> None:
    folders = [study(tmp_path, "adc", 0.4, seed, 0.5 + seed / 8, 3_000_000) for seed in (0, 1)]
    (row,) = csv.DictReader(io.StringIO(compare(folders).grouped().to_csv(at=2_500_000)))
    assert row == {
        "scenario": "adc", "seeds": "0 1", "test_accuracy": "0.5625", "test_accuracy_low": "0.5",
        "test_accuracy_high": "0.625", "at_bytes": "2500000", "at_eval_accuracy": "0.375",
        "at_eval_accuracy_low": "0.3125", "at_eval_accuracy_high": "0.4375",
        "worst_client": "", "median_client": "", "best_client": "",
        "cut_bytes": "3000000", "total_bytes": "6000000", "images_bytes": "", "images_factor": "",
        "raw_bytes": "10000000", "total_raw_bytes": "12000000",
        "ratio": "0.3", "seconds": "60.5", "simulated_seconds": "",
    }  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(compare(folders).grouped().to_csv()))
    assert not any(name.startswith("at_") for name in row)
    (first, _) = csv.DictReader(io.StringIO(compare(folders).to_csv(at=1)))
    assert (first["at_bytes"], first["at_eval_accuracy"]) == ("1", "")


def test_worst_median_and_best_client_stand_where_clients_were_asked(tmp_path: Path) -> None:
    folders = [study(tmp_path, "adc", 0.4, seed, 0.5, 3_000_000) for seed in (0, 1)]
    heads = ["".join(str(column.header).split()) for column in compare(folders).grouped().table().columns]
    assert "worst,median,bestclient" not in heads
    for folder, scores in zip(folders, ((0.2, 0.5, 0.75), (0.4, 0.5, 1.0)), strict=True):
        asked = dict(zip(("worst_client", "median_client", "best_client"), scores, strict=True))
        replace(Summary.read(folder), **asked).write(folder)
    result = compare(folders)
    assert list(map(str, result.table().columns[4].cells)) == ["20.0, 50.0, 75.0 %", "40.0, 50.0, 100.0 %"]
    (row,) = csv.DictReader(io.StringIO(result.grouped().to_csv()))
    assert float(row["worst_client"]) == pytest.approx(0.3)
    assert (row["median_client"], row["best_client"]) == ("0.5", "0.875")
    assert "30.0, 50.0, 87.5 %" in [str(cell) for column in result.grouped().table().columns for cell in column.cells]


def test_by_total_sorts_and_shows_the_bytes_of_both_planes_and_the_waste(tmp_path: Path) -> None:
    folders = [
        with_weights(study(tmp_path, "small-cut", 0.2, 0, 0.5, 300_000), 900_000),  # 3.0 MB in all
        with_weights(study(tmp_path, "large-cut", 0.8, 0, 0.5, 2_400_000), 100_000),  # 2.7 MB
        with_weights(study(tmp_path, "stopped", 0.4, 0, 0.5, 1_200_000), 100_000, wasted=1_300_000),  # 2.8 MB
    ]
    assert [row[0] for row in grouped(folders, "bytes")[3:]] == ["small-cut", "stopped", "large-cut"]
    head, below, _, *rows = grouped(folders, "total")
    assert (head, below) == (
        ["total", "total", "images"],
        ["scenario", "seeds", "rounds", "accuracy", "bytes", "ratio", "factor", "factor", "time"],
    )  # fmt: skip
    assert [(row[0], row[4], row[6]) for row in rows] == [
        ("large-cut", "2.70 MB", "2.00x"), ("stopped", "2.80 MB", "2.00x"), ("small-cut", "3.00 MB", "2.00x"),
    ]  # fmt: skip


def test_a_budget_by_total_is_one_of_both_planes_without_the_waste(tmp_path: Path) -> None:
    """Evaluated after 8 and 12 MB of both planes, 2 and 3 MB of the cut, with 0.25 and 0.375 right."""
    runs = [
        with_weights(study(tmp_path, "a", 0.2, 0, 0.5, 3_000_000), 3_000_000),
        with_weights(study(tmp_path, "a", 0.2, 1, 0.75, 3_000_000), 3_000_000, wasted=10_000_000),
    ]
    for at, mean, each in (
        (7_999_999, "-", ["-", "-"]),
        (8_000_000, "37.5 %", ["25.0 %", "50.0 %"]),
        (10_000_000, "43.8 %", ["31.3 %", "56.3 %"]),
        (12_000_000, "50.0 %", ["37.5 %", "62.5 %"]),
        (12_000_001, "-", ["-", "-"]),
    ):
        head, below, _, row, *_ = grouped(runs, "total", at)
        assert (head[1], below[5]) == ("validation", f"at {at / 1e6:.2f} MB total")
        assert row[5] == mean
        file = io.StringIO()
        compare(runs).show(rich.console.Console(file=file), at=at, of="total")
        lines = [re.split(r"\s{2,}", line.strip()) for line in file.getvalue().splitlines()]
        assert lines[1][4] == f"at {at / 1e6:.2f} MB total"
        assert [line[4] for line in lines[3:5]] == each
    # The same number means the cut for every other order.
    assert [row[5] for row in grouped(runs, "bytes", 2_500_000)[3:]] == ["43.8 %"]
    assert [row[5] for row in grouped(runs, "bytes", 10_000_000)[3:4]] == ["-"]


def test_the_csv_names_a_budget_of_both_planes(tmp_path: Path) -> None:
    runs = [with_weights(study(tmp_path, "a", 0.2, seed, 0.5 + seed / 4, 300_000), 300_000, 7) for seed in (0, 1)]
    (row,) = csv.DictReader(io.StringIO(compare(runs).grouped("total").to_csv(at=1_000_000)))
    assert {name: value for name, value in row.items() if name.startswith("at_")} == {
        "at_total_bytes": "1000000", "at_total_eval_accuracy": "0.4375", "at_total_eval_accuracy_low": "0.3125",
        "at_total_eval_accuracy_high": "0.5625",
    }  # fmt: skip
    assert (row["cut_bytes"], row["total_bytes"], row["total_raw_bytes"]) == ("300000", "1200007", "2400014")
    (row,) = csv.DictReader(io.StringIO(compare(runs).grouped("total").to_csv()))
    assert not any(name.startswith("at_") for name in row)
    (first, second) = csv.DictReader(io.StringIO(compare(runs).to_csv(at=1_000_000, of="total")))
    assert [one["at_total_bytes"] for one in (first, second)] == ["1000000", "1000000"]
    assert [one["at_total_eval_accuracy"] for one in (first, second)] == ["0.3125", "0.5625"]
    assert "at_bytes" not in first


def timed(folder: Path, pace: float) -> Path:
    """The run of a folder, had each of its rounds taken so many simulated seconds."""
    path = folder / "metrics.csv"
    rows = [replace(row, simulated_seconds=pace * row.round) for row in read_metrics(path)]
    path.write_text(HEADER + "".join(row.line() for row in rows))
    replace(Summary.read(folder), simulated_seconds=pace * 3).write(folder)
    return folder


def test_runs_are_compared_at_the_same_simulated_time(tmp_path: Path) -> None:
    """The faster one is evaluated after two and three minutes: at 2 min 30 s it is half way between both."""
    folders = [
        timed(study(tmp_path, name, ratio, 0, 0.75), pace)
        for name, ratio, pace in (("slow", 0.5, 120.0), ("fast", 0.25, 60.0))
    ]
    found = compare(folders).grouped("simulated_time")
    file = io.StringIO()
    found.show(rich.console.Console(file=file, width=160), at=150.0)
    assert "at 2 min 30 s" in file.getvalue()
    assert file.getvalue().splitlines()[-2:] == [
        "no validation accuracy at 2 min 30 s of simulated time:", "  slow: first evaluated after 4 min 00 s",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(found.to_csv(at=150.0))))
    assert [(row["scenario"], row["at_simulated_seconds"], row["at_simulated_eval_accuracy"]) for row in rows] == [
        ("fast", "150.0", "0.5625"), ("slow", "150.0", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--at", "10min"], "--at 10min: write a number of bytes, such as 50MB, or with --by simulated_time a time"),
        (["--by", "simulated_time", "--at", "50MB"], "--at 50MB: with --by simulated_time write a time, such as 10min"),
        (["--by", "simulated_time", "--at", "10min"], "has none, for want of a link or of federation.availability"),
    ],
)
def test_what_is_compared_at_fits_what_it_is_sorted_by(arguments: list[str], why: str, tmp_path: Path) -> None:
    with pytest.raises(SplitfedError, match=why):
        app(["compare", str(study(tmp_path, "a", 0.5, 0, 0.75)), *arguments], standalone_mode=False)
