"""A client's end of a gRPC stream: how it comes back, when it gives up, and what it says."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import grpc
import pytest
from channels import HOST, Door, Proxy, dial, listen
from places import ROOT
from waiting import LONG

from splitfed.clients.connect import Reach, connect
from splitfed.errors import WireError
from splitfed.wire.channel import Invitation


def test_a_stream_that_breaks_under_a_frame_comes_back_with_it():
    cuts = [b"2", b"2", b"4"]  # the second frame's answer is lost twice

    def answer(buffer: bytes) -> bytes:
        if cuts and cuts[0] == buffer:
            cuts.pop(0)
            proxy.cut()
        return buffer + b"!"

    door = Door(answer)
    with (
        listen(door) as listener,
        Proxy(listener.port) as proxy,
        dial(proxy.through(listener.invite(0, 1)), grace=20.0) as stream,
    ):
        assert [stream.exchange(b"%d" % step) for step in range(6)] == [b"%d!" % step for step in range(6)]
    assert [h for h in door.happened if isinstance(h, bytes)] == [b"0", b"1", b"2", b"2", b"2", b"3", b"4", b"4", b"5"]


@pytest.mark.parametrize("at", [b"0", b"2", b"5"])
def test_all_frames_without_an_answer_are_sent_again_in_order(at):
    """Three are on their way at a time. What the server had when the line broke, it may take from the old stream or
    from the new one."""
    cuts = [at]

    def answer(buffer: bytes) -> bytes:
        if cuts and cuts[0] == buffer:
            cuts.pop(0)
            proxy.cut()
        return buffer + b"!"

    door = Door(answer)
    with (
        listen(door, ahead=2) as listener,
        Proxy(listener.port) as proxy,
        dial(proxy.through(listener.invite(0, 1)), grace=20.0, ahead=2) as stream,
    ):
        replies = []
        for step in range(8):
            stream.send(b"%d" % step)
            if step >= 2:
                replies.append(stream.receive())
        assert replies + [stream.receive() for _ in range(2)] == [b"%d!" % step for step in range(8)]
    handled = [h for h in door.happened if isinstance(h, bytes)]
    assert handled.count(at) >= 2  # its answer was lost
    assert list(dict.fromkeys(handled)) == [b"%d" % step for step in range(8)]
    assert len(handled) <= 8 + 3


def test_a_stream_that_broke_between_frames_comes_back():
    with (
        listen(Door()) as listener,
        Proxy(listener.port) as proxy,
        dial(proxy.through(listener.invite(0, 1)), grace=20.0) as stream,
    ):
        for step in range(3):
            assert stream.exchange(b"%d" % step) == b"%d" % step
            proxy.cut()


def test_a_server_that_is_away_for_a_while_is_waited_for():
    with listen(Door()) as listener, Proxy(listener.port) as proxy:
        proxy.refuse = 2
        with dial(proxy.through(listener.invite(0, 1)), grace=20.0) as stream:
            proxy.refuse = 2
            proxy.cut()
            assert stream.exchange(b"frame") == b"frame"
        assert proxy.refuse == 0


def test_a_client_gives_up_after_its_grace():
    with listen(Door()) as listener, Proxy(listener.port) as proxy:
        with dial(proxy.through(listener.invite(0, 1)), grace=0.3) as stream:
            proxy.refuse = 1000
            proxy.cut()
            with pytest.raises(WireError, match=f"nobody answers at {HOST}:{proxy.port}"):
                stream.exchange(b"frame")
        assert 990 < proxy.refuse < 999  # it tried more than once, and not without a pause


def test_a_stream_that_opens_and_breaks_for_ever_is_given_up():
    def answer(buffer: bytes) -> bytes:
        proxy.cut()
        return buffer

    with (
        listen(Door(answer)) as listener,
        Proxy(listener.port) as proxy,
        dial(proxy.through(listener.invite(0, 1)), grace=0.3) as stream,
        pytest.raises(WireError),
    ):
        stream.exchange(b"frame")


@pytest.mark.parametrize("error", [WireError("a wrong frame"), ZeroDivisionError()])
def test_a_refusal_is_not_tried_again(error):
    def fail(buffer: bytes) -> bytes:
        raise error

    door = Door(fail)
    with (
        listen(door) as listener,
        dial(listener.invite(0, 1), grace=20.0) as stream,
        pytest.raises(WireError, match=f"the split server at {HOST}:{listener.port} refuses: "),
    ):
        stream.exchange(b"frame")
    assert door.happened.count((0, 1)) == 1


def test_what_a_server_says_is_shown_as_one_short_line_without_control_characters():
    def fail(buffer: bytes) -> bytes:
        raise WireError("no\x1b[2J\rround 9: all is well\n" + "x" * 5000)

    with (
        listen(Door(fail)) as listener,
        dial(listener.invite(0, 1)) as stream,
        pytest.raises(WireError, match=r"refuses: no\\x1b\[2J round 9") as told,
    ):
        stream.exchange(b"frame")
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 600


def test_a_reply_that_does_not_come_is_given_up():
    go = Event()
    with listen(Door(lambda buffer: (go.wait(LONG), buffer)[-1])) as listener:
        with (
            dial(listener.invite(0, 1), deadline=1.0, grace=20.0) as stream,
            pytest.raises(WireError, match=r"no reply within 1 s"),
        ):
            stream.exchange(b"frame")
        go.set()


def test_a_reply_over_the_limit_is_refused():
    with (
        listen(Door(lambda buffer: bytes(2000))) as listener,
        dial(listener.invite(0, 1), most_bytes=1999) as stream,
        pytest.raises(WireError, match="larger than max"),
    ):
        stream.exchange(b"frame")


def test_nobody_there():
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(WireError, match=f"nobody answers at {HOST}:{port}: .*onnection refused") as told:
        dial(Invitation(f"grpc:{port}"))
    assert "\n" not in str(told.value)


def test_a_server_that_says_nothing():
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(WireError, match=rf"nobody answers at {HOST}:{port}: the server is silent for 0\.3 s"):
            dial(Invitation(f"grpc:{port}"), deadline=0.3)


def test_a_server_of_something_else():
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    with pytest.raises(WireError, match="refuses: Method not found"):
        dial(Invitation(f"grpc:{port}"))
    handler = grpc.stream_stream_rpc_method_handler(lambda requests, context: iter([b"hello"]))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("splitfed.Split", {"Exchange": handler}),)
    )  # fmt: skip
    with pytest.raises(WireError, match="is no split server"):
        dial(Invitation(f"grpc:{port}"))
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("server", "client", "problem"),
    [
        ("good", "good", None),
        ("good", "other", "does not prove that it is the server: its certificate does not go back to the CA"),
        ("old", "old", "does not prove that it is the server: its certificate has expired"),
        ("elsewhere", "elsewhere", "does not prove that it is the server: its certificate is for another host"),
        (None, "good", "does not prove that it is the server: it speaks no TLS"),
        ("good", None, "if it speaks TLS, this client needs its CA certificate"),
    ],
)
def test_tls(server, client, problem, certificates):
    door = Door()
    with listen(door, tls=certificates[server][1] if server else None) as listener:
        ca = certificates[client][0] if client else None
        if problem:
            with pytest.raises(WireError, match=problem) as told:
                dial(listener.invite(0, 1), ca=ca)
            assert "\n" not in str(told.value)
        else:
            with dial(listener.invite(0, 1), ca=ca) as stream:
                assert stream.exchange(b"frame" * 100_000) == b"frame" * 100_000
    assert bool(door.happened) == (problem is None)


def test_a_tls_stream_that_breaks_comes_back(certificates):
    ca, tls = certificates["good"]
    with (
        listen(Door(), tls=tls) as listener,
        Proxy(listener.port) as proxy,
        dial(proxy.through(listener.invite(0, 1)), ca=ca, grace=20.0) as stream,
    ):
        assert stream.exchange(b"one") == b"one"
        proxy.cut()
        assert stream.exchange(b"two") == b"two"


def test_the_host_is_the_one_named_and_else_the_one_joined():
    with listen(Door()) as listener:
        token = listener.invite(0, 1).token
        named = Invitation(f"grpc:{HOST}:{listener.port}", token)
        with connect(named, 0, 1, Reach("nowhere.invalid")) as stream:
            assert stream.exchange(b"frame") == b"frame"
        with pytest.raises(WireError, match="names no host"):
            connect(Invitation(f"grpc:{listener.port}", token), 0, 1, Reach())


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with (
        listen(Door(), host="::1", public="::1") as listener,
        connect(listener.invite(0, 1), 0, 1, Reach()) as stream,
    ):
        assert stream.exchange(b"frame") == b"frame"


@pytest.mark.parametrize("address", ["", "grpc", "grpc:", "grpc:host:", "grpc:host:port", "http:80", "grpc:host:-1"])
def test_other_addresses_are_refused(address):
    with pytest.raises(WireError, match="no way to reach"):
        connect(Invitation(address), 0, 1, Reach(HOST))


def test_a_ca_that_is_not_there_or_none(tmp_path, certificates):
    with pytest.raises(WireError, match=r"nothing\.crt: No such file"):
        dial(Invitation("grpc:1"), ca=tmp_path / "nothing.crt")
    (tmp_path / "empty.crt").write_text("")
    (tmp_path / "broken.crt").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    with listen(Door(), tls=certificates["good"][1]) as listener:
        for name in ("empty", "broken"):
            with pytest.raises(WireError, match="holds no certificate"):
                dial(listener.invite(0, 1), ca=tmp_path / f"{name}.crt")


def test_who_never_dials_loads_no_grpc():
    code = "import sys, splitfed.clients.connect, splitfed.wire.channel; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=ROOT)
