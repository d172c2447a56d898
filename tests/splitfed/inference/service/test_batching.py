"""The queue: bounded, fair, in time, and what fits together is computed together."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from splitfed.errors import Diverged, WireError
from splitfed.inference.asking import Answer, Asked
from splitfed.inference.service.batching import Batcher, Busy, Request
from splitfed.inference.service.metrics import Metrics
from splitfed.wire.answers import LATE, REFUSED, heading
from splitfed.wire.frame import Packed


class Asking:
    """Reads `block,tokens` and remembers what was computed together; waits where it is `held`."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def unpack(self, buffer: bytes) -> Asked:
        if buffer == b"garbage":
            raise WireError("no frame")
        if buffer == b"absurd":
            raise Diverged("here", "too large")
        block, tokens, number = map(int, buffer.split(b","))
        return Asked(number, block, "", torch.zeros(1, tokens, 2))

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        self.begun.set()
        assert self.go.wait(10)
        if any(one.block == 9 for one in asked):
            raise RuntimeError("out of memory")
        self.together.append([one.number for one in asked])
        return [Answer({}, 1, str(one.number).encode(), (None,)) for one in asked]


class Back:
    """One back among others, at one rate."""

    def __init__(self, asking: Asking) -> None:
        self.asking = {"r": asking}


class Bench:
    """A batcher, and what became of each request."""

    def __init__(self, **how: Any) -> None:
        self.asking, self.metrics = Asking(), Metrics()
        self.back: Any = Back(self.asking)
        self.there = 1
        self.found: dict[int, list[Packed | WireError]] = {}
        given = {"batch": 4, "wait": 0.0, "queue": 8, **how}
        self.batcher = Batcher(self.metrics, there=lambda: self.there, **given)

    def ask(self, number: int, text: str = "2,5", client: int = 0, seconds: float = 60.0, back: Any = None) -> None:
        heard = self.found.setdefault(number, [])
        buffer = text.encode() if text[0].isalpha() else f"{text},{number}".encode()
        until = time.monotonic() + seconds
        self.batcher.submit(Request(client, number, back or self.back, "r", buffer, until, heard.append))

    def wait(self, count: int) -> None:
        limit = time.monotonic() + 10
        while sum(map(len, self.found.values())) < count:
            assert time.monotonic() < limit, self.found
            time.sleep(0.002)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**how: Any) -> Bench:
        made.append(Bench(**how))
        made[-1].batcher.__enter__()
        return made[-1]

    yield make
    for one in made:
        one.asking.go.set()
        one.batcher.__exit__()


def hold(one: Bench) -> None:
    """Let the thread compute a first request, and wait."""
    one.asking.go.clear()
    one.ask(1, client=99)
    assert one.asking.begun.wait(10)


def test_those_that_fit_are_computed_together(bench: Callable[..., Bench]) -> None:
    one = bench(queue=99)
    hold(one)
    for number, text in enumerate(["2,5", "1,5", "2,5", "2,4", "2,5", "2,5"], 2):
        one.ask(number, text)
    one.ask(8, back=Back(one.asking))
    one.asking.go.set()
    one.wait(8)
    assert one.asking.together == [[1], [2, 4], [3], [5], [6, 7], [8]]
    assert all([getattr(found[0], "buffer", None)] == [str(n).encode()] for n, found in one.found.items())


def test_a_batch_of_one_is_none(bench: Callable[..., Bench]) -> None:
    one = bench(batch=1)
    hold(one)
    for number in (2, 3):
        one.ask(number)
    one.asking.go.set()
    one.wait(3)
    assert one.asking.together == [[1], [2], [3]]


def test_the_first_waits_for_those_who_are_there(bench: Callable[..., Bench]) -> None:
    one = bench(wait=5.0)
    one.there = 3
    for number in (1, 2, 3):
        one.ask(number)
        time.sleep(0.01)
    one.wait(3)
    assert one.asking.together == [[1, 2, 3]]


def test_who_is_one_too_many_is_told_and_others_have_room(bench: Callable[..., Bench]) -> None:
    one = bench(queue=8)
    hold(one)
    for number in (2, 3):
        one.ask(number)
    with pytest.raises(Busy) as busy:
        one.ask(4)  # a quarter of the queue is this client's
    assert 0 < busy.value.seconds <= 2
    for client in (1, 2, 3):
        one.ask(10 * client, client=client)
        one.ask(10 * client + 1, client=client)
    with pytest.raises(Busy):
        one.ask(50, client=5)  # and now it is full
    assert len(one.batcher) == 8
    one.asking.go.set()
    one.wait(9)
    one.ask(60)
    one.wait(10)


def test_what_is_late_or_no_good_harms_no_other(bench: Callable[..., Bench]) -> None:
    one = bench(queue=99)
    hold(one)
    one.ask(2, seconds=-1.0)
    one.ask(3, "garbage")
    one.ask(4, "absurd")
    one.ask(5)
    one.ask(6, "9,5")
    one.ask(7)
    one.asking.go.set()
    one.wait(7)
    kinds = {}
    for number in (2, 4, 6):
        (found,) = one.found[number]
        assert isinstance(found, Packed)
        header = heading(found.buffer, {}, 4096)
        kinds[number] = header.kind
        assert header.step == number
    assert kinds == {2: LATE, 4: REFUSED, 6: REFUSED}
    assert isinstance(one.found[3][0], WireError)
    assert one.asking.together == [[1], [5, 7]]
    text = one.metrics.text()
    for outcome, count in (("late", 1), ("refused", 2), ("answered", 3)):
        assert f'{{outcome="{outcome}"}} {count}\n' in text


def test_at_the_end_those_that_wait_are_answered(bench: Callable[..., Bench]) -> None:
    one = bench()
    hold(one)
    one.ask(2)
    closing = threading.Thread(target=one.batcher.__exit__)
    closing.start()
    one.asking.go.set()
    closing.join(10)
    assert len(one.found[2]) == 1
