"""Brings a run folder back to its last checkpoint, whatever happened after it."""

import os
from dataclasses import dataclass
from pathlib import Path

from splitfed.errors import RunError
from splitfed.run import client_scores as scores
from splitfed.run.checkpoint import Checkpoint, Checkpoints
from splitfed.run.ledger import COLUMNS, Ledger, Totals, move_to_wasted, read_rows, totals_by_round
from splitfed.run.metrics import HEADER, Metrics, read_metrics


@dataclass(frozen=True, slots=True)
class Recovered:
    """Where a run goes on: its last checkpoint, if any, a ledger that continues it, and its finished rounds."""

    checkpoint: Checkpoint | None
    ledger: Ledger
    history: list[tuple[Metrics, Totals]]


def recover(folder: Path, checkpoints: Checkpoints) -> Recovered:
    """Prepare a new or interrupted run: cut `ledger.csv`, `metrics.csv` and `clients.csv` to the last checkpoint, and
    move the rows of rounds that were not finished, or whose checkpoint was not, to `wasted.csv`. Raises RunError for a
    run of another version, whose rows have other columns."""
    checkpoint = checkpoints.latest()
    progress = checkpoint.progress if checkpoint else None
    if progress and (folder / "metrics.csv").read_text().partition("\n")[0] != HEADER.rstrip():
        raise RunError(f"{folder}: an earlier version of splitfed began this run, go on with that one or start it anew")
    _truncate(folder / "metrics.csv", HEADER, progress.metrics_bytes if progress else 0)
    _truncate(folder / "ledger.csv", ",".join(COLUMNS) + "\n", progress.ledger_bytes if progress else 0)
    if (folder / scores.NAME).exists():
        _truncate(folder / scores.NAME, scores.HEADER, progress.clients_bytes if progress else 0)
    _cut_torn_line(folder / "wasted.csv", ",".join(("attempt", *COLUMNS)) + "\n")
    attempts = [progress.attempt if progress else 0, *_wasted_attempts(folder)]
    for path in sorted(folder.glob("open-*.csv")):
        attempt = int(path.stem.removeprefix("open-"))
        attempts.append(attempt)
        if progress and attempt == progress.attempt and _round(path) == progress.round:
            path.unlink()  # its round is in ledger.csv, under the checkpoint
        else:
            move_to_wasted(folder, path, attempt)
    rounds = totals_by_round(folder / "ledger.csv")
    finished = Totals()
    for totals in rounds.values():
        finished = finished + totals
    history = [(metrics, rounds.get(metrics.round, Totals())) for metrics in read_metrics(folder / "metrics.csv")]
    return Recovered(checkpoint, Ledger(folder, max(attempts) + 1, finished), history)


def wasted_bytes(folder: Path) -> int:
    """Return what unfinished rounds and retries sent."""
    return sum(row.sizes.sent for row in read_rows(folder / "wasted.csv"))


def _truncate(path: Path, header: str, length: int) -> None:
    if length == 0:
        path.write_text(header)
        return
    with open(path, "r+b") as file:
        file.truncate(length)
        file.flush()
        os.fsync(file.fileno())


def _cut_torn_line(path: Path, header: str) -> None:
    """Leave whole lines only: a kill may have cut the last one."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text or not whole:
        path.write_text(whole or header)


def _wasted_attempts(folder: Path) -> list[int]:
    lines = (folder / "wasted.csv").read_text().splitlines()[1:]
    return [int(line.split(",", 1)[0]) for line in lines]


def _round(open_file: Path) -> int | None:
    first = open_file.read_text().split(",", 1)[0]
    return int(first) if first.isdigit() else None
