"""Who is there, who may not be, and replies that come in any order, late or never."""

import logging
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from splitfed.errors import RunError
from splitfed.server.cohort import dispatch as dispatching
from splitfed.server.cohort import roster as module
from splitfed.server.cohort.dispatch import Dispatch, Mail
from splitfed.server.cohort.roster import Roster
from splitfed.wire.messages import CONFIG, Question

pytestmark = pytest.mark.usefixtures("identity")


Answer = Callable[[Message], Message | None]


class Nodes:
    """A grid whose nodes answer when they like: `answers` gives each node's reply, None for not yet."""

    def __init__(self, answers: dict[int, Answer]) -> None:
        self.answers, self.clients = answers, {}
        self.introduce = self.clients.__setitem__
        self.sent: dict[str, Message] = {}
        self.pulled: list[str] = []

    def get_node_ids(self) -> list[int]:
        return list(self.answers)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            if message.metadata.dst_node_id in self.answers:
                numbers.append(f"m{len(self.sent)}")
                self.sent[numbers[-1]] = message
                # Flower numbers a message like this too: the number has no setter.
                message.metadata.__dict__["_message_id"] = numbers[-1]
        return numbers

    def pull_messages(self, numbers: Iterable[str]) -> list[Message]:
        replies = []
        for number in sorted(numbers):
            message = self.sent[number]
            answer = self.answers.get(message.metadata.dst_node_id)
            if number not in self.pulled and answer and (reply := answer(message)) is not None:
                self.pulled.append(number)
                replies.append(reply)
        return replies


def says(**answer: Any) -> Answer:
    own = {"protocol": 1, "version": "0.1.0"}
    return lambda message: Message(RecordDict({CONFIG: ConfigRecord(own | answer)}), reply_to=message)


def holds(client: int, examples: int = 10) -> Answer:
    return says(**{"partition-id": client, "num-examples": examples})


def silent(message: Message) -> None:
    return None


def fails(message: Message) -> Message:
    return Message(Error(2, "no images"), reply_to=message)


def roster(nodes: Nodes, clients: int = 3, known: dict[int, int] | None = None, **more: Any) -> Roster:
    more = {"waits": True, "keys": None, "joined": lambda client, examples, missing: None} | more
    made = Roster(Mail(nodes), clients, Question(), **more)  # type: ignore[arg-type]
    if known:
        made.load_state_dict({"examples": list(known.items())})
    return made


def test_clients_are_known_by_what_they_say_and_asked_once():
    nodes, joined = Nodes({70: holds(2, 5), 80: holds(0, 6), 90: holds(1, 7)}), []
    one = roster(nodes, joined=lambda *seen: joined.append(seen))
    one.gather(3)
    one.gather(3)
    assert (one.nodes, one.examples) == ({0: 80, 1: 90, 2: 70}, {0: 6, 1: 7, 2: 5})
    assert len(nodes.sent) == 3
    assert nodes.clients == {70: 2, 80: 0, 90: 1}
    assert joined == [(2, 5, [0, 1]), (0, 6, [1]), (1, 7, [])]
    assert all(message.metadata.message_type == "query" for message in nodes.sent.values())


def test_a_run_that_waits_begins_when_enough_are_there(monkeypatch):
    nodes = Nodes({70: holds(2)})
    coming = iter([(80, holds(0)), (90, holds(1))])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: nodes.answers.update([next(coming)]))
    one = roster(nodes)
    one.gather(2)
    assert one.online() == {0, 2}
    one.gather(3)
    assert one.online() == {0, 1, 2}


def test_who_leaves_is_not_there_until_a_node_says_it_again():
    nodes = Nodes({70: holds(0), 80: holds(1)})
    one = roster(nodes, 2)
    assert one.online() == {0, 1}
    del nodes.answers[80]
    assert one.online() == {0}
    nodes.answers[81] = holds(1)
    assert one.online() == {0, 1}
    assert one.nodes == {0: 70, 1: 81}


