"""The wire as a stranger, a liar and a client in a hurry see it."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from splitfed import Predictor, RemotePredictor
from splitfed.engines.deployment.certificates import make
from splitfed.engines.deployment.tls import read_client
from splitfed.errors import RunError, Unreached, WireError
from splitfed.inference.asking import Asking
from splitfed.inference.remote.dialling import Dialler
from splitfed.inference.service.serve import Service
from splitfed.seeds import Key
from splitfed.wire.answers import ASK, DEADLINE_KEY, FETCH, GREET, PROTOCOL, PROTOCOL_KEY, RATE_KEY, path

PLAIN = ["plain={reducer: none, smashed: {codec: float32}}"]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "tls"
    make(folder, ["localhost"], 3)
    return folder


@pytest.fixture
def service(finished: Path, tls: Path, tmp_path: Path) -> Iterator[Service]:
    """One with keys of its own."""
    keys = Path(shutil.copytree(tls, tmp_path / "tls"))
    with Service(
        finished, host="127.0.0.1", port=0, metrics_port=0, tls=keys, rates=PLAIN, batch=1, ledger=tmp_path / "ledger"
    ) as service:
        yield service


@pytest.fixture
def open_service(finished: Path, tmp_path: Path) -> Iterator[Service]:
    """One without keys, and with a short queue."""
    with Service(
        finished, port=0, metrics_port=0, rates=PLAIN, batch=1, queue=4, ledger=tmp_path / "ledger"
    ) as service:
        yield service


def stream(service: Service, dialler: Dialler, **more: str) -> tuple[grpc.Channel, Callable]:
    """Open a stream as a client does, and return how to send on it: all frames, for all answers."""
    channel = dialler.channel(1 << 20)
    metadata = (
        *dialler.proof(channel, 5),
        (RATE_KEY, more.get("rate", "plain")),
        (DEADLINE_KEY, more.get("deadline", "9")),
    )

    def send(*frames: bytes) -> list[bytes]:
        return list(channel.stream_stream(path(ASK))(iter(frames), metadata=metadata))

    return channel, send


def frames(service: Service, count: int) -> list[bytes]:
    """Requests that are right, of one image each."""
    import torch

    back = service.backs.now
    tokens = torch.randn(count, 5, 16, generator=Key(0).generator())
    asking = back.asking["plain"]
    return [
        asking.pack(tokens[n : n + 1], 2, Key(n), number=n + 1, model=back.name).buffer for n in range(count)
    ]  # fmt: skip


def test_over_tls_with_a_key_answers_are_the_models(
    service: Service, finished: Path, digits: list, tls: Path, tmp_path: Path
) -> None:  # fmt: skip
    with RemotePredictor(f"localhost:{service.port}", tls=tls / "client-2", state=tmp_path, batch=1) as predictor:
        assert predictor.predict(digits) == Predictor(finished, batch=1).predict(digits)
        crossed = predictor.bytes
    sums = {place: sent for place, (_, sent) in service.tally.sums().items()}
    assert sums == {(2, direction, role): sent for (direction, role), sent in crossed.items()}


def test_without_a_key_that_is_listed_nothing_is_handed_out(
    service: Service, tls: Path, digits: list, tmp_path: Path
) -> None:  # fmt: skip
    make(tmp_path / "other", ["localhost"], 1)
    where = f"localhost:{service.port}"
    with pytest.raises(WireError, match="does not prove that it is the server"):
        RemotePredictor(where, tls=tmp_path / "other" / "client-0", state=tmp_path / "state")
    stolen = Path(shutil.copytree(tls / "client-0", tmp_path / "client-0"))
    (stolen / "client.json").write_text((tls / "client-1" / "client.json").read_text())
    with pytest.raises(WireError, match="does not know the key of client 1"):
        RemotePredictor(where, tls=stolen, state=tmp_path / "state")
    with pytest.raises(Unreached, match="if it speaks TLS, say --tls"):
        RemotePredictor(f"127.0.0.1:{service.port}", state=tmp_path / "state", deadline=2)
    assert service.tally.sums() == {}


def test_whose_key_is_taken_out_is_let_go(service: Service, tls: Path, digits: list, tmp_path: Path) -> None:
    listed = tmp_path / "tls" / "server" / "clients.json"
    with RemotePredictor(f"localhost:{service.port}", tls=tls / "client-0", state=tmp_path / "state") as predictor:
        assert predictor.predict(digits[:1])[0].label is not None
        text = listed.read_text().replace('"0":', '"7":')
        listed.write_text(text)
        service.reload()

        def go_on() -> None:
            for _ in range(100):  # the stream is ended a moment later, and then there is no other
                predictor.predict(digits[:1])

        with pytest.raises(WireError, match="does not know the key of client 0"):
            go_on()


def test_a_nonce_opens_one_stream_and_none_without_a_signature(service: Service, tls: Path) -> None:
    dialler = Dialler("localhost", service.port, read_client(tls / "client-0"), 0)
    channel, send = stream(service, dialler)
    (one,) = frames(service, 1)
    assert len(send(one)) == 1
    with pytest.raises(grpc.RpcError, match="nonce has expired"):
        send(one)
    for method in (ASK, FETCH):
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            list(channel.stream_stream(path(method))(iter([one]), metadata=((PROTOCOL_KEY, str(PROTOCOL)),)))
    for method in (ASK, FETCH, GREET):
        with pytest.raises(grpc.RpcError, match="protocol"):
            list(channel.stream_stream(path(method))(iter([one]), metadata=((PROTOCOL_KEY, "99"),)))
    channel.close()


@pytest.mark.parametrize("bad", [b"", b"garbage", b"\0" * 200_000, "cut", "flipped", "not a request"])
def test_garbage_ends_its_stream_and_no_other(
    open_service: Service, digits: list, tmp_path: Path, bad: bytes | str
) -> None:  # fmt: skip
    good = frames(open_service, 1)[0]
    made = {
        "cut": good[:-3], "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "not a request": open_service.backs.now.asking["plain"].answer(
            open_service.backs.now.asking["plain"].unpack(good)
        ).buffer,
    }  # fmt: skip
    with RemotePredictor(f"127.0.0.1:{open_service.port}", state=tmp_path / "state", batch=1) as predictor:
        predictor.predict(digits[:1])
        channel, send = stream(open_service, Dialler("127.0.0.1", open_service.port, None, 1))
        with pytest.raises(grpc.RpcError, match=r"INVALID_ARGUMENT|RESOURCE_EXHAUSTED"):
            send(made[bad] if isinstance(bad, str) else bad)
        channel.close()
        assert all(one.label is not None for one in predictor.predict(digits))


def test_an_unknown_rate_is_told(open_service: Service, tmp_path: Path) -> None:
    channel, send = stream(open_service, Dialler("127.0.0.1", open_service.port, None, 1), rate="other")
    with pytest.raises(grpc.RpcError, match="takes the rates plain"):
        send(*frames(open_service, 1))
    channel.close()
    with pytest.raises(RunError, match=r"--rate other: .* takes plain"):
        RemotePredictor(f"127.0.0.1:{open_service.port}", state=tmp_path, rate="other")


def test_a_full_queue_is_told_and_all_are_answered_in_the_end(
    open_service: Service, finished: Path, digits: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    go, answers = threading.Event(), Asking.answers
    monkeypatch.setattr(Asking, "answers", lambda self, asked: go.wait(10) and answers(self, asked))
    threading.Timer(0.3, go.set).start()
    with RemotePredictor(f"127.0.0.1:{open_service.port}", state=tmp_path / "state", batch=1) as predictor:
        found = predictor.predict(digits)
    assert found == Predictor(finished, batch=1).predict(digits)
    text = open_service.metrics.text()
    assert f'splitfed_requests_total{{outcome="answered"}} {len(digits)}\n' in text
    assert 'splitfed_requests_total{outcome="busy"}' in text


def test_whose_time_is_over_is_not_computed(open_service: Service) -> None:
    channel, send = stream(open_service, Dialler("127.0.0.1", open_service.port, None, 1), deadline="0")
    assert len(send(*frames(open_service, 1))) == 1
    assert 'splitfed_requests_total{outcome="late"} 1' in open_service.metrics.text()
    assert "splitfed_batch_requests_count 0" in open_service.metrics.text()
    channel.close()


def test_a_port_that_is_taken_is_told(open_service: Service, finished: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(Exception, match=f"cannot listen at 127.0.0.1:{open_service.port}"),
        Service(finished, port=open_service.port, metrics_port=0, rates=PLAIN, ledger=tmp_path / "other"),
    ):
        pass


def test_a_client_may_have_several_streams(open_service: Service, digits: list, tmp_path: Path) -> None:
    where = f"127.0.0.1:{open_service.port}"
    with (
        RemotePredictor(where, state=tmp_path, client=3) as one,
        RemotePredictor(where, state=tmp_path, client=3) as two,
    ):
        assert one.predict(digits) == two.predict(digits) == one.predict(digits)
        assert "splitfed_streams 2\n" in open_service.metrics.text()
        sent = one.bytes["up", "smashed"] + two.bytes["up", "smashed"]
        assert open_service.tally.sums()[3, "up", "smashed"] == (3, sent)


def test_a_client_that_is_gone_leaves_no_stream(open_service: Service, digits: list, tmp_path: Path) -> None:
    predictor = RemotePredictor(f"127.0.0.1:{open_service.port}", state=tmp_path)
    predictor.predict(digits[:1])
    assert "splitfed_streams 1\n" in open_service.metrics.text()
    predictor.close()
    for _ in range(500):
        if "splitfed_streams 0\n" in open_service.metrics.text():
            return
        threading.Event().wait(0.01)
    raise AssertionError(open_service.metrics.text())
