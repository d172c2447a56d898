"""What a user reads, on a terminal and in a pipe."""

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import rich.console
from waiting import until

from splitfed.reports.live.console import Console
from splitfed.run.ledger import COLUMNS, Row, Sizes, Totals
from splitfed.run.metrics import Metrics
from splitfed.run.observer import Figures, Started
from splitfed.run.summary import Summary

ROWS = [
    Row(1, 1, 0, "down", "data", "cut_gradient", Sizes(4_000_000, 1_000_000, 250_000, 200_000)),
    Row(1, 1, 0, "up", "data", "envelope", Sizes(40, 40, 40, 40)),
    Row(1, 1, 0, "up", "data", "smashed", Sizes(4_000_000, 1_000_000, 250_000, 240_000)),
    Row(1, 0, 0, "down", "control", "front_weights", Sizes(600_000, 600_000, 150_000, 149_000)),
    Row(1, 0, 0, "up", "control", "front_weights", Sizes(600_000, 600_000, 150_000, 148_000)),
]
METRICS = Metrics(1, 2.30259, None, None, 440_040, 737_040, 6.34, 8_000_040, 9_200_040, 500, 5, 0.05, 0.1)
SUMMARY = Summary(
    "digits", 0, "inline", 2, 0.86999, 440_040, 740_040, 3_000, 8_000_040, 18.18, 12.43, 75.6, 0.51, 0.9, 9_200_040,
    "rounds", "adc", "sfl-v1",
)  # fmt: skip


def sums() -> Totals:
    totals = Totals()
    for row in ROWS:
        totals.add(row)
    return totals


def info(folder: Path, resumed: int = 0, budget: int | None = 1_000_000, rounds: int = 2) -> Started:
    return Started("digits", folder, rounds, "inline", resumed, [], budget)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shows_a_bar(file: Terminal) -> bool:
    """Whether the cursor is hidden, as it is while a bar redraws itself."""
    return file.getvalue().rindex("\x1b[?25l") > file.getvalue().rfind("\x1b[?25h")


def console(file: io.StringIO, width: int = 80) -> Console:
    environ = {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": "25"}
    return Console(rich.console.Console(file=file, _environ=environ))


def whole_run(out: Console, folder: Path) -> None:
    out.started(info(folder))
    for share in (0.25, 1.0):
        out.progress(1, share)
    out.round(METRICS, sums(), sums())
    out.progress(2, 0.5)
    out.finished(SUMMARY, sums())


def piped(folder: Path, width: int = 80) -> str:
    file = io.StringIO()
    whole_run(console(file, width), folder)
    return file.getvalue()


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_the_heading_says_what_runs(tmp_path: Path) -> None:
    file = io.StringIO()
    console(file).started(info(tmp_path, resumed=7, rounds=12))
    text = file.getvalue()
    for fact in ("digits", "inline", str(tmp_path), "1.00 MB of cut bytes", "resumed after round 7"):
        assert fact in text
    console(file := io.StringIO()).started(info(tmp_path, budget=None))
    assert "budget      none" in file.getvalue()
    assert "resumed" not in file.getvalue()
    assert "norms" not in file.getvalue()
    for asks in (False, True):
        console(file := io.StringIO(), 200).started(replace(info(tmp_path), asks=asks, own_norms=True))
        assert "norms       each client has its own" in file.getvalue()
        assert ("evaluation.held_out" in file.getvalue()) != asks


def test_every_round_is_one_line_of_the_same_columns(tmp_path: Path) -> None:
    file = io.StringIO()
    out = console(file)
    out.started(info(tmp_path, rounds=100))
    start = len(file.getvalue())
    out.round(METRICS, sums(), sums())
    late = Metrics(100, float("nan"), 1e-7, 0.99999, 999_999_000, 999_999_000_000, 86400.0, 1, 1, 500, 5, 0.05, 0.1)
    out.round(late, sums(), sums())
    first, last = file.getvalue()[start:].splitlines()
    assert cells(first) == ["1/100", "2.3026", "-", "-", "440.04 kB", "737.04 kB", "44.0 %", "6.3"]
    assert cells(last) == ["100/100", "nan", "1.0e-07", "100.0 %", "1.00 GB", "1.00 TB", "99999.9 %", "86400.0"]
    above, below = file.getvalue()[:start].splitlines()[-2:]
    assert cells(below) == ["round", "loss", "loss", "accuracy", "bytes", "bytes", "budget", "seconds"]
    for column in ("accuracy", "budget"):
        end = below.index(column) + len(column)
        assert above[:end].strip()
        assert re.fullmatch(r"\S  ", first[end - 1 : end + 2]), f"{column} is not aligned"
    assert max(map(len, (first, above, below))) <= 80


def test_exits_end_the_line_of_their_round(tmp_path: Path) -> None:
    file = io.StringIO()
    out = console(file, 200)
    out.started(info(tmp_path, rounds=3))
    out.exited(1, {1: 0.5, 3: 0.75})
    out.round(METRICS, sums(), sums())
    out.round(METRICS, sums(), sums())
    first, second = file.getvalue().splitlines()[-2:]
    assert first == f"{second}  exits 50.0 %, 75.0 %"


def test_without_a_budget_its_column_stays(tmp_path: Path) -> None:
    file = io.StringIO()
    out = console(file)
    out.started(info(tmp_path, budget=None))
    out.round(METRICS, sums(), sums())
    assert cells(file.getvalue().splitlines()[-1])[6] == "-"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [80, 200])
