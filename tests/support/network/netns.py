"""Hosts on a network of their own: network namespaces joined by a switch, with counters of every byte on the wire.

Linux only, as root. Interfaces are made inside the new namespaces, so nothing that is there is touched.
"""

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

_CLONE_NEWNET, _SIOCETHTOOL, _LRO, _SECONDS = 0x40000000, 0x8946, 1 << 15, 10.0
# ethtool's commands to set and to get what lets a packet be larger in the kernel than on a wire: counters would see
# one header where many are sent. Checksums first: segmentation depends on them. Large receive offload is a flag.
_OFFLOADS = {"tx-checksum": (0x17, 0x16), "scatter-gather": (0x19, 0x18), "tso": (0x1F, 0x1E), "gso": (0x24, 0x23),
             "gro": (0x2C, 0x2B), "flags": (0x26, 0x25)}  # fmt: skip

_Made = TypeVar("_Made")
Made = TypeVar("Made", bound="Network")


class Unavailable(Exception):
    """Why this machine has no such network."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What has left and reached a host's interface: bytes with Ethernet's 14 a packet, and packets."""

    sent: int
    received: int
    packets_sent: int = 0
    packets_received: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.sent - other.sent, self.received - other.received,
            self.packets_sent - other.packets_sent, self.packets_received - other.packets_received,
        )  # fmt: skip


class Network:
    """Named hosts, each in a namespace with an interface of MTU 1500 whose offloads are off, at one switch; removed,
    with all processes in them, at the end of the `with` block.

    Addresses are in `addresses`, by name. Entering raises Unavailable where there cannot be such a network.
    """

    def __init__(self, *hosts: str) -> None:
        self.addresses = {host: f"192.0.2.{number}" for number, host in enumerate(hosts, 1)}
        mark = f"splitfed-{os.getpid()}-{secrets.token_hex(3)}"
        self._switch, self._names = f"{mark}-switch", {host: f"{mark}-{host}" for host in hosts}
        self._cleanup = ExitStack()

    def __enter__(self) -> "Network":
        if not shutil.which("ip"):
            raise Unavailable("there is no command 'ip' (iproute2)")
        if os.geteuid():
            raise Unavailable("network namespaces need root")
        with ExitStack() as failed:
            failed.callback(self._cleanup.close)
            self._make()
            failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _make(self) -> None:
        for name in (self._switch, *self._names.values()):
            ip("netns", "add", name)
            self._cleanup.callback(_remove, name)
            # Addresses of version 6 announce themselves: bytes that nobody asked for.
            still = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
            ip("netns", "exec", name, "sh", "-c", f"! test -e {still} || echo 1 > {still}")
            ip("-n", name, "link", "set", "lo", "up")
        self._connect()

    def _connect(self) -> None:
        ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self._switch, "link", "set", "switch", "up")
        for number, (host, name) in enumerate(self._names.items()):
            port = f"port{number}"
            ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _offloads_off(self._switch, port)
            _offloads_off(name, "eth0")
            ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
            ip("-n", name, "address", "add", f"{self.addresses[host]}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "mtu", "1500", "up")
        _offloads_off(self._switch, "switch")

    def start(
        self, host: str, *command: str, log: Path | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a process on a host, to be talked to in lines; its errors go to the file `log`, or where ours go."""
        with open(log, "ab") if log else nullcontext() as errors:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._names[host], *command], cwd=cwd, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self._cleanup.callback(_end, process)
        return process

    def counts(self, host: str) -> Counts:
        """Return what has crossed a host's interface since it was made."""
        (link,) = json.loads(ip("-n", self._names[host], "-s", "-j", "link", "show", "dev", "eth0"))
        up, down = link["stats64"]["tx"], link["stats64"]["rx"]
        return Counts(up["bytes"], down["bytes"], up["packets"], down["packets"])

    def statistics(self, host: str) -> dict[str, int]:
        """Return the kernel's counters of a host's TCP, by the names that they have in /proc/net/snmp and netstat."""
        text = ip("netns", "exec", self._names[host], "cat", "/proc/net/snmp", "/proc/net/netstat")
        lines = [line.split() for line in text.splitlines()]
        found = {}
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            if names[0] in ("Tcp:", "TcpExt:"):
                found |= dict(zip(names[1:], map(int, values[1:]), strict=True))
        return found


@contextmanager
def or_skip(network: Made) -> Iterator[Made]:
    """Be in a network, or skip the test where this machine has none, and say why."""
    with ExitStack() as stack:
        try:
            stack.enter_context(network)
        except Unavailable as why:
            pytest.skip(str(why))
        yield network


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Send a line to a process."""
    assert process.stdin
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    """Return a process's next line, or an empty one if it has ended."""
    assert process.stdout
    return process.stdout.readline().strip()


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise Unavailable(f"ip {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def _remove(name: str) -> None:
    """Delete a namespace with its interfaces, after what processes have left there: it would live on with them."""
    until = time.monotonic() + _SECONDS
    while (pids := ip("netns", "pids", name).split()) and time.monotonic() < until:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)
    ip("netns", "delete", name)


def _offloads_off(namespace: str, interface: str) -> None:
    with inside(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as there:
        for name, (set_, get) in _OFFLOADS.items():
            with suppress(OSError):  # not every interface has each of them; what counts is that none is left on
                _ethtool(there, interface, set_, 0)
            try:
                left = _ethtool(there, interface, get, 0)
            except OSError as error:
                raise Unavailable(f"{name} of {interface} cannot be read: {error.strerror}") from None
            if left & (_LRO if name == "flags" else 1):
                raise Unavailable(f"{name} of {interface} cannot be switched off")


def _ethtool(there: socket.socket, interface: str, command: int, value: int) -> int:
    request = ctypes.create_string_buffer(struct.pack("II", command, value), 8)
    packed = struct.pack("16sP", interface.encode(), ctypes.addressof(request))
    fcntl.ioctl(there, _SIOCETHTOOL, packed.ljust(40, b"\0"))
    return struct.unpack("II", request.raw)[1]


def inside(namespace: str, make: Callable[[], _Made]) -> _Made:
    """Make what then lives in a namespace, such as a socket; only a thread that then ends moves there."""
    made: list[_Made | OSError] = []

    def there() -> None:
        try:
            with open(f"/run/netns/{namespace}") as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            made.append(make())
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise Unavailable(f"no way into the namespace {namespace}: {made[0]}")
    return made[0]