def test_a_client_without_images_is_there_but_never_drawn(caplog, monkeypatch):
    nodes = Nodes({70: holds(0), 80: holds(1, 0), 90: holds(2)})
    one = roster(nodes, waits=False)
    with caplog.at_level(logging.WARNING, "splitfed"):
        one.gather(3)
        one.gather(3)
    assert set(one.nodes) == {0, 1, 2}
    assert one.online() == {0, 2}
    assert [record.getMessage() for record in caplog.records] == ["1 of 3 clients hold no images and never train: 1"]
    # Alone it is nobody to train with: whoever waits for clients goes on waiting.
    nodes, coming = Nodes({80: holds(1, 0)}), iter([(90, holds(2))])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: nodes.answers.update([next(coming)]))
    one = roster(nodes)
    one.gather(1)
    assert one.online() == {2}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (fails, "node 80 does not answer: no images"),
        (holds(3), "a node says that it is client 3, where there are clients 0 to 2"),
        (holds(-1), "a node says that it is client -1, where there are clients 0 to 2"),
        (says(**{"partition-id": "0", "num-examples": 3}), "a node says that it is client 0, where there are"),
        (says(**{"num-examples": 3}), "a node says that it is client None, where there are"),
        (holds(0, -1), "client 0 does not say what it holds: its 'num-examples' is -1: "),
        (holds(0, 10**9), "client 0 does not say what it holds: its 'num-examples' is 1000000000: "),
        (says(**{"partition-id": 0}), "client 0 does not say what it holds: it has no 'num-examples'"),
        (
            says(**{"partition-id": 0, "num-examples": 3, "more": 1}),
            "client 0 does not say what it holds: it has 'more', which nobody asked for",
        ),
        (holds(1, 11), "client 1 held 12 images, now 11: start a new run"),
        (holds(2), "a second node says that it is client 2; the first one stays"),
        (says(**{"partition-id": 0, "problem": "no\n\x1b[2Jimages"}), "client 0 cannot take part: no \\x1b[2Jimages"),
        (lambda message: Message(RecordDict(), reply_to=message), "it holds nothing, and no 'config'"),
    ],
)
def test_a_node_that_is_no_client_is_refused(answer, problem, caplog):
    with pytest.raises(RunError) as caught:
        roster(Nodes({70: holds(2), 80: answer}), known={1: 12}, waits=False).gather(3)
    assert str(caught.value).startswith(problem)
    waiting = roster(Nodes({70: holds(2), 80: answer}), known={1: 12})
    with caplog.at_level(logging.WARNING, "splitfed"):
        for _ in range(3):
            assert waiting.online() == {2}
    assert [record.getMessage().startswith(problem) for record in caplog.records] == [True]
    sent = waiting.grid.sent.values()  # type: ignore[attr-defined]
    told = [message.content["config"]["problem"] for message in sent if message.metadata.message_type != "query"]
    knows_already = "does not answer" in problem
    assert told == ([] if knows_already else [caplog.records[0].getMessage()])


@pytest.mark.parametrize("held", [-1, 0, 7, 9, 10**9, 8.0, "8", True])
def test_a_client_that_holds_out_more_or_less_than_asked_for_is_refused(held):
    answer = says(**{"partition-id": 0, "num-examples": 24, "held-out": held})
    with pytest.raises(
        RunError, match=f"client 0 says that it holds out {held} images beside 24|'held-out' is '?{held}"
    ):
        roster(Nodes({80: answer}), share=0.25, waits=False).gather(1)
    assert roster(Nodes({80: says(**{"partition-id": 0, "num-examples": 24, "held-out": 8})}), share=0.25).online()


def test_no_client_can_pass_for_another():
    nodes = Nodes({70: holds(1), 80: holds(1), 90: holds(0)})
    one = roster(nodes, keys=lambda: {80: 1, 70: 0})  # 90 has a key of its own, which nobody handed out
    assert one.online() == {1}
    assert one.nodes == {1: 80}


