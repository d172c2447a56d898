"""What is said of things that take long: by whom, and when not. Waiting is made certain, not timed."""

import io
import sys
from threading import Event

import pytest

from splitfed import waiting as module
from splitfed.cli.main import say_on_terminal
from splitfed.waiting import speak, waiting


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    return []


def test_what_takes_long_is_said_once(said: list[str]) -> None:
    heard = Event()

    def say(line: str) -> None:
        said.append(line)
        heard.set()

    with speak(say), waiting("loading the data"):
        assert heard.wait(60)
    assert said == ["loading the data ..."]


def test_nothing_is_said_of_what_is_done_or_where_nobody_listens(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with waiting("nobody listens"):
        pass
    monkeypatch.setattr(module, "PATIENCE", 3600.0)
    with speak(said.append), waiting("done at once"):
        pass
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with waiting("nobody listens any more"):
        pass
    with pytest.raises(KeyError), speak(said.append):
        raise KeyError
    with waiting("nobody listens after an error"):
        pass
    assert not said


@pytest.mark.parametrize("watched", [True, False])
def test_a_terminal_alone_is_told(watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: watched)
    monkeypatch.setattr(sys, "stderr", stderr)
    say_on_terminal("loading the data ...")
    assert stderr.getvalue() == ("loading the data ...\n" if watched else "")
