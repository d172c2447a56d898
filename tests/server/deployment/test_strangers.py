"""Who has proved nothing has few connections, for a short time; who has is left alone."""

import selectors
import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack

import pytest
from channels import HOST, Door, dial, listen
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from splitfed.server.deployment import grpc_listener
from splitfed.server.deployment import strangers as module
from splitfed.server.deployment.grpc_listener import address  # what gRPC says is told nowhere else
from splitfed.server.deployment.strangers import Strangers, Watch, plain


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, so that the test is short."""
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)  # a constant: how often is nobody's to set


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def peers(address: str, number: int, first: int = 1) -> list[tuple[str, int]]:
    return [(address, port) for port in range(first, first + number)]


def test_strangers_go_after_their_time_and_those_who_are_known_never() -> None:
    clock = Clock()
    strangers = Strangers(seconds=20, clock=clock)
    first, second = peers("10.0.0.1", 2)
    assert strangers.surplus([first, second]) == []
    strangers.know(second)
    clock.now += 15
    late = ("10.0.0.2", 7)
    assert strangers.surplus([first, second, late]) == []
    clock.now += 6
    assert strangers.surplus([first, second, late]) == [first]
    clock.now += 1000
    assert strangers.surplus([second]) == []


def test_the_oldest_connections_of_one_who_is_known_make_room_for_newer_ones() -> None:
    strangers = Strangers(each=3)
    greedy, modest, own = peers("10.0.0.1", 5), peers("10.0.0.1", 3, first=100), peers("127.0.0.1", 50)
    for peer in greedy:
        strangers.know(peer, b"a key")
        strangers.know(peer, b"a key")  # each request says it anew
    for peer in modest:
        strangers.know(peer, b"another key")
    for peer in own:
        strangers.know(peer)
    assert strangers.surplus([*greedy, *modest, *own]) == greedy[:2]
    assert strangers.surplus([*greedy[2:], *modest, *own]) == []
    late = ("10.0.0.9", 1)
    strangers.know(late, b"a key")
    assert strangers.surplus([*greedy[2:], late]) == greedy[2:3]


def test_an_address_that_comes_again_starts_anew() -> None:
    clock = Clock()
    strangers = Strangers(seconds=20, clock=clock)
    one = ("10.0.0.1", 1)
    strangers.know(one)
    assert strangers.surplus([one]) == []
    for _ in range(2):
        strangers.surplus([])
    assert not strangers.knows(one)
    strangers.surplus([one])
    clock.now += 21
    assert strangers.surplus([one]) == [one]


def test_who_proves_itself_during_a_look_is_not_forgotten() -> None:
    clock = Clock()
    strangers = Strangers(seconds=20, clock=clock)
    one = ("10.0.0.1", 1)
    strangers.know(one)
    strangers.surplus([])  # was made before it came
    strangers.surplus([one])
    clock.now += 30
    assert strangers.surplus([one]) == []


def test_the_oldest_of_an_address_make_room_for_newer_ones() -> None:
    clock = Clock()
    strangers = Strangers(per_address=3, clock=clock)
    there = []
    for peer in peers("10.0.0.1", 5):
        clock.now += 1
        there.append(peer)
        strangers.surplus(there)
    assert strangers.surplus(there) == there[:2]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.integers(1, 30)), unique=True, max_size=80))
def test_no_more_are_left_than_may_be_and_the_greedy_pay(there: list[tuple[str, int]]) -> None:
    left = set(there) - set(Strangers(per_address=10, in_all=20).surplus(there))
    before, after = Counter(host for host, _ in there), Counter(host for host, _ in left)
    assert len(left) == min(20, sum(min(10, number) for number in before.values()))
    assert max(after.values(), default=0) <= 10
    for host, number in before.items():  # nobody pays for one who has more
        assert after[host] == min(number, 10) or after[host] >= max(after.values()) - 1


def connected(port: int) -> socket.socket:
    one = socket.create_connection((HOST, port), 10)
    one.settimeout(10)
    return one


def hung_up(one: socket.socket) -> bool:
    """Wait until the other end hangs up."""
    try:
        while one.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.usefixtures("quick")
def test_a_watch_hangs_up_on_connections_of_its_port_alone() -> None:
    clock = Clock()
    strangers = Strangers(seconds=20, clock=clock)
    with (
        socket.create_server((HOST, 0)) as mine, socket.create_server((HOST, 0)) as other,
        Watch(mine.getsockname()[1], strangers), ExitStack() as stack,
    ):  # fmt: skip
        ends = []
        for server in (mine, mine, other):
            ends.append(stack.enter_context(connected(server.getsockname()[1])))
            stack.enter_context(server.accept()[0])
        strangers.know(ends[1].getsockname())
        until(lambda: strangers.surplus([ends[0].getsockname(), ends[1].getsockname()]) == [])
        clock.now += 21
        assert hung_up(ends[0])
        for end in ends[1:]:
            end.settimeout(0.2)
            with pytest.raises(TimeoutError):
                end.recv(1)


@pytest.mark.usefixtures("quick")
def test_silent_and_slow_connections_to_the_split_port_go_and_clients_stay() -> None:
    with listen(Door(lambda b: b), strangers=Strangers(per_address=5, seconds=0.6)) as listener, ExitStack() as stack:
        stream = stack.enter_context(dial(listener.invite(0, 1)))
        crowd = [stack.enter_context(connected(listener.port)) for _ in range(40)]
        for one in crowd[::2]:
            one.sendall(b"PRI * HTTP/2.0\r\n")  # and never the rest
        assert stream.exchange(b"during") == b"during"
        assert all(map(hung_up, crowd))
        assert stream.exchange(b"after") == b"after"


@pytest.mark.usefixtures("quick")
def test_who_has_no_token_hangs_up_too() -> None:
    """A connection that speaks gRPC well, but brings nothing that admits it."""
    with listen(Door(), strangers=Strangers(seconds=0.4)) as listener, connected(listener.port) as one:
        one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        assert hung_up(one)


PEERS = [
    ("ipv4:127.0.0.1:4711", ("127.0.0.1", 4711)),
    ("ipv6:%5B::1%5D:4711", ("::1", 4711)),
    ("ipv6:%5B::ffff:10.0.0.1%5D:1", ("10.0.0.1", 1)),
    ("ipv6:%5Bfe80::1%25eth0%5D:1", ("fe80::1", 1)),
]


@pytest.mark.parametrize(("told", "peer"), PEERS)
def test_peers_of_grpc(told: str, peer: tuple[str, int]) -> None:
    assert plain(*address(told)) == peer


def test_a_burst_leaves_files_to_work_with(monkeypatch) -> None:
    """Between two looks gRPC itself takes no more connections than this."""
    monkeypatch.setattr(grpc_listener, "most_connections", lambda: 5)
    with listen(Door()) as listener, ExitStack() as stack:
        crowd = [stack.enter_context(connected(listener.port)) for _ in range(20)]
        selector = stack.enter_context(selectors.DefaultSelector())
        for one in crowd:
            selector.register(one, selectors.EVENT_READ)

        def refused() -> int:
            # What was registered are sockets; a selector's type allows plain numbers too.
            return sum(not key.fileobj.recv(1, socket.MSG_PEEK) for key, _ in selector.select(0.1))  # type: ignore[union-attr]

        until(lambda: refused() == 15)


def test_the_limit_of_open_files_is_raised() -> None:
    code = """
import resource
from splitfed.server.deployment.strangers import raise_file_limit, most_connections
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, min(hard, 4000)))
raise_file_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], most_connections())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["4000", "3488"]
