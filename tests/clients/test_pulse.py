"""A SuperNode vouches for its client only while that gives signs of life, and leaves no folder behind."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from waiting import eventually, until

from splitfed.clients.deployment.pulse import Listening, beating
from splitfed.clients.deployment.scratch import scratch

BEATS = """
import sys, time
from pathlib import Path
from splitfed.clients.deployment.pulse import beating
with beating(Path(sys.argv[1])):
    print("beats", flush=True)
    time.sleep(60)
"""
LENDS = """
import time
from splitfed.clients.deployment.scratch import scratch
with scratch() as folder:
    (folder / "home").mkdir()
    print(folder, flush=True)
    time.sleep(60)
"""


def started(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def test_a_process_that_is_stopped_gives_no_sign_until_it_goes_on(tmp_path: Path) -> None:
    other_end = Listening(tmp_path)
    assert not other_end.alive()  # before there is anybody
    with started(BEATS, tmp_path) as process:
        assert process.stdout
        assert process.stdout.readline() == "beats\n"
        until(other_end.alive)
        until(other_end.alive)  # again and again
        process.send_signal(signal.SIGSTOP)
        other_end.alive()
        assert not eventually(other_end.alive, 1.5)
        process.send_signal(signal.SIGCONT)
        until(other_end.alive)
        process.kill()


def test_clocks_that_are_set_do_not_matter(tmp_path: Path) -> None:
    other_end = Listening(tmp_path)
    with beating(tmp_path):
        other_end.alive()
        os.utime(tmp_path / "pulse", (0, 0))
        assert other_end.alive()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_a_killed_client_left_is_removed_at_the_next_start_and_nothing_else(temporary: Path) -> None:
    (temporary / "splitfed-other").mkdir()
    with started(LENDS, TMPDIR=str(temporary)) as killed, started(LENDS, TMPDIR=str(temporary)) as lives:
        left, kept = (Path(process.stdout.readline().strip()) for process in (killed, lives) if process.stdout)
        killed.kill()
        killed.wait()
        os.utime(left, (0, 0))  # a folder that is a moment old may be one that is just being made
        os.utime(kept, (0, 0))
        with scratch() as mine:
            assert mine.stat().st_mode & 0o777 == 0o700
            assert set(temporary.iterdir()) == {temporary / "splitfed-other", kept, mine}
        lives.kill()
    assert set(temporary.iterdir()) == {temporary / "splitfed-other", kept}


def test_a_link_in_its_place_leads_nowhere(temporary: Path) -> None:
    (temporary / "mine").mkdir()
    (temporary / "mine" / "file").touch()
    (temporary / "splitfed-join-x").symlink_to(temporary / "mine")
    os.utime(temporary / "splitfed-join-x", (0, 0), follow_symlinks=False)
    with scratch():
        assert (temporary / "mine" / "file").exists()
