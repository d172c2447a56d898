"""Brings a run folder back to its last checkpoint, whatever happened after it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from splitfed.errors import RunError
from splitfed.federation.availability import TRACE
from splitfed.federation.control import choices
from splitfed.files import told, write
from splitfed.link.settings import RECORDING
from splitfed.run import client_scores as scores
from splitfed.run import ledger, metrics
from splitfed.run.checkpoint import Checkpoint, Checkpoints, Progress
from splitfed.run.journal import Damaged, Mark
from splitfed.run.ledger import Ledger, Row, Totals, read_open, read_rows, totals_by_round
from splitfed.run.metrics import Metrics, read_metrics
from splitfed.scenario.document import read
from splitfed.scenario.places import FINGERPRINTS, paths

log = getLogger("splitfed")

# What grows round by round, and is cut to a checkpoint.
GROWING = {
    metrics.NAME: metrics.HEADER, ledger.NAME: ledger.HEADER, scores.NAME: scores.HEADER, choices.NAME: choices.HEADER,
    metrics.EXITS: metrics.EXITS_HEADER,
}  # fmt: skip
_IF_ANY = (scores.NAME, choices.NAME, metrics.EXITS)
SCENARIO = "scenario.yaml"
_ANEW = "start a new run"
_WITHOUT = "delete it, and the run goes on without what it counted"


@dataclass(frozen=True, slots=True)
class Recovered:
    """Where a run goes on: its last checkpoint, if any, a ledger that continues it, and its finished rounds."""

    checkpoint: Checkpoint | None
    ledger: Ledger
    history: list[tuple[Metrics, Totals]]


def recover(folder: Path, checkpoints: Checkpoints) -> Recovered:
    """Prepare a new or interrupted run: cut `ledger.csv`, `metrics.csv` and what else grows to the last checkpoint, and
    move the rows of rounds that were not finished, or whose checkpoint was not, to `wasted.csv`.

    Raises RunError, before anything is changed, for files that are not what was written, and for a run of another
    version, whose rows have other columns.
    """
    checkpoint = _newest(folder, checkpoints)
    progress = checkpoint.progress if checkpoint else None
    wasted = _wasted_attempts(folder, progress)
    opened = _opened(folder)
    if not wasted:
        write(folder / ledger.WASTED, ledger.WASTED_HEADER)
    _cut_torn_line(folder / ledger.WASTED)
    attempts = [progress.attempt if progress else 0, *wasted]
    if progress:
        _keep_cut_rows(folder, progress, {rows[0].round for rows in opened.values() if rows})
    for name, header in GROWING.items():
        with told(folder / name):
            mark = progress.mark(name) if progress else Mark()
            mark.cut(folder / name, header if name not in _IF_ANY else "")
    for path, rows in opened.items():
        attempt = int(path.stem.removeprefix("open-"))
        attempts.append(attempt)
        if progress and attempt == progress.attempt and rows and rows[0].round == progress.round:
            path.unlink()  # its round is in ledger.csv, under the checkpoint
        else:
            ledger.move_to_wasted(folder, path, attempt)
    rounds = totals_by_round(folder / ledger.NAME)
    finished = sum(rounds.values(), Totals())
    history = [(row, rounds.get(row.round, Totals())) for row in read_metrics(folder / metrics.NAME)]
    _check_sums(folder, progress, [row for row, _ in history], finished)
    return Recovered(checkpoint, Ledger(folder, max(attempts) + 1, finished, wasted_bytes(folder)), history)


def wasted_bytes(folder: Path) -> int:
    """Return what unfinished rounds and retries sent. Raises RunError where `wasted.csv` is broken."""
    return sum(row.sizes.sent for row in read_rows(folder / ledger.WASTED))


def fixed(folder: Path) -> dict[str, str]:
    """Return the SHA-256, in hex, of what never changes of a run, by name: its scenario, and trace and recordings
    that it goes by. That of the scenario is of what it says, but for where the data set lies: it may have
    moved."""
    found = {SCENARIO: _sha256(_meaning(folder / SCENARIO))}
    for path in (folder / TRACE, *sorted(folder.glob(f"*{RECORDING}"))):
        if path.exists():
            found[path.name] = _sha256(path.read_bytes())
    return found


def _newest(folder: Path, checkpoints: Checkpoints) -> Checkpoint | None:
    """Read the newest checkpoint; None before the first. Raises RunError where it is damaged, or a file that it builds
    on: with the newest that is whole, if there is one."""
    found = checkpoints.rounds()
    problem: Damaged | None = None
    for round in reversed(found):
        try:
            checkpoint = checkpoints.read(round)
            for name, header in GROWING.items():
                checkpoint.progress.mark(name).check(folder / name, header)
        except Damaged as error:
            problem = problem or error
            continue
        _check_fixed(folder, checkpoint.progress.sha256)
        if problem is None:
            return checkpoint
        newer = " and ".join(str(checkpoints.path(one)) for one in found if one > round)
        raise RunError(f"{problem}; delete {newer} to go on from round {round}")
    if problem is not None:
        raise RunError(f"{problem}; no other checkpoint fits: {_ANEW}")
    rows = folder / metrics.NAME
    if rows.is_file() and rows.read_bytes().count(b"\n") > 1:
        raise RunError(f"{rows}: has rounds, and {folder / 'checkpoints'} no checkpoint to go on from: {_ANEW}")
    return None


def _check_sums(folder: Path, progress: Progress | None, rows: list[Metrics], finished: Totals) -> None:
    """Raise RunError where rounds are missing or doubled, or do not add up: runs of earlier versions have nothing else
    by which to tell."""
    if [row.round for row in rows] != list(range(1, 1 + (progress.round if progress else 0))):
        raise RunError(f"{folder / metrics.NAME}: does not have each round once: {_ANEW}")
    if rows and rows[-1].total_bytes != finished.total.sent:
        raise RunError(f"{folder / ledger.NAME}: does not add up to what {metrics.NAME} says: {_ANEW}")


def _wasted_attempts(folder: Path, progress: Progress | None) -> list[int]:
    """Return the attempts that `wasted.csv` has rows of; none where there is no such file, or nothing in it, which is
    told. Raises RunError where it is damaged."""
    path = folder / ledger.WASTED
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        if progress is not None:
            log.warning("%s: is %s, and what it counted is lost", path, "empty" if path.exists() else "gone")
        return []
    try:
        if progress is not None:
            progress.mark(ledger.WASTED).check(path)
        return ledger.read_attempts(path)
    except RunError as error:
        raise RunError(f"{error}; {_WITHOUT}") from error


def _opened(folder: Path) -> dict[Path, list[Row]]:
    """Read the rows of rounds that were open. Raises RunError where a file of them is damaged."""
    found = {}
    for path in sorted(folder.glob("open-*.csv")):
        if path.stem.removeprefix("open-").isdecimal():
            try:
                found[path] = read_open(path)
            except RunError as error:
                raise RunError(f"{error}; {_WITHOUT}") from error
    return found


def _keep_cut_rows(folder: Path, progress: Progress, opened: set[int]) -> None:
    """Move rows of `ledger.csv` that a checkpoint lacks to the waste, but for those of rounds that have a file still:
    so it is where a newer checkpoint was deleted."""
    with open(folder / ledger.NAME, "rb") as file:
        file.seek(progress.ledger_bytes)
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    rows = [line for line in lines if ledger.is_row(line) and int(line.split(",")[0]) not in opened]
    ledger.add_to_wasted(folder, "".join(rows), progress.attempt)


def _cut_torn_line(path: Path) -> None:
    """Leave whole lines only: a kill may have cut the last one."""
    text = path.read_bytes()
    if not text.endswith(b"\n"):
        write(path, text[: text.rfind(b"\n") + 1])


def _check_fixed(folder: Path, sha256: Mapping[str, str]) -> None:
    """Raise RunError where a file is not what it was, or gone; what earlier versions did not note is taken as it is."""
    now = fixed(folder)
    for name in sha256:
        if (name in (SCENARIO, TRACE) or name.endswith(RECORDING)) and now.get(name) != sha256[name]:
            raise RunError(f"{folder / name}: is not what this run began with: bring it back as it was, or {_ANEW}")


def _meaning(path: Path) -> bytes:
    """Return what a scenario says but for the places of its files, which may change, and their fingerprints, which are
    checked against what lies there."""
    data = read(path.read_text(encoding="utf-8"), str(path)).data
    federation = data.get("federation")
    profiles = federation.get("profiles") if isinstance(federation, dict) else None
    for keys in (*paths(profiles if isinstance(profiles, dict) else ()), *FINGERPRINTS):
        section: Any = data
        for key in keys[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and not isinstance(section.get(keys[-1]), float):  # a link's rate is no path
            section.pop(keys[-1], None)
    return json.dumps(data, sort_keys=True, default=str).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
