"""The service's end of the gRPC streams: lets clients in, hands their frames to the batcher, and answers back."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from splitfed.errors import SplitfedError, WireError
from splitfed.inference.asking import MODEL
from splitfed.inference.remote.keeping import most_bytes
from splitfed.inference.service.adaptation.adapter import Adapter
from splitfed.inference.service.backs import Backs
from splitfed.inference.service.batching import Batcher, Busy, Request
from splitfed.inference.service.door import Door
from splitfed.inference.service.metrics import Metrics
from splitfed.inference.service.tally import Tally
from splitfed.server.deployment.grpc_listener import address, credentials
from splitfed.server.deployment.strangers import Strangers, Watch, most_connections, plain
from splitfed.wire import answers
from splitfed.wire.answers import ANEW, BUSY, CHUNK, MOST_KNOWN, MOST_SECONDS, PROTOCOL, PROTOCOL_KEY, notice
from splitfed.wire.frame import Packed, count
from splitfed.wire.grpc_settings import endpoint, entry, options

log = logging.getLogger(__name__)

_AHEAD = 64  # requests of a stream that are not answered yet: of more none is read
_HANDSHAKE_MS = 10_000
_SECONDS_TO_LEAVE = 10.0  # for requests that wait when the service stops
_MOST_STREAMS, _MOST_EACH = 4096, 64  # of all clients, and of one
_MOST_KEEPING = 4  # streams of a client for images that it keeps


@dataclass(slots=True, eq=False)
class _Stream:
    """A client's stream: at what rate it sends, how many seconds an answer may take it, and what is to go down."""

    client: int
    rate: str
    seconds: float
    down: "asyncio.Queue[Packed | WireError | None]"
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AHEAD))
    under_way: int = 0
    read: bool = False  # to its end


