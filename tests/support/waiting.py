"""Waiting for what another thread or process is about to do."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Seconds: only a fault, or a machine that has far too much to do, makes one wait for so long.
LONG = 120.0


def until(condition) -> None:
    """Wait for what another thread is about to do; fails the test where it never does."""
    if not eventually(condition):
        pytest.fail("it never came")


def eventually(holds: Callable[[], object], seconds: float = LONG) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if holds():
            return True
        time.sleep(0.02)
    return False


def running(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