def test_what_clients_found_stands_beside_or_below(tmp_path: Path, width: int) -> None:
    file = Terminal()
    out = Console(rich.console.Console(file=file, width=width, color_system=None, force_interactive=False))
    told = {"clients_accuracy": 1.0, "worst_client": 1.0, "median_client": 1.0, "best_client": 1.0}
    out.started(replace(info(tmp_path), asks=True))
    start = len(file.getvalue())
    out.round(replace(METRICS, eval_accuracy=0.5, **told), sums(), sums())
    out.finished(replace(SUMMARY, **told), sums())
    rows = [line for line in file.getvalue()[start:].splitlines() if str(tmp_path) not in line]
    assert max(map(len, rows)) <= width
    assert sum("100.0 %" in line for line in rows[:2]) == 1
    assert ("best 100.0 %" in rows[1]) == (width == 80)
    assert ["each client", "worst 100.0 %, median 100.0 %, best 100.0 %"] in [cells(line) for line in rows]


def test_the_final_table_adds_up(tmp_path: Path) -> None:
    text = piped(tmp_path)
    table = [cells(line) for line in text.splitlines()]
    wanted = [
        ["bytes", "role", "raw", "reduced", "coded", "sent", "factor"],
        ["up", "smashed", "4.00 MB", "1.00 MB", "250.00 kB", "240.00 kB", "16.7x"],
        ["up", "envelope", "40 B", "40 B", "40 B", "40 B", "1.00x"],
        ["down", "cut_gradient", "4.00 MB", "1.00 MB", "250.00 kB", "200.00 kB", "20.0x"],
        ["cut", "8.00 MB", "2.00 MB", "500.04 kB", "440.04 kB", "18.2x"],
        ["up", "front_weights", "600.00 kB", "600.00 kB", "150.00 kB", "148.00 kB", "4.05x"],
        ["down", "front_weights", "600.00 kB", "600.00 kB", "150.00 kB", "149.00 kB", "4.03x"],
        ["control", "1.20 MB", "1.20 MB", "300.00 kB", "297.00 kB", "4.04x"],
        ["wasted", "3.00 kB"],
        ["total", "9.20 MB", "3.20 MB", "800.04 kB", "740.04 kB", "12.4x"],
        ["test accuracy", "87.0 %"],
        ["bytes up", "388.04 kB"],
        ["bytes down", "349.00 kB"],
        ["cut factor", "18.2x"],
        ["total factor", "12.4x"],
        ["time", "1 min 16 s"],
        ["rounds", "2"],
        ["run folder", str(tmp_path)],
    ]
    at = table.index(wanted[0])
    assert [line for line in table[at:] if line != [""] and not set(line[0]) <= {"─", "-"}] == wanted


def test_all_that_was_sent_is_told_as_a_multiple_of_what_the_images_weigh(tmp_path: Path) -> None:
    for weight, reported, said in (
        (25_518, False, "740.04 kB, 29 times what the images weigh"),
        (1_233_400, False, "740.04 kB, 0.6 times what the images weigh"),
        (1_233_400, True, "740.04 kB, 0.6 times what the images weigh, as clients report it"),
    ):
        file = io.StringIO()
        out = console(file)
        out.started(replace(info(tmp_path), figures=lambda weight=weight: Figures(None, 0, weight)))
        out.finished(replace(SUMMARY, total_bytes=740_040, images_bytes=weight, images_reported=reported), sums())
        assert re.search(rf"^total +{re.escape(said)}$", file.getvalue(), re.MULTILINE)


