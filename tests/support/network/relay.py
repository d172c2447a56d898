"""A slow and lossy line on this machine: TCP connections are taken and handed on, late, as they would be by a far one.

Nothing of the kernel is asked for. What is lost on a real line is sent again by TCP, so that above it all arrives, in
order, and late; this is what a relay does with it. A server listens at `TO` and clients go to `AT`, under the same
number of port, as clients are told some numbers by the server.
"""

import asyncio
import random
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Self

TO, AT = "127.0.0.1", "127.0.0.2"
# What a packet of Ethernet carries of a stream; how soon TCP sends again without being told to; how many packets must
# arrive behind a lost one for the sender to hear of it, a round trip later, and not to wait for that.
SEGMENT, TIMEOUT, BEHIND = 1448, 0.2, 3
_READ, _CHUNKS = 1 << 16, 16  # a window of a megabyte


@dataclass(frozen=True, slots=True)
class Line:
    """What a line is like: a round trip in seconds, bytes a second each way for all connections together, and the share
    of packets that are lost, which a seed decides."""

    round_trip: float = 0.0
    rate: float = float("inf")
    loss: float = 0.0
    seed: int = 0


class Relay:
    """Carries all connections to some ports over a line, in the `with` block; what is open at its end is broken off.

    `connections` were made, `carried` is the bytes that arrived, each way, and `lost` are connection, way and number of
    each packet that had to be sent again.
    """

    def __init__(self, line: Line, *ports: int) -> None:
        self.connections, self.carried = 0, {"up": 0, "down": 0}
        self.lost: list[tuple[int, str, int]] = []
        self._line, self._ports = line, ports
        self._free = {"up": 0.0, "down": 0.0}  # when the line has sent what it was given
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._do(self._listen())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Coroutine) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _listen(self) -> None:
        for port in self._ports:
            self._servers.append(await asyncio.start_server(lambda *ends, to=port: self._connect(*ends, to), AT, port))

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self.connections += 1
        number, ends = self.connections, [writer]
        try:
            await asyncio.sleep(self._line.round_trip)  # TCP's greeting
            there, back = await asyncio.open_connection(TO, port)
            ends.append(back)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, back, number, "up"))
                both.create_task(self._carry(there, writer, number, "down"))
            for end in ends:
                end.close()
                await end.wait_closed()
        except* OSError:
            pass  # nobody listens there, or one end broke off: so does the other, below
        finally:
            for end in ends:
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, way: str) -> None:
        """Carry one direction to its end; who sends faster than the line does is made to wait."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._send(reader, chunks, number, way))
            both.create_task(self._arrive(writer, chunks, way))

    async def _send(self, reader: asyncio.StreamReader, chunks: asyncio.Queue, number: int, way: str) -> None:
        draw, at, latest = random.Random(f"{self._line.seed} {number} {way}"), 0, 0.0
        while data := await reader.read(_READ):
            # Drawn packet by packet, however the stream is cut into chunks.
            packets = range(-(-at // SEGMENT), -(-(at + len(data)) // SEGMENT))
            stalled = sum(self._stall(draw, (number, way, packet), packets.stop - packet) for packet in packets)
            at += len(data)
            self._free[way] = max(self._free[way], self._loop.time()) + len(data) / self._line.rate
            latest = max(latest, self._free[way] + self._line.round_trip / 2) + stalled
            await chunks.put((latest, data))
        await chunks.put((max(latest, self._loop.time() + self._line.round_trip / 2), b""))

    def _stall(self, draw: random.Random, packet: tuple[int, str, int], behind: int) -> float:
        """Return for how long a packet holds up all behind it: it may be lost, and what is sent in its place too."""
        if draw.random() >= self._line.loss:
            return 0.0
        self.lost.append(packet)
        timeout = max(TIMEOUT, 2 * self._line.round_trip)
        seconds = self._line.round_trip if behind > BEHIND else timeout
        while draw.random() < self._line.loss:
            seconds += timeout
            timeout *= 2
        return seconds

    async def _arrive(self, writer: asyncio.StreamWriter, chunks: asyncio.Queue, way: str) -> None:
        while True:
            when, data = await chunks.get()
            await asyncio.sleep(when - self._loop.time())
            if not data:
                break
            self.carried[way] += len(data)
            writer.write(data)
            await writer.drain()
        writer.write_eof()
