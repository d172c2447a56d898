"""What a round and a run report come back from their files as they were written."""

import json
import math
import struct
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitfed.errors import RunError
from splitfed.run.metrics import HEADER, Metrics, read_metrics
from splitfed.run.summary import Summary

FLOAT, COUNT = st.floats(), st.integers(0, 2**63)
METRICS = st.builds(
    Metrics,
    COUNT,
    *(st.none() | FLOAT for _ in range(3)),
    COUNT,
    COUNT,
    FLOAT,
    COUNT,
    COUNT,
    COUNT,
    COUNT,
    FLOAT,
    FLOAT,
    COUNT,
    st.none() | FLOAT,
)
LINE = Metrics(3, 1.25, None, None, 10, 20, 6.5, 40, 80, 500, 5, 0.05, 0.1)
SUMMARY = Summary(
    "digits", 0, "inline", 12, 0.8619, 100, 300, 20, 1000, 10.0, 5.0, 75.6, 0.51, None, 1500, "rounds", "adc", "sfl-v1"
)


def bits(metrics: Metrics) -> list[object]:
    """Every value with its type, floats by their bits, but for what a NaN carries."""
    return [
        struct.pack("<d", math.nan if math.isnan(value) else value)
        if isinstance(value, float)
        else (type(value), value)
        for value in astuple(metrics)
    ]


@given(st.lists(METRICS, max_size=5))
def test_lines_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, rows: list[Metrics]) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.csv"
    path.write_text(HEADER + "".join(row.line() for row in rows))
    assert [bits(row) for row in read_metrics(path)] == [bits(row) for row in rows]


def test_the_first_columns_are_the_promised_ones() -> None:
    assert HEADER.startswith("round,train_loss,eval_loss,eval_accuracy,cut_bytes,total_bytes,seconds,")
    assert LINE.line().startswith("3,1.25,,,10,20,6.5,")


@pytest.mark.parametrize("cut", [1, 4, len(LINE.line()) - 1])
def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + LINE.line() + LINE.line()[:cut])
    assert read_metrics(path) == [LINE]


@pytest.mark.parametrize(
    "line", ["3,1.25\n", ",".join(["x"] * 13) + "\n", LINE.line().replace("6.5", ""), LINE.line().replace("3,", ",", 1)]
)
def test_a_broken_line_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + line)
    with pytest.raises(RunError, match=r"metrics\.csv: broken"):
        read_metrics(path)


@pytest.mark.parametrize("summary", [SUMMARY, replace(SUMMARY, eval_accuracy=1 / 3, test_accuracy=0.1 + 0.2)])
def test_a_summary_comes_back(tmp_path: Path, summary: Summary) -> None:
    summary.write(tmp_path)
    assert Summary.read(tmp_path) == summary
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"], "nothing is left beside it"
    assert list(json.loads((tmp_path / "summary.json").read_text()))[:12] == [
        "scenario", "seed", "engine", "rounds", "test_accuracy", "cut_bytes", "total_bytes", "bytes_wasted",
        "raw_bytes", "cut_factor", "factor", "seconds",
    ]  # fmt: skip


def test_a_summary_of_a_later_version_may_hold_more(tmp_path: Path) -> None:
    SUMMARY.write(tmp_path)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"energy": 3}))
    assert Summary.read(tmp_path) == SUMMARY


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "broken"), ("{", "broken"), ("[]", "broken"), ("3", "broken"), ("{}", "no 'scenario'"),
        ("seed='0'", "seed is '0'"), ("test_accuracy='x'", "test_accuracy is 'x'"),
        ("cut_bytes=1.5", "cut_bytes is 1.5"), ("rounds=True", "rounds is True"),
    ],
)  # fmt: skip
def test_a_broken_summary_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    if "=" in text:
        SUMMARY.write(tmp_path)
        key, value = text.split("=")
        text = json.dumps(json.loads((tmp_path / "summary.json").read_text()) | {key: eval(value)})
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(RunError, match=reason):
        Summary.read(tmp_path)


def test_no_summary_is_an_unfinished_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(RunError, match=r"no summary\.json"):
            Summary.read(folder)
