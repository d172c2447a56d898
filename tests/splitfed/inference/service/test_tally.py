"""What is counted stands on disk, is gone on with, and stays bounded."""

import logging
from pathlib import Path

import pytest
from helpers import table

from splitfed.errors import RunError, WriteError
from splitfed.inference.service.metrics import Metrics
from splitfed.inference.service.tally import Tally
from splitfed.run.ledger import Sizes
from splitfed.wire.frame import Counted


def test_a_restart_goes_on_with_the_day(tmp_path: Path) -> None:
    for _ in range(2):
        with Tally(tmp_path, Metrics(), day=lambda: "2026-01-31") as tally:
            tally.frame(3, "up", Counted({"smashed": Sizes(sent=70), "side": Sizes(sent=5)}, 100))
            tally.add(4, "down", "front", 1000)
    found = [tuple(row.values()) for row in table(tmp_path / "2026-01-31.csv")]
    assert found == [
        ("2026-01-31", "3", "up", "envelope", "2", "50"), ("2026-01-31", "3", "up", "side", "2", "10"),
        ("2026-01-31", "3", "up", "smashed", "2", "140"), ("2026-01-31", "4", "down", "front", "2", "2000"),
    ]  # fmt: skip


def test_a_new_day_is_a_new_file_and_the_oldest_goes(tmp_path: Path) -> None:
    day = 0
    with Tally(tmp_path, Metrics(), days=3, day=lambda: f"2026-01-{day:02d}") as tally:
        for day in range(1, 6):
            tally.add(0, "up", "smashed", day)
        assert tally.sums() == {(0, "up", "smashed"): (1, 5)}
    files = sorted(path.name for path in tmp_path.glob("*.csv"))
    assert files == [f"2026-01-{day:02d}.csv" for day in (3, 4, 5)]
    assert [row["sent_bytes"] for file in files for row in table(tmp_path / file)] == ["3", "4", "5"]


def test_clients_without_end_fill_no_disk(tmp_path: Path) -> None:
    with Tally(tmp_path, Metrics(), day=lambda: "2026-01-01") as tally:
        for client in range(5000):
            tally.add(client, "up", "smashed", 1)
        sums = tally.sums()
    assert len(sums) < 4200
    assert sum(sent for _, sent in sums.values()) == 5000


def test_two_services_do_not_share_one(tmp_path: Path) -> None:
    with (
        Tally(tmp_path, Metrics()),
        pytest.raises(RunError, match=r"another process counts in it.* --ledger$"),
        Tally(tmp_path, Metrics()),
    ):
        pass


def test_what_cannot_be_read_or_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file"), Tally(tmp_path / "file", Metrics()):
        pass
    (tmp_path / "2026-01-01.csv").write_text("day,client\n1,2\n")
    with pytest.raises(RunError, match="broken"), Tally(tmp_path, Metrics(), day=lambda: "2026-01-01"):
        pass
    (tmp_path / "2026-01-02.csv").mkdir()
    day = "2026-01-03"
    with caplog.at_level(logging.WARNING), Tally(tmp_path, Metrics(), day=lambda: day) as tally:
        (tmp_path / f"{day}.csv").mkdir()
        tally.add(0, "up", "smashed", 1)
    assert "it is tried again" in caplog.text