def test_a_budget_of_all_bytes_is_spent_by_waste_too_and_may_grow(tmp_path: Path) -> None:
    file = io.StringIO()
    out = console(file)
    figures = Figures(2_000_000, 500_000, 1_000_000)
    out.started(replace(info(tmp_path), budget=1_000_000, budget_of="total", figures=lambda: figures))
    out.round(replace(METRICS, total_bytes=1_000_000, cut_bytes=10), sums(), sums())
    lines = file.getvalue().splitlines()
    assert "budget       1.00 MB of total bytes, 1.0 times what the images weigh" in [
        re.sub(r"^budget +", "budget       ", line) for line in lines
    ]
    assert lines[-1].split()[-3:-1] == ["75.0", "%"]


def test_a_budget_that_ended_the_run_is_named(tmp_path: Path) -> None:
    file = io.StringIO()
    out = console(file)
    out.started(info(tmp_path))
    values = {name: getattr(SUMMARY, name) for name in SUMMARY.__slots__} | {"stopped": "budget"}
    out.finished(Summary(**values), sums())
    assert "2, then the budget was spent" in file.getvalue()


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_pipe_gets_the_same_plain_lines_at_any_width(tmp_path: Path, width: int) -> None:
    folder = tmp_path / ("a-long-name" * 12) / "[red]:smile: x"
    text = piped(folder, width)
    assert text == piped(folder, 80)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "…" not in text
    assert text.count(str(folder)) == 2, "a path must stay in one piece, as it is"


def test_forced_colours_do_not_force_a_bar_into_a_pipe(tmp_path: Path) -> None:
    file = io.StringIO()
    out = Console(rich.console.Console(file=file, _environ={"FORCE_COLOR": "1", "TERM": "xterm"}))
    whole_run(out, tmp_path)
    assert "\x1b[1m" in file.getvalue()
    assert "\x1b[?25l" not in file.getvalue()
    assert "\r" not in file.getvalue()


def test_a_terminal_shows_a_bar_and_gets_its_cursor_back(tmp_path: Path) -> None:
    file = Terminal()
    out = console(file)
    out.started(info(tmp_path))
    out.progress(1, 0.25)
    until(lambda: "25%" in file.getvalue())
    assert "round 1/2" in file.getvalue()
    out.round(METRICS, sums(), sums())
    out.progress(2, 7.0)
    until(lambda: "100%" in file.getvalue())
    assert "round 2/2" in file.getvalue()
    assert "700%" not in file.getvalue()
    out.finished(SUMMARY, sums())
    text = file.getvalue()
    assert not shows_a_bar(file), "the cursor stays hidden"
    assert "round 2/2" not in text[text.rindex("\x1b[?25h") :]
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", text)
    assert "  1/2    2.3026         -         -  440.04 kB" in plain


def test_no_bar_waits_for_a_round_that_does_not_come(tmp_path: Path) -> None:
    file = Terminal()
    out = console(file)
    out.started(info(tmp_path, rounds=1))
    assert shows_a_bar(file)
    out.round(METRICS, sums(), sums())
    assert not shows_a_bar(file)


def test_close_takes_the_bar_away_after_an_error(tmp_path: Path) -> None:
    file = Terminal()
    out = console(file)
    out.started(info(tmp_path))
    assert shows_a_bar(file)
    out.close()
    out.close()
    assert not shows_a_bar(file)


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    waste = Row(2, 1, 0, "up", "data", "smashed", Sizes(4, 3, 2, 1_234))
    (folder / "wasted.csv").write_text(",".join(("attempt", *COLUMNS)) + "\n1," + waste.line())
    file = io.StringIO()
    out = console(file)
    out.started(info(folder))
    out.round(METRICS, sums(), sums())
    out.interrupted(folder, 1, sums())
    text = file.getvalue()
    assert "interrupted after round 1" in text
    assert text.endswith(f"  splitfed simulate --resume '{folder}'\n")
    rows = [cells(line) for line in text.splitlines()]
    assert ["wasted", "1.23 kB"] in rows
    assert ["total", "9.20 MB", "3.20 MB", "800.04 kB", "738.27 kB", "12.5x"] in rows


def test_an_interruption_before_the_first_round_is_no_error(tmp_path: Path) -> None:
    file = io.StringIO()
    console(file).interrupted(tmp_path, 0, Totals())
    assert f"splitfed simulate --resume {tmp_path}" in file.getvalue()


def test_an_interrupted_deployment_says_what_to_repeat(tmp_path: Path) -> None:
    file = io.StringIO()
    out = console(file)
    out.serving(tmp_path, "0.0.0.0:9092", 9093, 2)
    out.interrupted(tmp_path, 0, Totals())
    assert "with --host, --tls and ports as before" in file.getvalue()
    assert f"splitfed serve --resume {tmp_path}" in file.getvalue()


def test_a_real_pipe_is_no_terminal(tmp_path: Path) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        Console(rich.console.Console(file=file)).started(info(tmp_path))
    with os.fdopen(read) as file:
        assert "\x1b" not in file.read()
