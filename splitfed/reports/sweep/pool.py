"""Runs all points of a sweep, several at once, each in a process of its own, and goes on where an earlier one ended."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splitfed.engines.deployment.processes import PARENT
from splitfed.errors import RunError
from splitfed.reports import units
from splitfed.reports.sweep.folder import State, prepare, rounds_done, state
from splitfed.reports.sweep.plan import Point, Sweep
from splitfed.run.folder import begun, locked
from splitfed.run.summary import Summary

LOG = "errors.txt"

_POLL_SECONDS, _GRACE_SECONDS = 0.1, 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Swept:
    """What became of a sweep: the folders of all points that are done, and why the others are not."""

    done: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def command(folder: Path) -> Sequence[str]:
    """Return how a point's process is started."""
    return [sys.executable, "-m", "splitfed.reports.sweep.point", str(folder)]


def sweep(
    plan: Sweep | str | Path, *, runs: str | Path = "runs", jobs: int = 1, overrides: list[str] | None = None,
    say: Say = lambda line: None, status: Say = lambda line: None,
) -> Swept:  # fmt: skip
    """Run every point of a sweep that is not done, `jobs` of them at once, below `<runs>/<sweep>/`.

    `say` gets a line for each point that ends, `status` now and then one about those that run. A point that fails stops
    no other. Raises SplitfedError before anything runs for mistakes in the file and for folders of other settings, and
    KeyboardInterrupt after an orderly stop: called again, the sweep goes on.
    """
    if not isinstance(plan, Sweep):
        plan = Sweep.load(plan, overrides)
    root = Path(runs) / plan.name
    states = look(plan, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{root}: cannot be created ({error.strerror}); choose another place with --runs") from error
    counts = [f"{n} {one}" for one in (State.DONE, State.OPEN, State.NEW) if (n := list(states.values()).count(one))]
    total = len(plan.points)
    say(f"{plan.name}: {total} run{'s' * (total != 1)}, {', '.join(counts)}; in {root}")
    with locked(root):
        failed = _Pool(plan, root, states, say, status).run(jobs)
    folders = [root / point.name for point in plan.points]
    return Swept([folder for folder in folders if folder not in failed], list(failed.items()))


def look(plan: Sweep, root: Path) -> dict[Point, State]:
    """Return how far every point is. Raises RunError with a line for each folder that is another run's."""
    states, problems = {}, []
    for point in plan.points:
        try:
            states[point] = state(root / point.name, point)
        except RunError as error:
            problems.append(str(error))
    if problems:
        raise RunError("\n".join(problems))
    return states


class _Pool:
    """Points that run, and those that wait."""

    def __init__(self, plan: Sweep, root: Path, states: dict[Point, State], say: Say, status: Say) -> None:
        self.root, self.states, self.say, self.status = root, states, say, status
        self.waiting = [point for point in plan.points if states[point] != State.DONE]
        self.running: dict[Point, subprocess.Popen] = {}
        self.failed: dict[Path, str] = {}
        self.total, self.ended = len(plan.points), len(plan.points) - len(self.waiting)
        self.width = max(len(point.name) for point in plan.points)

    def run(self, jobs: int) -> dict[Path, str]:
        """Run all and return the folders of those that failed, with the reasons."""
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < jobs:
                    self._start(self.waiting.pop(0))
                time.sleep(_POLL_SECONDS)
                for point in [point for point, child in self.running.items() if child.poll() is not None]:
                    self._end(point, self.running.pop(point).returncode)
                self.status(self._status())
        finally:
            self._stop()
        return self.failed

    def _start(self, point: Point) -> None:
        folder = self.root / point.name
        try:
            if self.states[point] == State.NEW:
                prepare(folder, point)
            with open(folder / LOG, "wb") as log:
                self.running[point] = subprocess.Popen(
                    command(folder), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                    env=_environment(), start_new_session=True,
                )  # fmt: skip
        except (RunError, OSError) as error:
            self._failed(point, str(error))

    def _end(self, point: Point, code: int) -> None:
        folder = self.root / point.name
        if not (folder / LOG).exists():
            return self._failed(point, f"{folder} or what was in it was removed while it ran")
        said = (folder / LOG).read_text(encoding="utf-8", errors="replace")
        lines = [line for line in said.splitlines() if line.strip()]
        if code == 0:
            try:
                summary = Summary.read(folder)
            except RunError as error:
                return self._failed(point, str(error))
            (folder / LOG).unlink()
            factor = units.factor(summary.raw_bytes, summary.cut_bytes)
            return self._said(
                point,
                f"{units.percent(summary.test_accuracy):>7}  {units.size(summary.cut_bytes):>9} cut  "
                f"{units.size(summary.total_bytes):>9} total  {factor:>6}  {units.duration(summary.seconds)}",
            )
        told = lines[-1].strip() if lines else "it said nothing"
        if code == 2 and not begun(folder):
            shutil.rmtree(folder)  # a mistake in data, weights or device: nothing ran
        if code == 2:
            return self._failed(point, told)
        ended = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return self._failed(point, f"{ended}: {told}; see {folder / LOG}")

    def _failed(self, point: Point, why: str) -> None:
        self.failed[self.root / point.name] = why
        self._said(point, f"failed: {why}")

    def _said(self, point: Point, what: str) -> None:
        self.ended += 1
        self.say(f"{self.ended:>{len(str(self.total))}}/{self.total}  {point.name:<{self.width}}  {what}")

    def _status(self) -> str:
        parts = [
            f"{point.name} after round {rounds_done(self.root / point.name)} of {point.scenario.federation.rounds}"
            for point in self.running
        ]
        return f"{self.ended} of {self.total} done; running: {', '.join(parts)}" if parts else ""

    def _stop(self) -> None:
        """Let every point that runs drop its open round and end; one that does not in time is killed, which loses no
        more."""
        for child in self.running.values():
            child.send_signal(signal.SIGINT)
        limit = time.monotonic() + _GRACE_SECONDS
        try:
            for child in self.running.values():
                child.wait(max(0.0, limit - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        finally:
            for point, child in self.running.items():
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
                log = self.root / point.name / LOG
                if log.exists() and not log.stat().st_size:
                    log.unlink()


def _environment() -> dict[str, str]:
    """Return the environment of a process that imports what this one does, and ends when this one ends."""
    found = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    own = {"PYTHONPATH": found, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", PARENT: str(os.getpid())}
    return {**os.environ, **own}
