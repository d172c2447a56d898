"""Waiting for what another thread or process is about to do."""

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest


def until(condition) -> None:
    """Wait for what another thread is about to do; fails the test where it never does."""
    pause = Event()
    for _ in range(400):
        if condition():
            return
        pause.wait(0.05)
    pytest.fail("it never came")


def eventually(holds: Callable[[], object], seconds: float = 20.0) -> bool:
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