def test_a_refused_node_is_asked_again_later(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    nodes = Nodes({70: fails})
    one = roster(nodes, 1)
    assert one.online() == set()
    nodes.answers[70] = holds(0)
    assert one.online() == set()
    now[0] += 16
    assert one.online() == {0}


def test_a_client_that_was_away_is_asked_again():
    """Its images may have changed: a run that has not begun takes the new number, one that has does not."""
    nodes = Nodes({70: holds(0, 1), 80: holds(1)})
    one = roster(nodes, 3)
    assert one.online() == {0, 1}
    del nodes.answers[70]
    assert one.online() == {1}
    nodes.answers[70] = holds(0, 300)
    one.gather(2)
    assert one.examples == {0: 300, 1: 10}
    del nodes.answers[70]
    assert one.online() == {1}
    nodes.answers[70] = holds(0, 301)
    assert one.online() == {1}
    assert one.examples[0] == 300


def test_a_silent_node_is_asked_again_and_what_it_answers_twice_is_counted(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    nodes = Nodes({70: silent})
    one = roster(nodes, 1)
    one.online()
    now[0] += 16
    one.online()
    assert len(nodes.sent) == 2
    nodes.answers[70] = holds(0)
    assert one.online() == {0}
    assert sorted(nodes.pulled) == ["m0", "m1"]


def test_an_answer_counts_however_late_it_comes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def slow(message: Message) -> Message | None:
        return holds(0)(message) if now[0] >= asked.setdefault(message.metadata.message_id, now[0]) + 70 else None

    asked: dict[str, float] = {}
    nodes = Nodes({70: slow})
    one = roster(nodes, 1)
    while not one.online() and now[0] < 1000:
        now[0] += 0.5
    assert now[0] == 170
    assert len(nodes.sent) == 3  # at 100, 115 and 145: the pauses grow
    assert one.online() == {0}


def test_a_node_that_left_is_asked_anew_at_once(monkeypatch):
    """It may be another process, to which the question never came."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    nodes = Nodes({70: silent})
    one = roster(nodes, 1)
    one.online()
    del nodes.answers[70]
    for now[0] in (101.0, 105.0):
        one.online()
    nodes.answers[70] = holds(0)
    assert one.online() == {0}
    assert len(nodes.sent) == 2


def test_an_answer_counts_however_late_it_is_looked_for(monkeypatch):
    """Between two rounds lies a whole round: the answer came long ago, and it took a moment until it was whole."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    nodes = Nodes({70: silent})
    one = roster(nodes, 1)
    assert one.online() == set()
    nodes.answers[70] = holds(0)
    now[0] += 3600
    assert one.online() == {0}
    assert len(nodes.sent) == 1


def test_a_node_that_never_answers_costs_no_more_from_day_to_day(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    looked: list[int] = []

    class Counting(Nodes):
        def pull_messages(self, numbers: Iterable[str]) -> list[Message]:
            looked.append(len(asked := list(numbers)))
            return super().pull_messages(asked)

    nodes = Counting({70: silent, 80: holds(0)})
    one = roster(nodes, 1)
    for _ in range(3 * 24 * 60):
        assert one.online() == {0}
        now[0] += 60
    assert len(nodes.sent) < 3 * 24 + 12
    assert max(looked) < 16
    nodes.answers[70] = holds(1)
    assert roster(nodes, 2).online() == {0, 1}


def test_nodes_that_come_one_after_another_to_be_refused_fill_no_log(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    nodes = Nodes({})
    one = roster(nodes, 2)
    for node in range(600):
        nodes.answers = {node: holds(-node)}
        one.online()
        now[0] += 0.5
    assert 40 < len(caplog.messages) < 200  # in five minutes
    assert "client -1, " in caplog.text
    nodes.answers = {1000: holds(0)}
    assert one.online() == {0}


def test_who_comes_during_a_round_is_greeted_at_once(monkeypatch):
    clock = count(100.0, 3.0)  # whoever waits looks around each time
    monkeypatch.setattr(dispatching.time, "monotonic", lambda: next(clock))
    greeted: list[int] = []

    def late(message: Message) -> Message | None:
        nodes.answers[71] = holds(1)
        return holds(0)(message) if 1 in greeted else None

    nodes = Nodes({70: holds(0)})
    one = roster(nodes, 2, joined=lambda client, *_: greeted.append(client))
    one.gather(1)
    nodes.answers[70] = late
    settled: list[int] = []
    message = Message(RecordDict(), 70, "train")
    Dispatch(one.mail, one.meanwhile).exchange({0: message}, set, lambda client, reply: settled.append(client))
    assert (greeted, settled) == ([0, 1], [0])


def test_a_run_that_does_not_wait_ends_when_all_have_answered_and_some_are_missing():
    with pytest.raises(RunError, match=r"the clients that answered are \[0\], not 0 to 2"):
        roster(Nodes({70: holds(0)}), waits=False).gather(3)


def exchange(nodes: Nodes, messages: dict[int, Message], lost: Callable[[], set[int]]) -> list[tuple[int, str | None]]:
    settled: list[tuple[int, str | None]] = []
    nodes.clients = {message.metadata.dst_node_id: client for client, message in messages.items()}
    dispatch = Dispatch(Mail(nodes))  # type: ignore[arg-type]
    dispatch.exchange(messages, lost, lambda client, reply: settled.append((client, reply and str(reply.content))))
    return settled


def test_replies_are_settled_as_they_come():
    """The first client answers after the second, the third is lost in between, and the fourth has left."""
    looks = [0]

    def late(message: Message) -> Message | None:
        looks[0] += 1
        return holds(0)(message) if looks[0] > 6 else None

    nodes = Nodes({70: late, 71: holds(1), 72: silent})
    messages = {client: Message(RecordDict(), 70 + client, "train") for client in range(4)}
    settled = exchange(nodes, messages, lambda: {2} if looks[0] > 4 else set())
    assert [client for client, _ in settled] == [1, 3, 2, 0]
    assert [reply is None for _, reply in settled] == [False, True, True, False]


def test_who_is_waited_for_long_is_named_once(monkeypatch, caplog):
    clock = count(100.0, 3.0)
    monkeypatch.setattr(dispatching.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(dispatching.time, "sleep", lambda seconds: None)
    nodes = Nodes({70: silent, 80: silent, 90: silent})
    asked = {client: Message(RecordDict(), node, "train") for client, node in enumerate(nodes.answers)}
    looks = count()
    replies: dict[int, Message | None] = {}

    def lost() -> set[int]:
        return {0, 1, 2} if next(looks) > 60 else set()

    Dispatch(Mail(nodes), says=True).exchange(asked, lost, replies.__setitem__, begun=lambda: {1})  # type: ignore[arg-type]
    assert replies == {0: None, 1: None, 2: None}
    assert caplog.messages == ["still waiting for clients that have sent nothing yet: 0, 2"]
