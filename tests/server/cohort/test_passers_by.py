"""Thousands who come, are asked who they are, perhaps admitted, and go: what the server keeps of them is bounded, in
memory, in its files and in its lines."""

import itertools
from collections import deque
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from splitfed.run import ledger as ledgers
from splitfed.run.ledger import Ledger, read_rows
from splitfed.seeds import Key
from splitfed.server.cohort import dispatch, roster, sparing
from splitfed.server.cohort.dispatch import Mail
from splitfed.server.cohort.roster import Roster
from splitfed.server.cohort.sparing import Sparing, worth_telling
from splitfed.server.weights.grid import WireGrid
from splitfed.wire.messages import CONFIG, Question

pytestmark = pytest.mark.usefixtures("identity")
CLIENTS = 3


class Passing(Grid):
    """A SuperLink's nodes: `there` are here now, and answer, unless they are silent; of one that is gone the SuperLink
    answers itself, or, as it may have forgotten it, nobody."""

    def __init__(self) -> None:
        self.there: dict[int, Any] = {}
        self._sent: dict[str, Message] = {}
        self._numbers = itertools.count()

    def set_run(self, run) -> None: ...
    def create_message(self, *_, **__): ...
    def send_and_receive(self, *_, **__): ...

    @property
    def run(self): ...

    def get_node_ids(self) -> list[int]:
        return list(self.there)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            numbers.append(number := f"m{next(self._numbers)}")
            message.metadata.__dict__["_message_id"] = number  # as Flower does: it has no setter
            self._sent[number] = message
        return numbers

    def pull_messages(self, numbers: Iterable[str]) -> list[Message]:
        replies = []
        for number in [number for number in numbers if number in self._sent]:
            message = self._sent[number]
            node = message.metadata.dst_node_id
            if node not in self.there and node % 2:
                del self._sent[number]
                replies.append(Message(Error(6, "it is gone"), reply_to=message))
            elif (answer := self.there.get(node)) is not None:
                del self._sent[number]
                replies.append(Message(RecordDict({CONFIG: ConfigRecord(answer)}), reply_to=message))
        return replies


def kept(*roots: object) -> int:
    """Return how many things are in what these objects of the server's hold, and in what those hold."""
    total, seen, left = 0, set(), list(roots)
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, Passing):
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
            total += len(one)
        elif isinstance(one, list | set | tuple | deque | frozenset):
            left += one
            total += len(one)
        elif type(one).__module__.startswith("splitfed"):
            left += [getattr(one, slot) for slot in getattr(one, "__slots__", ()) if hasattr(one, slot)]
            left += vars(one).values() if hasattr(one, "__dict__") else []
    return total


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Return a roster with all that is behind it, and a way to let seconds pass."""
    now = SimpleNamespace(seconds=1000.0)
    clock = SimpleNamespace(monotonic=lambda: now.seconds, sleep=lambda seconds: None)
    for module in (roster, dispatch, sparing):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(ledgers, "_MOST_OF_NOBODY", 100)  # bounds that thousands would not reach
    monkeypatch.setattr(dispatch, "_MOST_LATE_IN_ALL", 100)  # likewise
    nodes, ledger, joined = Passing(), Ledger(tmp_path, 1), []
    mail = Mail(WireGrid(nodes, {}, ledger, Key(0)))
    made = Roster(
        mail, CLIENTS, Question(), waits=True, keys=None, joined=lambda client, *_: joined.append(client)
    )  # fmt: skip
    return SimpleNamespace(now=now, nodes=nodes, ledger=ledger, mail=mail, roster=made, joined=joined)


def claims(client: int) -> dict[str, Any]:
    return {"protocol": 1, "version": "0.1.0", "partition-id": client, "num-examples": 10}


def refused(number: int) -> dict[str, Any]:
    return claims(0) | {"problem": f"problem {number}"}


@pytest.mark.parametrize("kind", ["admitted", "refused", "silent", "of all kinds"])
def test_of_thousands_who_pass_by_little_is_kept(kind, server, tmp_path, caplog):
    answers = {
        "admitted": lambda number: claims(number % CLIENTS),
        "refused": refused,
        "silent": lambda number: None,
    }
    of_all = [*answers.values()]
    sizes, lines = [], []
    for number in range(2000):
        answer = answers.get(kind, of_all[number % 3])(number)
        server.nodes.there = {100 + number: answer}
        for _ in range(2):
            server.roster.online()
            server.now.seconds += 1
        if number in (499, 1999):
            sizes.append((kept(server.roster, server.mail, server.ledger), (tmp_path / "open-1.csv").stat().st_size))
            lines.append(len(caplog.records) + len(server.joined))
    (before, file_before), (after, file_after) = sizes
    assert after <= before + 100
    assert file_after == file_before
    assert after < 1000
    assert lines[0] < 200
    assert lines[1] - lines[0] < 100  # in fifty minutes
    total = server.ledger.open.total.sent
    server.ledger.commit()
    assert sum(row.sizes.sent for row in read_rows(tmp_path / "ledger.csv")) == total


def test_lines_that_do_not_cease_grow_seldom_and_are_counted(caplog):
    now = SimpleNamespace(seconds=0.0)
    lines = Sparing(2, clock=lambda: now.seconds)
    for second in range(7 * 3600):
        now.seconds = float(second)
        lines.warn("here")
    said = [record.getMessage() for record in caplog.records]
    assert said[:5] == ["here", "here", "58 lines more, of nodes that were refused, were left out", "here", "here"]
    assert said.count("here") == 2 * 12  # in windows that begin at 0, 1, 3, 7, 15, 31 minutes, and then after an hour
    caplog.clear()
    now.seconds += 7200
    for _ in range(3):
        now.seconds += 61
        lines.warn("there")
    assert [record.getMessage() for record in caplog.records][1:] == ["there"] * 3


def test_what_happens_again_and_again_is_told_ever_more_seldom():
    assert [times for times in range(1, 200) if worth_telling(times)] == [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128]