class Listener:
    """Serves `backs` at `host`:`port` (0 takes a free one, see `port`) within its `with` block, over TLS where the door
    has files. Its event loop runs in a thread of its own. Entering raises SplitfedError where the port cannot be had.
    """

    def __init__(
        self, backs: Backs, door: Door, tally: Tally, metrics: Metrics, *, host: str, port: int,
        adapter: Adapter | None = None, strangers: Strangers | None = None,
    ) -> None:  # fmt: skip
        self._adapter = adapter
        self.port, self._host = port, host
        self._backs, self._door, self._tally, self._metrics = backs, door, tally, metrics
        self._strangers = strangers or Strangers()
        self._streams: set[_Stream] = set()
        self._keeping: Counter[int] = Counter()
        self._loop = asyncio.new_event_loop()
        self._entered, self._left = ExitStack(), False
        self.batcher: Batcher  # set before the first client comes

    @property
    def streams(self) -> int:
        """How many clients' streams are open."""
        return len(self._streams)

    def __enter__(self) -> "Listener":
        thread = threading.Thread(target=self._loop.run_forever, name="splitfed-listener", daemon=True)
        thread.start()
        self._entered.callback(self._loop.close)
        self._entered.callback(thread.join)
        self._entered.callback(self._loop.call_soon_threadsafe, self._loop.stop)
        try:
            self._do(self._start())
        except BaseException:
            self._entered.close()
            raise
        self._entered.callback(lambda: self._do(self._leave()))
        self._entered.enter_context(Watch(self.port, self._strangers))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def let_go(self) -> None:
        """End the streams of clients whom the door does not know any more."""
        for stream in list(self._streams):
            if not self._door.knows(stream.client):
                self._loop.call_soon_threadsafe(
                    stream.down.put_nowait, WireError(f"this server does not know the key of client {stream.client}")
                )

    def _do(self, what: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _start(self) -> None:
        bounds = [
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            ("grpc.max_allowed_incoming_connections", most_connections()),
        ]
        kept = most_bytes(self._adapter.side) if self._adapter else 0
        self._server = grpc.aio.server(
            options=options(max(self._backs.most_bytes, kept)) + bounds, maximum_concurrent_rpcs=_MOST_STREAMS
        )
        kinds = {
            answers.GREET: self._greet,
            answers.FETCH: self._fetch,
            answers.ASK: self._ask,
            answers.KEEP: self._keep,
        }
        handlers = {name: grpc.stream_stream_rpc_method_handler(how) for name, how in kinds.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(answers.SERVICE, handlers),))
        where = endpoint(self._host, self.port)
        try:
            files = self._door.files
            if files is not None:
                self.port = self._server.add_secure_port(where, credentials(files.tls))
            else:
                self.port = self._server.add_insecure_port(where)
        except RuntimeError:
            raise SplitfedError(f"cannot listen at {where}: is the port taken? Choose another with --port") from None
        await self._server.start()

    async def _leave(self) -> None:
        """Take no more requests, answer those that wait, and end."""
        self._left = True
        for stream in self._streams:
            stream.read = True
            stream.down.put_nowait(None)
        await self._server.stop(_SECONDS_TO_LEAVE)

    async def _greet(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """Tell a stranger what to sign; nothing that it sends is read."""
        await self._check_protocol(context)
        yield self._door.nonce().encode()

    async def _admit(self, context: grpc.aio.ServicerContext) -> int:
        """Return which client this is, before anything of what it sends is read; end the call of anybody else."""
        await self._check_protocol(context)
        said = [
            entry(context.invocation_metadata(), key)
            for key in (answers.CLIENT_KEY, answers.HOST_KEY, answers.NONCE_KEY, answers.SIGNATURE_KEY)
        ]
        try:
            client = self._door.check(*said)
        except WireError as error:
            self._metrics.count("stranger")
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        with suppress(ValueError):  # no address
            self._strangers.know(plain(*address(context.peer())), client)
        return client

    async def _check_protocol(self, context: grpc.aio.ServicerContext) -> None:
        if entry(context.invocation_metadata(), PROTOCOL_KEY) != str(PROTOCOL):
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this server speaks protocol {PROTOCOL} of splitfed answers, the client another: install the same "
                "splitfed",
            )

    async def _fetch(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """Hand out what belongs to the back that is served, unless the client has it; the norms alone to one that has
        all else."""
        client = await self._admit(context)
        back = self._backs.of(client)
        known = entry(context.invocation_metadata(), answers.KNOWN_KEY).split(",")[:MOST_KNOWN]
        alike = self._backs.alike
        base = next((name for name in known if name in alike), "") if back.norms and back.name in alike else ""
        content, role = (back.norms, "norms") if base else (back.content, "front")
        await context.send_initial_metadata((
            (PROTOCOL_KEY, str(PROTOCOL)), (answers.FRONT_KEY, back.name), (answers.BYTES_KEY, str(len(content))),
            (answers.BASE_KEY, base), (answers.ADAPT_KEY, self._adapts),
        ))  # fmt: skip
        if back.name in known:
            return
        for start in range(0, len(content), CHUNK):
            chunk = content[start : start + CHUNK]
            yield chunk
            self._tally.add(client, "down", role, len(chunk))

    @property
    def _adapts(self) -> str:
        return self._adapter.settings.norms if self._adapter else ""

    async def _keep(self, kept: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """Take images that a client keeps for adaptation, to the end of its stream."""
        client = await self._admit(context)
        adapter = self._adapter
        if adapter is None or adapter.settings.norms != "whole":
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "this server takes no kept images: it was started without --adapt whole",
            )
            return
        if self._keeping[client] >= _MOST_KEEPING:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"client {client} has {_MOST_KEEPING} streams open")
        await context.send_initial_metadata(((PROTOCOL_KEY, str(PROTOCOL)),))
        self._keeping[client] += 1
        try:
            async for buffer in kept:
                if self._left or not self._door.knows(client):
                    return
                try:
                    frame, number, taken = adapter.take_image(client, buffer)
                except WireError as error:
                    self._metrics.count("garbage")
                    self._tally.add(client, "up", "envelope", len(buffer))
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
                self._tally.frame(client, "up", frame)
                served = self._backs.of(client).name[:MODEL]
                told = notice(answers.TAKEN, number, model=served) if taken else notice(BUSY, number, after_ms=1000)
                self._tally.frame(client, "down", told)
                yield told.buffer
        finally:
            self._keeping[client] -= 1

    async def _ask(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """Serve one stream of requests, to its end."""
        client = await self._admit(context)
        rate, seconds = (entry(context.invocation_metadata(), key) for key in (answers.RATE_KEY, answers.DEADLINE_KEY))
        if rate not in self._backs.now.asking:
            rates = ", ".join(self._backs.now.asking)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this server takes the rates {rates}")
        if self._left:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is leaving")
        if sum(one.client == client for one in self._streams) >= _MOST_EACH:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"client {client} has {_MOST_EACH} streams open")
        stream = _Stream(client, rate, _seconds(seconds), asyncio.Queue())
        await context.send_initial_metadata(((PROTOCOL_KEY, str(PROTOCOL)), (answers.ADAPT_KEY, self._adapts)))
        self._streams.add(stream)
        reader = asyncio.ensure_future(self._read(stream, requests))
        try:
            while not (stream.read and not stream.under_way):
                found = await stream.down.get()
                if isinstance(found, WireError):
                    self._metrics.count("garbage")
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(found))
                elif found is not None:
                    stream.under_way -= 1
                    # Counted first: who has the answer, and looks, finds it counted.
                    self._tally.frame(client, "down", found)
                    yield found.buffer
                    stream.room.release()
        finally:
            self._streams.discard(stream)
            reader.cancel()

    async def _read(self, stream: _Stream, requests: AsyncIterator[bytes]) -> None:
        try:
            await stream.room.acquire()
            async for buffer in requests:
                if stream.read:  # the server is leaving
                    return
                stream.under_way += 1
                self._take(stream, buffer)
                await stream.room.acquire()
        except asyncio.CancelledError:
            raise
        except Exception:  # the client is gone
            log.debug("a stream broke", exc_info=True)
        finally:
            stream.read = True
            stream.down.put_nowait(None)

    def _take(self, stream: _Stream, buffer: bytes) -> None:
        """Count a request, and let it wait; what cannot be done with it is told at once."""
        try:
            header, model = self._backs.now.asking[stream.rate].look(buffer)
        except WireError as error:
            self._tally.add(stream.client, "up", "envelope", len(buffer))
            stream.down.put_nowait(error)
            return
        self._tally.frame(stream.client, "up", count(header, len(buffer)))
        back = self._backs.named(model, stream.client)
        if back is None or stream.rate not in back.asking:
            self._metrics.count("anew")
            stream.down.put_nowait(notice(ANEW, header.step, model=self._backs.of(stream.client).name[:MODEL]))
            return

        def answer(found: Packed | WireError) -> None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(stream.down.put_nowait, found)

        until = time.monotonic() + stream.seconds
        try:
            self.batcher.submit(Request(stream.client, header.step, back, stream.rate, buffer, until, answer))
        except Busy as busy:
            self._metrics.count("busy")
            stream.down.put_nowait(notice(BUSY, header.step, after_ms=round(1000 * busy.seconds)))


def _seconds(text: str) -> float:
    """Read a deadline; what is none is the longest."""
    with suppress(ValueError):
        if 0 <= (found := float(text)) <= MOST_SECONDS:
            return found
    return MOST_SECONDS
