"""A client with a key of its own that lies: its replies are refused, the others go on as if it had vanished."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from helpers import small, table
from outcomes import outcome

from splitfed import Observer, simulate
from splitfed.engines.inline import InlineGrid
from splitfed.errors import RunError, WireError
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.server import app, rounds
from splitfed.server.back.session import ClientSession, SplitSession
from splitfed.server.cohort import refusals
from splitfed.server.cohort.claims import MOST_TIMES, Claims, Crossed
from splitfed.server.cohort.dispatch import Mail
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.cohort.replies import Told, checked, checked_score
from splitfed.server.weights.grid import WireGrid, refusal
from splitfed.wire.messages import UNREACHED, UNTAKEN, VANISHED

LIAR = 1
Lie = Callable[[Message], object]


def _put(record: str, key: str, value: object) -> Lie:
    return lambda reply: reply.content[record].__setitem__(key, value)


def _raw(value: float, shape: tuple[int, ...] = (3,)) -> Lie:
    def lie(reply: Message) -> None:
        del reply.content["wire"]
        reply.content["arrays"] = ArrayRecord({"x": Array(np.full(shape, value))})

    return lie


def _config_for_arrays(reply: Message) -> None:
    del reply.content["wire"]
    reply.content["arrays"] = ConfigRecord({"x": 1})


TRAIN_LIES: list[Lie] = [
    *[_put("wire", "weights", value) for value in (-1, 2**62, [300], 1.5, "abc", b"", b"garbage")],
    _put("wire", "once", b"more"), _put("wire", "bonus", 1), lambda reply: reply.content.pop("wire"),
    lambda reply: reply.content.pop("metrics"), _raw(math.nan), _raw(1e30, (2, 2)), _config_for_arrays,
    lambda reply: reply.content.update(more=MetricRecord({"x": 1})),
    lambda reply: reply.content.update(metrics=ConfigRecord({"num-examples": 32, "train-loss": 1.0, "steps": 2})),
    *[_put("metrics", "num-examples", value) for value in (31, 10**9, -1, [32], 32.0)],
    *[_put("metrics", "train-loss", value) for value in (1.7e308, math.nan, -1.0, [1.0], 1, 0.0, 1.5000000000000002)],
    *[_put("metrics", "steps", value) for value in ([1.5], 3, -1, 2**62, 2.0)],
    _put("metrics", "bonus\x1b[2J", 1),
    lambda reply: reply.metadata.__dict__.update(_message_type="evaluate"),
    lambda reply: reply.metadata.__dict__.update(_message_type="train.align"),
    lambda reply: reply.metadata.__dict__.update(_message_type="system"),
]  # fmt: skip
EVALUATE_LIES: list[Lie] = [
    *[_put("metrics", "eval-accuracy", value) for value in (7.0, -0.1, math.nan, 0.123, 1, [0.5])],
    *[_put("metrics", "eval-loss", value) for value in (math.inf, 1e308, -1.0)],
    _put("metrics", "num-examples", 10**9),
    lambda reply: reply.content.update(wire=ConfigRecord({"weights": b"x"})),
    lambda reply: reply.content.clear(),
]


def _answering(monkeypatch, changes: dict[str, Callable[[int, Message], Message]]) -> None:
    """Let client 1 answer messages of some types otherwise from round 2 on: a change gets a count from 0 on, and the
    reply."""
    deliver, seen = InlineGrid.deliver, dict.fromkeys(changes, -1)

    def other(self, message: Message) -> Message:
        reply, kind = deliver(self, message), message.metadata.message_type
        if kind in changes and message.metadata.dst_node_id == LIAR + 2:
            seen[kind] += 1
            return changes[kind](seen[kind] - 1, reply) if seen[kind] else reply
        return reply

    monkeypatch.setattr(InlineGrid, "deliver", other)


def _lying(lies: list[Lie]) -> Callable[[int, Message], Message]:
    def change(number: int, reply: Message) -> Message:
        lies[number](reply)
        return reply

    return change


def _silent(number: int, reply: Message) -> Message:
    return Message(Error(VANISHED, "gone"), metadata=reply.metadata)  # type: ignore[call-overload]


def _run(monkeypatch, folder: Path, scenario: Scenario, **changes: Callable[[int, Message], Message]) -> Path:
    with monkeypatch.context() as patch:
        _answering(patch, changes)
        return simulate(scenario, runs=folder).folder


class _Replies:
    """A grid that has one reply, from client 1."""

    def __init__(self, reply: Message) -> None:
        self.reply = reply

    def pull_messages(self, numbers: object) -> list[Message]:
        return [self.reply]


class _Exchange:
    def up(self, buffer: bytes, client: int) -> tuple[dict[str, torch.Tensor], dict]:
        if buffer != b"frame":
            raise WireError("no frame")
        return {"weight": torch.ones(3)}, {}


class _Uncounted:
    def add(self, rows: object) -> None: ...


def _pulled(kind: str, lie: Lie) -> Message:
    """Return what the server makes of a reply that was honest before this lie."""
    asked = Message(RecordDict(), LIAR + 2, kind)
    asked.metadata.__dict__["_message_id"] = "m1"  # Flower numbers a message like this too: the number has no setter
    content = {"metrics": MetricRecord({"num-examples": 32, "eval-loss": 1.5, "eval-accuracy": 0.25})}
    if kind == "train":
        metrics = MetricRecord({"num-examples": 32, "train-loss": 1.5, "steps": 2})
        content = {"metrics": metrics, "wire": ConfigRecord({"weights": b"frame"})}  # type: ignore[dict-item]
    reply = Message(RecordDict(content), reply_to=asked)  # type: ignore[arg-type]
    lie(reply)
    grid = WireGrid(_Replies(reply), {"train": _Exchange()}, _Uncounted(), Key(0))  # type: ignore[arg-type, dict-item]
    mail = Mail(grid)
    grid.push_messages = lambda messages: ["m1"]  # type: ignore[method-assign]
    mail.send(asked)
    return mail.take({"m1"})["m1"]


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize("number", range(-1, len(TRAIN_LIES)))
def test_a_lie_about_training_is_refused(number, caplog):
    seen = Refusals()
    lie = TRAIN_LIES[number] if number >= 0 else lambda reply: None
    told = Told(32, Crossed(2, 32), weight=8)
    taken = checked(_pulled("train", lie), 4, LIAR, told, (2, 32), 1.5, seen)
    assert taken.has_error() == (number >= 0)
    assert seen.state_dict() == ({"refused": [[LIAR, [4]]]} if number >= 0 else {})
    if number < 0:
        assert dict(taken.content["metrics"]) == {"num-examples": 8, "train-loss": 1.5, "steps": 2}
        return
    (line,) = [record.getMessage() for record in caplog.records if record.name == "splitfed"]
    assert line.startswith("round 4: client 1 failed: reply refused: ")
    assert line.isprintable()


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize("number", range(-1, len(EVALUATE_LIES)))
def test_a_lie_about_an_evaluation_is_refused(number, caplog):
    seen = Refusals()
    lie = EVALUATE_LIES[number] if number >= 0 else lambda reply: None
    score = checked_score(_pulled("evaluate", lie), 4, LIAR, 32, None, seen)
    assert (score is None) == (number >= 0)
    assert caplog.text.count("round 4: client 1 failed: reply refused: ") == (number >= 0)


def test_others_get_what_they_would_if_the_liar_had_vanished(monkeypatch, tmp_path):
    monkeypatch.setattr(refusals, "ROUNDS", math.inf)
    some, about = TRAIN_LIES[1::12], EVALUATE_LIES[::3]
    plan = small(
        "federation.mode=sfl-v1", f"federation.rounds={len(some) + 1}", "evaluation.held_out=0.25",
        "training.evaluate_every=100",
    )  # fmt: skip
    lied = _run(monkeypatch, tmp_path / "a", plan, train=_lying(some), evaluate=_lying(about))
    silent = _run(monkeypatch, tmp_path / "b", plan, train=_silent, evaluate=_silent)
    uncounted = ("seconds", "total_bytes", "total_raw_bytes")
    assert table(lied / "metrics.csv", *uncounted) == table(silent / "metrics.csv", *uncounted)
    assert (lied / "clients.csv").read_text() == (silent / "clients.csv").read_text()
    assert outcome(lied)["model"] == outcome(silent)["model"]
    assert (lied / "log.txt").read_text().count(f"client {LIAR} failed: reply refused: ") == 2 * len(some)


def test_who_lies_in_three_rounds_is_left_out_for_good_also_over_a_resumption(monkeypatch, tmp_path):
    """Killed in the middle of round 5, and from there on it would be honest."""

    class Kill(Observer):
        def progress(self, round: int, share: float) -> None:
            if round == 5:
                raise KeyboardInterrupt

    plan = small("federation.rounds=6")
    with monkeypatch.context() as patch:
        _answering(patch, {"train": _lying([_put("metrics", "steps", 9)] * 9)})
        with pytest.raises(KeyboardInterrupt):
            simulate(plan, runs=tmp_path, observers=[Kill()])
    (folder,) = tmp_path.iterdir()
    simulate(resume=folder)
    assert [(row["clients"], row["lost"]) for row in table(folder / "metrics.csv")] == [
        ("3", "0"), ("2", "1"), ("2", "1"), ("2", "1"), ("2", "0"), ("2", "0"),
    ]  # fmt: skip
    log = (folder / "log.txt").read_text()
    assert log.count("client 1 is left out for the rest of the run: its replies were refused in 3 rounds") == 1
    assert "round 4: client 1 is left out" in log


def test_in_a_deployment_others_go_on_where_a_cohort_fails_and_a_round_starts_again_where_there_are_none(
    monkeypatch, tmp_path
):
    lent = app.runtime
    monkeypatch.setattr(app, "runtime", lambda: replace(lent(), waits=True))
    plan = small("federation.clients=2", "federation.cohort=1", "federation.rounds=5")

    deliver, fail = InlineGrid.deliver, {0}

    def other(self, message: Message) -> Message:
        reply = deliver(self, message)
        theirs = message.metadata.message_type == "train" and reply.metadata.src_node_id - 2 in fail
        return Message(Error(1, "no"), metadata=reply.metadata) if theirs else reply  # type: ignore[call-overload]

    monkeypatch.setattr(InlineGrid, "deliver", other)
    rows = table(simulate(plan, runs=tmp_path / "a").folder / "metrics.csv")
    # The seed draws client 0 four times, then client 1.
    assert [(row["clients"], row["lost"]) for row in rows] == [("0", "1")] * 4 + [("1", "0")]
    fail |= {1}
    pauses = iter([None, None])

    def sleep(seconds: float) -> None:
        if next(pauses, seconds) is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(rounds.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "b")
    (folder,) = (tmp_path / "b").iterdir()
    assert (folder / "log.txt").read_text().count("round 5: no client finished it; it starts again in") == 3


def test_a_simulation_knows_how_many_images_each_client_has(monkeypatch, tmp_path):
    deliver = InlineGrid.deliver

    def more(self, message: Message) -> Message:
        reply = deliver(self, message)
        if message.metadata.message_type == "query" and message.metadata.dst_node_id == LIAR + 2:
            reply.content["config"]["num-examples"] = 33
        return reply

    monkeypatch.setattr(InlineGrid, "deliver", more)
    with pytest.raises(RunError, match="client 1 says that it trains on 33 images, where it has 32"):
        simulate(small(), runs=tmp_path)


def test_what_has_not_crossed_was_not_trained_on(monkeypatch, tmp_path):
    """A client that counts as many mini-batches as it should, but has sent fewer, is not taken."""
    handle = SplitSession.handle

    def missed(self, buffer: bytes) -> bytes:
        reply = handle(self, buffer)
        self.images -= self.client == LIAR  # for each of two mini-batches, and the end
        return reply

    monkeypatch.setattr(SplitSession, "handle", missed)
    folder = simulate(small("federation.rounds=1"), runs=tmp_path).folder
    why = "reply refused: 29 images in 2 mini-batches have crossed, where its 32 make 32 in 2"
    assert f"round 1: client 1 failed: {why}" in (folder / "log.txt").read_text()
    assert table(folder / "metrics.csv")[0]["clients"] == "2"


@pytest.mark.parametrize("says", ["done", "its line broke"])
def test_a_stream_without_its_end_is_a_lie_of_whom_says_that_it_is_done_and_no_fault_of_whose_line_broke(
    says, monkeypatch, tmp_path
):
    handle, deliver = ClientSession.handle, InlineGrid.deliver

    def endless(self, buffer: bytes) -> bytes:
        reply = handle(self, buffer)
        self.finished = self.finished and self.client != LIAR
        return reply

    def broken(self, message: Message) -> Message:
        reply, kind = deliver(self, message), message.metadata.message_type
        if says == "done" or kind == "query" or message.metadata.dst_node_id != LIAR + 2:
            return reply
        return Message(Error(UNREACHED, "nobody answers"), metadata=reply.metadata)  # type: ignore[call-overload]

    monkeypatch.setattr(ClientSession, "handle", endless)
    monkeypatch.setattr(InlineGrid, "deliver", broken)
    plan = small("federation.rounds=5", "evaluation={held_out: 0.25}")
    log = (simulate(plan, runs=tmp_path).folder / "log.txt").read_text()
    why = "client 1 failed: reply refused: it says that it is done, and its stream has not come to its end"
    lied = says == "done"
    assert log.count(why) == (5 if lied else 0)  # thrice for its training, and twice for its evaluation
    assert log.count("client 1 is lost: nobody answers") == (0 if lied else 5)
    assert log.count("client 1 is lost to its evaluation") == (0 if lied else 5)
    assert ("client 1 is left out" in log) == lied


# -------------------------------------------------------------------------------------------------------------- claims


def _claims(dealt: list[int], *overrides: str, deployed: bool = True) -> Claims:
    engine = ["engine={kind: deployment, threads: 1}"] if deployed else []
    return Claims(small(f"federation.clients={len(dealt)}", *engine, *overrides), dealt)


@pytest.mark.parametrize("images", [1, 15, 16, 17, 300])
@pytest.mark.parametrize("plan", ["local_epochs=3", "local_steps=1", "local_steps=7"])
def test_what_a_plan_makes_cross_is_what_its_batches_hold(images, plan):
    from splitfed.data.batches import batches
    from splitfed.data.images import Images

    class Blank(Images):
        def __init__(self) -> None:
            self.labels = torch.zeros(images, dtype=torch.int64)

        def pixels(self, rows):
            return torch.zeros(len(rows), 3, 1, 1, dtype=torch.uint8)

    name, number = plan.split("=")
    steps = {"steps": int(number)} if name == "local_steps" else {"epochs": int(number)}
    seen = [
        len(batch.labels)
        for batch in batches(Blank(), torch.arange(images), 16, Key(0), mean=(0, 0, 0), std=(1, 1, 1), **steps)
    ]
    unset = [] if name == "local_epochs" else ["federation.local_epochs=null"]
    claims = _claims([1, 1, 1], f"federation.{plan}", *unset)
    assert claims.planned(images) == Crossed(len(seen), sum(seen))


def test_a_claim_that_nothing_shows_weighs_no_more_than_ten_times_the_middle_one():
    honest = {0: 300, 1: 40, 2: 50}
    alone = ["federation.mode=fl", "training.server={}"]
    for mode in (alone, ["federation.local_epochs=null", "federation.local_steps=2"]):
        claims = _claims([1, 1, 1, 7_000_000], *mode)
        assert claims.weights(honest) == honest
        assert claims.weights(honest | {2: 10_000_000}) == honest | {2: MOST_TIMES * 300}
        assert claims.weights({0: 300, 1: 10_000_000}) == {0: 300, 1: MOST_TIMES * 300}
        assert claims.weights({0: 3, 3: 7_000_000}) == {0: 3, 3: 7_000_000}  # it is what the server deals itself
    # Where all images cross, what crossed is the claim, or the reply is refused.
    claims = _claims([1, 1, 1])
    assert claims.weights(honest | {2: 10_000_000}) == honest | {2: 10_000_000}
    assert claims.believed(honest | {2: 10_000_000}) == honest | {2: MOST_TIMES * 300}
    assert claims.believed({0: 0, 1: 0, 2: 300}) == {0: 0, 1: 0, 2: 300}
    claims.check(0, 10_000_000)
    with pytest.raises(WireError):
        _claims([32, 32, 32], deployed=False).check(0, 33)


@pytest.mark.usefixtures("identity")
def test_refusals_count_once_a_round_and_errors_do_not_count():
    reply = Message(RecordDict(), reply_to=Message(RecordDict(), 7, "train"))
    one = Refusals()
    assert one.state_dict() == {}
    for round in (1, 1, 2):
        one.note(0, round, refusal(reply, "no"))
        one.note(1, round, reply)
        one.note(2, round, Message(Error(1, "no images"), reply_to=Message(RecordDict(), 7, "train")))
    assert one.out == set()
    two = Refusals()
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    two.note(0, 5, refusal(reply, "no"))
    assert (two.out, one.out) == ({0}, set())
    assert refusal(reply, "no").error.code == UNTAKEN
