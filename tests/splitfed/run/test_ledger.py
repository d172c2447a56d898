"""The ledger adds up, and a process that dies at any line loses no row and counts none twice."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitfed.run.ledger import COLUMNS, ROLES, Ledger, Row, Sizes, Totals, move_to_wasted, read_rows, totals_by_round

COUNT = st.integers(0, 2**60)
ROWS = st.lists(
    st.builds(
        Row,
        st.integers(0, 4),
        st.integers(0, 9),
        st.integers(0, 99),
        st.sampled_from(["up", "down"]),
        st.sampled_from(["data", "control"]),
        st.sampled_from(ROLES),
        st.builds(Sizes, COUNT, COUNT, COUNT, COUNT),
    ),
    max_size=30,
)


def row(round: int = 1, step: int = 1, sent: int = 100, role: str = "smashed", plane: str = "data") -> Row:
    return Row(round, step, 0, "up", plane, role, Sizes(8 * sent, 4 * sent, 2 * sent, sent))  # type: ignore[arg-type]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def summed(rows: list[Row]) -> Totals:
    totals = Totals()
    for each in rows:
        totals.add(each)
    return totals


@given(ROWS, ROWS)
def test_totals_add_like_numbers(left: list[Row], right: list[Row]) -> None:
    before = summed(left)
    both = before + summed(right)
    assert both == summed(right) + summed(left) == summed(left + right)
    assert before == summed(left), "adding changed a summand"


@given(ROWS)
def test_every_selection_is_the_sum_over_its_rows(rows: list[Row]) -> None:
    totals = summed(rows)
    for plane in (None, "data", "control"):
        for direction in (None, "up", "down"):
            for role in (None, "smashed", "envelope"):
                chosen = [
                    r.sizes
                    for r in rows
                    if plane in (None, r.plane) and direction in (None, r.direction) and role in (None, r.role)
                ]
                expected = [sum(getattr(s, stage) for s in chosen) for stage in ("raw", "reduced", "coded", "sent")]
                assert totals.select(plane=plane, direction=direction, role=role) == Sizes(*expected)
    assert totals.cut == totals.select(plane="data")
    assert totals.total == totals.cut + totals.select(plane="control")


def test_totals_differ_where_a_byte_differs() -> None:
    assert summed([row()]) != summed([row(sent=101)])
    assert summed([row()]) != summed([row(role="targets")])
    assert summed([row()]) != "something else"
    with pytest.raises(TypeError):
        hash(Totals())


@given(ROWS)
def test_rows_come_back_from_their_lines(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = tmp_path_factory.mktemp("rows") / "ledger.csv"
    path.write_text(",".join(COLUMNS) + "\n" + "".join(r.line() for r in rows))
    assert list(read_rows(path)) == rows
    assert sum(totals_by_round(path).values(), Totals()) == summed(rows)
    assert all(t == summed([r for r in rows if r.round == n]) for n, t in totals_by_round(path).items())


def test_a_finished_round_is_in_the_file_and_in_the_sums(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1)
    ledger.add([row(1), row(1, role="targets")])
    assert ledger.open == summed([row(1), row(1, role="targets")])
    assert ledger.finished == Totals()
    assert lines(tmp_path / "ledger.csv") == [",".join(COLUMNS)], "an open round is not in the ledger"
    assert len(lines(tmp_path / "open-1.csv")) == 2, "a row must be in the file before the round ends"

    assert ledger.commit() == summed([row(1), row(1, role="targets")])
    assert ledger.open == Totals()
    assert (tmp_path / "open-1.csv").exists(), "kept until a checkpoint holds the round"
    ledger.forget_open()
    ledger.add([row(2)])
    assert ledger.commit() == summed([row(2)])
    ledger.forget_open()

    assert list(read_rows(tmp_path / "ledger.csv")) == [row(1), row(1, role="targets"), row(2)]
    assert ledger.finished == sum(totals_by_round(tmp_path / "ledger.csv").values(), Totals())
    assert not list(tmp_path.glob("open-*"))


def test_a_round_without_bytes_can_end(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1)
    assert ledger.commit() == Totals()
    ledger.forget_open()
    ledger.waste()
    assert lines(tmp_path / "ledger.csv") == [",".join(COLUMNS)]
    assert len(lines(tmp_path / "wasted.csv")) == 1


def test_a_wasted_round_is_counted_apart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 3)
    ledger.add([row(1), row(1, 2)])
    ledger.waste()
    assert ledger.open == ledger.finished == Totals()
    assert lines(tmp_path / "wasted.csv")[1:] == ["3," + row(1).line().strip(), "3," + row(1, 2).line().strip()]
    assert list(read_rows(tmp_path / "wasted.csv")) == [row(1), row(1, 2)]
    assert not (tmp_path / "open-3.csv").exists()
    ledger.add([row(1, sent=7)])
    assert ledger.commit() == summed([row(1, sent=7)]), "the round starts again from nothing"
    assert list(read_rows(tmp_path / "ledger.csv")) == [row(1, sent=7)]


def test_what_is_wasted_is_known_without_reading_it_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1, wasted=1000)
    ledger.add([row(1), row(1, 2)])
    ledger.retried([row(1, sent=3)])
    assert ledger.wasted == 1003
    ledger.waste()
    ledger.add([row(1)])
    ledger.commit()
    assert ledger.wasted == 1000 + sum(one.sizes.sent for one in read_rows(tmp_path / "wasted.csv"))


def test_a_later_attempt_goes_on_with_the_files(tmp_path: Path) -> None:
    first = Ledger(tmp_path, 1)
    first.add([row(1)])
    first.commit()
    first.forget_open()
    second = Ledger(tmp_path, 2, first.finished)
    second.add([row(2)])
    second.commit()
    assert list(read_rows(tmp_path / "ledger.csv")) == [row(1), row(2)]
    assert second.finished == summed([row(1), row(2)])


@pytest.mark.parametrize("cut", [1, 9, len(row(1, 2).line()) - 1])
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path, 1)
    ledger.add([row(1), row(1, 2)])
    path = tmp_path / "open-1.csv"
    path.write_bytes(path.read_bytes()[: len(row(1).line()) + cut])
    move_to_wasted(tmp_path, path, 1)
    assert list(read_rows(tmp_path / "wasted.csv")) == [row(1)]
    assert not path.exists()


def test_moving_the_same_rows_twice_counts_them_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1)
    ledger.add([row(1), row(1, 2)])
    path = tmp_path / "open-1.csv"
    content = path.read_bytes()
    move_to_wasted(tmp_path, path, 1)
    once = lines(tmp_path / "wasted.csv")
    path.write_bytes(content)  # as a crash between the two steps leaves it
    move_to_wasted(tmp_path, path, 1)
    assert lines(tmp_path / "wasted.csv") == once
    assert not path.exists()
    move_to_wasted(tmp_path, path, 1)  # nothing there: nothing to do
    assert lines(tmp_path / "wasted.csv") == once


def test_the_same_rows_of_another_attempt_are_another_loss(tmp_path: Path) -> None:
    for attempt in (1, 11, 2):
        ledger = Ledger(tmp_path, attempt)
        ledger.add([row(1)])
        ledger.waste()
    assert [line.split(",")[0] for line in lines(tmp_path / "wasted.csv")] == ["attempt", "1", "11", "2"]


@pytest.mark.parametrize("step", ["replace", "unlink"])
def test_a_crash_while_moving_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    ledger = Ledger(tmp_path, 1)
    ledger.add([row(1), row(1, 2)])

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace", crash) if step == "replace" else (Path, "unlink", crash)))
        with pytest.raises(KeyboardInterrupt):
            ledger.waste()
    assert (tmp_path / "open-1.csv").exists()
    move_to_wasted(tmp_path, tmp_path / "open-1.csv", 1)
    assert list(read_rows(tmp_path / "wasted.csv")) == [row(1), row(1, 2)]
    assert not (tmp_path / "open-1.csv").exists()


def test_a_commit_is_on_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, 1)
    ledger.add([row(1)])
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_size), real(handle)))
    ledger.commit()
    assert synced == [(tmp_path / "ledger.csv").stat().st_size]
