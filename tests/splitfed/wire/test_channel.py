"""How a stream is found and closed within one process."""

import pytest

from splitfed.errors import WireError
from splitfed.wire.channel import InlineListener, connect_inline


class Echo:
    """Answers with what it got, and remembers what happened to it."""

    def __init__(self) -> None:
        self.happened: list[object] = []

    def open(self, client: int, round: int) -> "Echo":
        self.happened.append((client, round))
        return self

    def handle(self, buffer: bytes) -> bytes:
        self.happened.append(buffer)
        return buffer

    def close(self) -> None:
        self.happened.append("closed")


def test_a_stream_carries_the_very_bytes_and_is_closed():
    echo, frame = Echo(), b"\x00frame"
    with InlineListener(echo) as listener, connect_inline(listener.address, 3, 7) as stream:
        assert stream.exchange(frame) is frame
    assert echo.happened == [(3, 7), frame, "closed"]


def test_replies_come_in_the_order_of_their_frames():
    with InlineListener(Echo()) as listener, connect_inline(listener.address, 3, 7) as stream:
        for frame in (b"1", b"2", b"3"):
            stream.send(frame)
        assert [stream.receive() for _ in range(3)] == [b"1", b"2", b"3"]


def test_a_stream_is_closed_after_an_error():
    echo = Echo()
    with InlineListener(echo) as listener, pytest.raises(ZeroDivisionError), connect_inline(listener.address, 0, 1):
        raise ZeroDivisionError
    assert echo.happened[-1] == "closed"


def test_two_listeners_do_not_meet():
    first, second = Echo(), Echo()
    with InlineListener(first) as one, InlineListener(second) as two:
        assert one.address != two.address
        connect_inline(two.address, 0, 1)
    assert (first.happened, second.happened) == ([], [(0, 1)])


def test_nobody_listens_after_the_block():
    with InlineListener(Echo()) as listener:
        pass
    with pytest.raises(WireError, match=f"nobody listens at {listener.address}"):
        connect_inline(listener.address, 0, 1)


def test_addresses_have_one_length():
    """They are part of counted messages: the tenth run of a process must send as many bytes as the first."""
    assert len({len(InlineListener(Echo()).address) for _ in range(1200)}) == 1
