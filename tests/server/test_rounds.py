"""A round that nobody finished: where clients may come back it starts again, whatever they say."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from flwr.app import Error, Message, RecordDict
from helpers import small

from splitfed.engines.runtime import Runtime
from splitfed.errors import RunError
from splitfed.server import rounds as module
from splitfed.server.cohort.attendance import RoundPlan
from splitfed.server.rounds import Rounds

pytestmark = pytest.mark.usefixtures("identity")


class Nothing:
    """What a run needs beside the clients' replies, and what of it was called."""

    def __init__(self, outcomes: list, monkeypatch: pytest.MonkeyPatch, *, waits: bool, empty: bool = False) -> None:
        self.pauses: list[float] = []
        monkeypatch.setattr(module.time, "sleep", self.pauses.append)
        self.records = MagicMock(finished=0)
        train = MagicMock(forgetful=set())
        train.run.side_effect = outcomes
        roster = MagicMock(examples={0: 10}, nodes={0: 70})
        roster.online.return_value = {0}
        attendance = MagicMock(may_end_empty=empty)
        attendance.sample.return_value = [0]
        attendance.plan.side_effect = lambda round, examples, *_: RoundPlan(dict.fromkeys(examples), 0.0)
        align = SimpleNamespace(run=lambda round, cohort: {})
        others = {name: MagicMock() for name in ("evaluate", "progress", "steering")}
        calls = SimpleNamespace(align=align, train=train, memory=None, **others)
        self.records.unsound.return_value = set()
        model, claims = MagicMock(), MagicMock()
        model.largest.return_value = 1.0
        train.refused = {}
        self.rounds = Rounds(
            small(), model, MagicMock(), roster, attendance, calls, self.records, Runtime(waits=waits), claims,
        )  # type: ignore[arg-type]  # fmt: skip


def failed(reason: str = "out of memory") -> dict:
    asked = Message(RecordDict(), 70, "train")
    return {0: Message(Error(1, reason), reply_to=asked)}


LOST: dict = {0: None}


@pytest.mark.parametrize("empty", [False, True])
def test_where_clients_may_come_back_it_starts_again_after_pauses_that_grow(monkeypatch, caplog, empty):
    outcomes = [failed() for _ in range(8)]
    run = Nothing([*outcomes, KeyboardInterrupt], monkeypatch, waits=True, empty=empty)
    with pytest.raises(KeyboardInterrupt):
        run.rounds.run()
    assert run.pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert run.records.drop_round.call_count >= 8
    told = [line for line in caplog.messages if "starts again" in line]
    assert told[0] == "round 1: no client finished it; it starts again in 1 s"
    assert len(told) == 8
    assert not any("\n" in line for line in told)


def test_lost_clients_are_waited_for_likewise(monkeypatch):
    run = Nothing([LOST, LOST, KeyboardInterrupt], monkeypatch, waits=True)
    with pytest.raises(KeyboardInterrupt):
        run.rounds.run()
    assert run.pauses == [1, 2]


def test_where_nobody_can_come_back_the_run_ends_and_says_why(monkeypatch):
    run = Nothing([failed("out of battery")], monkeypatch, waits=False)
    with pytest.raises(RunError, match="round 1: no client finished: out of battery"):
        run.rounds.run()
    run = Nothing([LOST], monkeypatch, waits=False)
    with pytest.raises(RunError, match="round 1: no client finished: all were lost"):
        run.rounds.run()
