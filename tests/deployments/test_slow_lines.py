"""Lines that are slow and lose packets: what crosses them is the same, later."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from deployed import deployment
from helpers import PLAIN, small, table
from network.relay import AT, SEGMENT, TO, Line, Relay
from outcomes import same

from splitfed import simulate
from splitfed.engines.deployment.certificates import make
from splitfed.engines.deployment.processes import free_port

BAD = Line(round_trip=0.02, rate=4e6, loss=0.02, seed=1)


@contextmanager
def echo() -> Iterator[int]:
    """Return on some port whatever arrives, until the sender is done."""
    with socket.create_server((TO, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    one, _ = listener.accept()
                except OSError:  # shut down, below
                    return
                threading.Thread(target=answer, args=(one,), daemon=True).start()

        def answer(one: socket.socket) -> None:
            with one:
                while data := one.recv(5000):
                    one.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def there_and_back(port: int, payload: bytes) -> bytes:
    """Send all, say so, and return all that comes back."""
    with socket.create_connection((AT, port), timeout=60) as line:
        sender = threading.Thread(target=lambda: (line.sendall(payload), line.shutdown(socket.SHUT_WR)))
        sender.start()
        back = b"".join(iter(lambda: line.recv(1 << 16), b""))
        sender.join()
    return back


def payloads(count: int, size: int) -> list[bytes]:
    random = np.random.default_rng(0)
    return [random.bytes(size + 7 * number) for number in range(count)]


def test_bytes_arrive_unchanged_and_in_order_on_many_connections() -> None:
    sent = payloads(12, 60_000)
    with echo() as port, Relay(BAD, port) as relay, ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda payload: there_and_back(port, payload), sent)) == sent
        assert relay.connections == len(sent)
        assert relay.carried == {"up": sum(map(len, sent)), "down": sum(map(len, sent))}
        assert relay.lost


def test_each_question_takes_a_round_trip_at_least() -> None:
    with echo() as port, Relay(Line(round_trip=0.1), port):
        began = time.monotonic()
        with socket.create_connection((AT, port), timeout=60) as line:
            for number in range(5):
                line.sendall(bytes([number]))
                assert line.recv(1) == bytes([number])
        assert time.monotonic() - began >= 5 * 0.1


def test_connections_share_the_rate() -> None:
    size, rate = 50_000, 200_000
    with echo() as port, Relay(Line(rate=rate), port), ThreadPoolExecutor(3) as pool:
        began = time.monotonic()
        list(pool.map(lambda payload: there_and_back(port, payload), [bytes(size)] * 3))
        assert time.monotonic() - began >= 3 * size / rate


def test_the_seed_decides_which_packets_are_lost() -> None:
    lost = []
    for seed in (1, 1, 2):
        with echo() as port, Relay(Line(loss=0.05, seed=seed), port) as relay:
            there_and_back(port, bytes(SEGMENT * 200))
        lost.append(sorted(relay.lost))
    assert lost[0] == lost[1] != lost[2]
    assert 2 <= len(lost[0]) <= 60  # 20 of 400 are to be expected


def test_what_ends_at_one_end_ends_at_the_other() -> None:
    """Where nobody listens, and where the line is cut."""
    nobody = free_port()
    with echo() as port, Relay(BAD, port, nobody):
        with socket.create_connection((AT, nobody), timeout=60) as line:
            assert is_over(line)
        cut = socket.create_connection((AT, port), timeout=60)
        cut.sendall(b"x")
        assert cut.recv(1) == b"x"
    with cut:
        assert is_over(cut)


def is_over(line: socket.socket) -> bool:
    try:
        return not line.recv(1)
    except ConnectionResetError:
        return True


@pytest.mark.long
def test_a_deployment_over_a_bad_line_ends_as_it_would_without(tmp_path) -> None:
    """A round trip of 200 ms and 2 % of packets lost: nothing is trained twice, sent in vain, or counted otherwise."""
    large = "model.args={patch_size: 2, embed_dim: 96, depth: 2, num_heads: 3}"  # 70 packets a frame
    scenario = small(large, *PLAIN, "federation.clients=2", "training.client_state=keep")
    expected = simulate(scenario, runs=tmp_path / "inline")
    tls = tmp_path / "tls"
    make(tls, [AT], 2)
    with deployment(tmp_path) as here:
        server = here.serve(scenario, "--tls", tls)
        server.shows("serving at")
        with Relay(Line(round_trip=0.2, rate=1e6, loss=0.02), here.port, here.split_port) as relay:
            here.host = AT
            clients = [here.join(client, "--tls", tls / f"client-{client}") for client in range(2)]
            assert [client.end() for client in clients] == [0, 0], [client.text for client in clients]
            assert server.end() == 0, server.text
        (folder,) = here.runs
    same(expected.folder, folder)
    assert len(relay.lost) > 10
    for way, carried in relay.carried.items():
        rows = [row for row in table(folder / "ledger.csv") if row["direction"] == way]
        assert carried > sum(int(row["sent_bytes"]) for row in rows) > 1_000_000
