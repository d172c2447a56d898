"""Hosts whose IP packets pass a forwarder: a server, and others that reach it, each over a line of its own.

The devices are tun devices of MTU 1500: the kernels' TCP at both ends is all there is of it.
"""

import fcntl
import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from network import forwarder
from network.forwarder import Counted, Shape
from network.netns import Network, Unavailable, answer, inside, ip, tell

_TUN, _TUNSETIFF, _IFF_TUN, _IFF_NO_PI = Path("/dev/net/tun"), 0x400454CA, 0x0001, 0x1000
# What most machines do with Linux; what is asked for with a route need not be what all on this machine may choose.
_CONGESTION = "cubic"


class Shaped(Network):
    """A network of a server and others, each joined with it by a line that takes any time from 0 on: `shape` says what
    they are like, and may be called again at any time. Packets are those of IP.

    Entering raises Unavailable where there cannot be such a network.
    """

    def __init__(self, server: str, *others: str) -> None:
        super().__init__(server, *others)
        self._server, self._others = server, others
        self._forwarder: subprocess.Popen[str] | None = None

    def _connect(self) -> None:
        if not _TUN.exists():
            raise Unavailable(f"there is no {_TUN}")
        here, ways = self.addresses[self._server], []
        for number, other in enumerate(self._others):
            there = self.addresses[other]
            ends = [
                self._device(self._names[other], "eth0", there, here),
                self._device(self._names[self._server], f"eth{number}", here, there),
            ]
            ways += [(f"{other} up", *ends), (f"{other} down", *reversed(ends))]
        devices = [device for _, device, _ in ways]
        self._forwarder = subprocess.Popen(
            [sys.executable, forwarder.__file__, json.dumps(ways)], text=True, pass_fds=devices, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._cleanup.callback(self._end)
        self.counted()

    def _device(self, namespace: str, name: str, address: str, peer: str) -> int:
        """Make a device in a namespace, up, with its address and that of what is behind it; return what opens it."""
        device = inside(namespace, lambda: _tun(name))
        self._cleanup.callback(os.close, device)
        ip("-n", namespace, "address", "add", address, "peer", peer, "dev", name)
        ip("-n", namespace, "link", "set", name, "mtu", "1500", "txqueuelen", "10000", "up")
        ip("-n", namespace, "route", "replace", peer, "dev", name, "src", address, "congctl", _CONGESTION)
        return device

    def _end(self) -> None:
        assert self._forwarder
        with self._forwarder:
            self._forwarder.kill()

    def shape(self, up: Shape, down: Shape) -> None:
        """Make all lines like this from now on; each has its own losses, that go back to the seed of its shape."""
        ways = {}
        for number, other in enumerate(self._others):
            ways |= {f"{other} up": replace(up, seed=up.seed + 2 * number)}
            ways |= {f"{other} down": replace(down, seed=down.seed + 2 * number + 1)}
        self._say(ways)

    def counted(self) -> dict[str, Counted]:
        """Return what each way has counted so far, by names such as `client-0 up`."""
        return self._say({})

    def _say(self, ways: Mapping[str, Shape]) -> dict[str, Counted]:
        assert self._forwarder
        tell(self._forwarder, json.dumps({name: asdict(shape) for name, shape in ways.items()}))
        return {name: Counted(**counted) for name, counted in json.loads(answer(self._forwarder)).items()}


def _tun(name: str) -> int:
    device = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(device)
        raise
    return device
