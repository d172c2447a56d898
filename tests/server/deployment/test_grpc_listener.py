"""The server's end of a gRPC stream: whom it lets in, what becomes of failures, and that nothing starves or hangs."""

import logging
import time
from functools import partial
from queue import SimpleQueue
from threading import Barrier, Event, Thread

import grpc
import pytest
import split_server
from channels import HOST, Door, Proxy, dial, listen
from waiting import LONG, until

from splitfed.engines.runtime import ServerTls
from splitfed.errors import CodecError, SplitfedError, WireError
from splitfed.server.deployment import grpc_listener
from splitfed.server.deployment.tickets import Tickets
from splitfed.wire import grpc_settings as rpc
from splitfed.wire.channel import Invitation


def raw(port: int, metadata, messages=(b"frame",), **options):
    """Call the server as no client of ours would; return its status and text, or None and its replies."""
    with grpc.insecure_channel(f"{HOST}:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.stream_stream(rpc.PATH)(iter(messages), metadata=metadata, timeout=LONG, **options)
        try:
            return None, list(call)
        except grpc.RpcError as error:
            return error.code(), error.details()


def admission(token: str, protocol: object = rpc.PROTOCOL):
    return ((rpc.PROTOCOL_KEY, str(protocol)), (rpc.TOKEN_KEY, token))


def test_a_stream_carries_the_very_bytes_for_whom_the_token_names():
    door = Door(lambda buffer: buffer[::-1])
    with listen(door) as listener:
        with dial(listener.invite(3, 7)) as stream:
            assert stream.exchange(b"abc") == b"cba"
            assert stream.exchange(b"") == b""
            assert stream.exchange(bytes(range(256)) * 4000) == bytes(range(256))[::-1] * 4000
        until(lambda: door.happened[-1] == "closed")
    assert door.happened == [(3, 7), b"abc", b"", bytes(range(256)) * 4000, "closed"]


def test_invitations_name_the_host_only_where_they_must():
    with listen(Door()) as listener, listen(Door(), public="gpu.example.org") as named:
        assert listener.invite(0, 1).address == f"grpc:{listener.port}"
        assert named.invite(0, 1).address == f"grpc:gpu.example.org:{named.port}"


OTHERS = {
    "none": ("", "needs the token"),
    "nonsense": ("nonsense", "no token"),
    "forged": (Tickets("run", 1).issue(0, 1), "forged"),
    "another attempt": (Tickets("run", 2).issue(0, 1), "attempt 2"),
    "another run": (Tickets("another", 1).issue(0, 1), "another run"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_token_is_let_in(name):
    (token, reason), door = OTHERS[name], Door()
    with listen(door) as listener:
        code, text = raw(listener.port, admission(token))
    assert code == grpc.StatusCode.UNAUTHENTICATED
    assert reason in text
    assert "\n" not in text
    assert door.happened == []


def test_an_expired_token_is_told_so(monkeypatch):
    monkeypatch.setattr(grpc_listener, "Tickets", partial(Tickets, lifetime=-2))
    door = Door()
    with (
        listen(door) as listener,
        pytest.raises(WireError, match="refuses: the token of client 3 for round 7 has expired"),
    ):
        dial(listener.invite(3, 7))
    assert door.happened == []


def test_two_tokens_are_none():
    with listen(Door()) as listener:
        token = listener.invite(0, 1).token
        code, _ = raw(listener.port, (*admission(token), (rpc.TOKEN_KEY, token)))
    assert code == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("theirs", [rpc.PROTOCOL + 1, 0, "", "x" * 50])
def test_another_protocol_is_told_before_the_token_is_looked_at(theirs):
    door = Door()
    with listen(door) as listener:
        code, text = raw(listener.port, admission("", theirs))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    spoken = theirs if isinstance(theirs, int) else "another"
    assert text == f"this server speaks protocol {rpc.PROTOCOL}, the client {spoken}: install the same splitfed"
    assert door.happened == []


def test_a_client_of_another_protocol_tells_its_user(monkeypatch):
    monkeypatch.setattr("splitfed.clients.deployment.grpc_stream.PROTOCOL", rpc.PROTOCOL + 1)
    with listen(Door()) as listener, pytest.raises(WireError, match="install the same splitfed"):
        dial(listener.invite(0, 1))


def test_a_message_of_twice_the_longest_frame_is_seen_and_a_longer_one_is_not():
    door = Door(most_bytes=1000)
    with listen(door) as listener, dial(listener.invite(0, 1)) as stream:
        assert stream.exchange(bytes(2000))
        with pytest.raises(WireError, match="larger than max"):
            stream.exchange(bytes(2001))
    assert door.happened[:2] == [(0, 1), bytes(2000)]
    assert bytes(2001) not in door.happened


def test_a_frame_that_is_too_long_is_a_lie_and_a_line_that_breaks_is_none(tmp_path):
    split = split_server.Door(tmp_path)
    server = split.server
    split.session.close()
    with listen(server) as listener, Proxy(listener.port) as proxy:
        with dial(proxy.through(listener.invite(4, 2))) as stream:
            stream.exchange(split.frame()[0].buffer)
            proxy.cut()
        until(lambda: server.lost(-1.0) == {4})  # it has no stream
        assert not server.lost(1.0)
        assert server.refusal(4) is None
        with dial(listener.invite(4, 2)) as stream, pytest.raises(WireError, match=r"where 9 to \d+ are allowed"):
            stream.exchange(bytes(server.most_bytes + 1))
        until(lambda: server.lost(60.0) == {4})
    assert isinstance(server.refusal(4), WireError)


def test_compressed_messages_are_refused():
    """A megabyte of zeros is a kilobyte, and would pass the limit."""
    door = Door(most_bytes=1 << 16)
    with listen(door) as listener:
        metadata = admission(listener.invite(0, 1).token)
        for size in (100, 1 << 20):
            code, _ = raw(listener.port, metadata, [bytes(size)], compression=grpc.Compression.Gzip)
            assert code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert not any(isinstance(happened, bytes) for happened in door.happened)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (WireError("a frame whose checksum is wrong"), grpc.StatusCode.INVALID_ARGUMENT, "a frame whose checksum"),
        (CodecError("NaN at step 3"), grpc.StatusCode.FAILED_PRECONDITION, "NaN at step 3"),
        (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL, "an error in the server, which its log tells"),
    ],
)
def test_what_a_session_raises_ends_the_stream_with_one_line(error, code, text, caplog):
    def fail(buffer: bytes) -> bytes:
        raise error

    door = Door(fail)
    with caplog.at_level(logging.ERROR), listen(door) as listener:
        found, told = raw(listener.port, admission(listener.invite(0, 1).token))
        until(lambda: door.happened[-1] == "closed")
    assert found == code
    assert text in told
    assert "secret" not in told
    assert ("secret" in caplog.text) == isinstance(error, ZeroDivisionError)


def test_whom_the_acceptor_refuses_gets_its_reason():
    class Shut(Door):
        def open(self, client, round):
            raise WireError(f"client {client} has no part in round {round}")

    with listen(Shut()) as listener, pytest.raises(WireError, match="client 5 has no part in round 9"):
        dial(listener.invite(5, 9))


def test_a_newer_stream_supersedes_the_older_one_and_keeps_the_session():
    door = Door()
    with listen(door) as listener, dial(listener.invite(0, 1), grace=LONG) as old, dial(listener.invite(0, 1)) as new:
        with pytest.raises(WireError, match="client 0 has opened a newer stream"):
            old.exchange(b"old")
        assert new.exchange(b"new") == b"new"
        assert door.happened == [(0, 1), (0, 1), b"new"]  # not closed: it has a stream
        with dial(listener.invite(1, 1)) as other:
            assert other.exchange(b"other") == b"other"
        assert new.exchange(b"again") == b"again"


def test_a_superseded_stream_that_is_busy_locks_nobody_out():
    """Its client comes back again and again, while what came on the first stream is still worked on."""
    go, busy = Event(), Event()

    def answer(buffer: bytes) -> bytes:
        if buffer == b"slow":
            busy.set()
            assert go.wait(LONG)
        return buffer

    door = Door(answer)
    with listen(door, streams=1) as listener:
        first, replies = dial(listener.invite(0, 1)), []
        slow = Thread(target=lambda: replies.append(first.exchange(b"slow")))
        slow.start()
        assert busy.wait(LONG)
        for _ in range(20):
            with dial(listener.invite(0, 1)) as stream:
                assert stream.exchange(b"quick") == b"quick"
        go.set()
        slow.join(LONG)
        assert replies == [b"slow"]
        with pytest.raises(WireError, match="newer stream"):
            first.exchange(b"more")
        first.close()


def test_no_more_frames_wait_here_than_a_client_may_be_ahead():
    pulled = list[int]()

    def frames():
        for number in range(10):
            pulled.append(number)
            yield b"%d" % number

    arrivals = rpc.Arrivals(frames(), ahead=3)
    until(lambda: len(pulled) == 3)
    for number in range(4):
        assert arrivals.take(LONG) == b"%d" % number
        until(lambda number=number: len(pulled) == number + 4)
    time.sleep(0.05)
    assert len(pulled) == 7  # three wait while the fourth is served
    arrivals.close()


def test_a_silent_client_is_let_go():
    door = Door()
    with listen(door, deadline=1.0) as listener, dial(listener.invite(0, 1)) as stream:
        assert stream.exchange(b"frame") == b"frame"
        until(lambda: door.happened[-1] == "closed")
        with pytest.raises(WireError, match=r"nothing arrived within 1 s"):
            stream.exchange(b"late")


def test_a_client_that_is_gone_is_noticed_at_once_while_its_frame_is_handled():
    go, busy = Event(), Event()
    door = Door(lambda buffer: (busy.set(), go.wait(LONG), buffer)[-1])
    with listen(door) as listener, Proxy(listener.port) as proxy:
        stream = dial(proxy.through(listener.invite(0, 1)))
        failures: list[WireError] = []

        def ask() -> None:
            try:
                stream.exchange(b"frame")
            except WireError as error:
                failures.append(error)

        asking = Thread(target=ask)
        asking.start()
        assert busy.wait(LONG)
        proxy.refuse = 1  # it has no second try
        proxy.cut()
        until(lambda: "closed" in door.happened)
        go.set()
        asking.join(LONG)
        stream.close()
    assert len(failures) == 1
    assert door.happened.count("closed") == 1


@pytest.mark.slow
def test_a_peer_that_vanished_without_a_word_is_noticed_at_both_ends():
    door = Door()
    with (
        listen(door, deadline=300) as listener,
        Proxy(listener.port) as proxy,
        dial(proxy.through(listener.invite(0, 1)), grace=60, deadline=45) as stream,
    ):
        assert stream.exchange(b"one") == b"one"
        proxy.freeze()
        assert stream.exchange(b"two") == b"two"
    assert door.happened.count((0, 1)) == 2


def test_leaving_ends_live_streams():
    door = Door()
    with listen(door) as listener:
        streams = [dial(listener.invite(client, 1), grace=0.1) for client in range(8)]
    for stream in streams:
        with pytest.raises(WireError):
            stream.exchange(b"frame")
        stream.close()
    until(lambda: door.happened.count("closed") == 8)
    with pytest.raises(WireError, match="nobody answers"):
        dial(Invitation(f"grpc:{listener.port}", listener.invite(0, 1).token))


def test_as_many_streams_as_promised_are_served_at_the_same_time():
    barrier = Barrier(64)

    def together(buffer: bytes) -> bytes:
        barrier.wait(LONG)
        return buffer

    replies: SimpleQueue[bytes] = SimpleQueue()

    def one(client: int) -> None:
        with dial(listener.invite(client, 1)) as stream:
            for step in range(3):
                replies.put(stream.exchange(b"%d" % step))

    with listen(Door(together), streams=64) as listener:
        threads = [Thread(target=one, args=(client,)) for client in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert replies.qsize() == 3 * 64


def test_a_port_that_is_taken_is_one_clear_line():
    with listen(Door()) as listener, pytest.raises(SplitfedError, match=f"cannot listen at {HOST}:{listener.port}"):
        listen(Door(), port=listener.port).__enter__()


def test_unfit_tls_files_are_one_clear_line(tmp_path):
    (tmp_path / "bad").write_text("no certificate")
    for name in ("missing", "bad"):
        with pytest.raises(SplitfedError, match=f"TLS with .*{name}"):
            listen(Door(), tls=ServerTls(tmp_path / name, tmp_path / name)).__enter__()
