"""Serves the back of a run to clients elsewhere, until it is stopped."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from splitfed.config import read_option
from splitfed.engines.deployment.processes import is_loopback, port_number
from splitfed.errors import RunError, SplitfedError
from splitfed.inference.service.adaptation import store
from splitfed.inference.service.adaptation.adapter import Adapter
from splitfed.inference.service.adaptation.settings import Adapt
from splitfed.inference.service.backs import Backs
from splitfed.inference.service.batching import Batcher
from splitfed.inference.service.door import Door
from splitfed.inference.service.listener import Listener
from splitfed.inference.service.metrics import Metrics, Page
from splitfed.inference.service.tally import Tally
from splitfed.server.deployment.strangers import raise_file_limit
from splitfed.wire.grpc_settings import endpoint

PORT, METRICS_PORT = 9094, 9095
_LOOK_SECONDS = 0.25


class Service:
    """The back of a run as a service, within its `with` block; `port` and `metrics_port` are where it is then. Either
    may be 0, for a free one; with `metrics_port` None there is no `/metrics`.

    `tls` is the folder that `splitfed certs` made; without it everything is plain text, and clients say themselves who
    they are, which must be wanted (`insecure`) anywhere but on this machine. Up to `batch` images are computed
    together, for which the first waits up to `wait` seconds, `queue` requests wait their turn, and a request holds up
    to `most` images. What crosses is counted in `ledger`, by default `service/` in the run's folder. With `adapt`, keys
    of `AdaptConfig` or as YAML, norms learn from what clients keep. Rates, `round`, `device` and `keep_old` are as in
    `Backs`. Raises a SplitfedError for the user's mistakes.
    """

    def __init__(
        self, run: str | Path, *, host: str = "127.0.0.1", port: int = PORT, tls: Path | None = None,
        insecure: bool = False, rates: Sequence[str] = (), batch: int = 32, wait: float = 0.002, queue: int = 256,
        most: int = 64, keep_old: float = 60.0, metrics_port: int | None = METRICS_PORT, ledger: Path | None = None,
        adapt: Any = None, round: int | None = None, device: str | None = None, overrides: list[str] | None = None,
    ) -> None:  # fmt: skip
        if not host:
            raise RunError("--host: name an address to listen at; 0.0.0.0 is all of this machine's")
        if tls is None and not is_loopback(host) and not insecure:
            raise RunError(
                f"--host {host} without --tls: all would cross in plain text, and anybody could ask. Make keys with "
                f"'splitfed certs tls/ --host ...' and add --tls tls/, or say --insecure"
            )
        self.run = Path(run)
        self._door = Door(tls, host)
        self.backs = Backs(
            self.run, named=rates, most=most, round=round, device=device, keep_old=keep_old, overrides=overrides,
        )  # fmt: skip
        self.metrics = Metrics()
        self.tally = Tally(ledger or self.run / "service", self.metrics)
        self.adapter: Adapter | None = None
        if adapt is not None:
            keys = read_option("--adapt", adapt, Adapt)
            self.adapter = Adapter(keys, self.backs, self.tally, self.tally.folder)
        self._listener = Listener(
            self.backs, self._door, self.tally, self.metrics, host=host, port=port, adapter=self.adapter
        )
        self._batcher = Batcher(
            self.metrics, batch=batch, wait=wait, queue=queue, there=lambda: self._listener.streams,
            kept=self.adapter.take_tokens if self.adapter else None,
        )  # fmt: skip
        self._listener.batcher = self._batcher
        self.metrics.gauges = {
            "splitfed_waiting": lambda: len(self._batcher), "splitfed_streams": lambda: self._listener.streams,
            "splitfed_round": lambda: self.backs.now.round,
        }  # fmt: skip
        self._page = None if metrics_port is None else Page(self.metrics, metrics_port)
        self._entered = ExitStack()

    @property
    def port(self) -> int:
        """The port of the streams."""
        return self._listener.port

    @property
    def metrics_port(self) -> int | None:
        """The port of `/metrics` and `/health`; None where there are none."""
        return self._page.port if self._page else None

    def __enter__(self) -> "Service":
        with ExitStack() as entered:
            for part in (self._page, self.tally, self.adapter, self._batcher, self._listener):
                if part is not None:
                    entered.enter_context(part)
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def reload(self) -> str:
        """Read keys and run anew, and return a line on what is served now. Raises a SplitfedError where one of them
        cannot be read; then that goes on as before."""
        try:
            self._door.reload()
            self._listener.let_go()
            changed = self.backs.reload()
            if self.adapter is not None:
                self.adapter.rebase()
        except SplitfedError:
            self.metrics.reloaded("failed")
            raise
        self.metrics.reloaded("read")
        return f"round {self.backs.now.round} is served{'' if changed else ', as before'}"

    def forget(self) -> str | None:
        """Let go of adapted norms where another process has asked for it, and return a line on that, or None."""
        if (owner := store.wish(self.tally.folder)) is None:
            return None
        if self.adapter is not None:
            self.adapter.forget(*owner)
        else:
            store.drop(self.tally.folder, *owner)
        whose = "all clients" if owner[0] is None else f"client {owner[0]}"
        return f"what was adapted for {whose} is forgotten"


def serve_model(
    run: str | Path, *, host: str = "127.0.0.1", port: int = PORT, metrics_port: int | None = METRICS_PORT,
    watch: float | None = None, say: Callable[[str], None] = print, **more,
) -> None:  # fmt: skip
    """Serve a run's back until KeyboardInterrupt. SIGHUP reads checkpoint and keys anew; with `watch` the run's folder
    is looked at each so many seconds for a newer checkpoint. `say` gets one line for whatever happens. `more` is what
    `Service` takes."""
    port_number(port, "--port")
    if metrics_port is not None:
        port_number(metrics_port, "--metrics-port")
    if watch is not None and more.get("round") is not None:
        raise RunError("--watch looks for a newer checkpoint, and --round names one: leave one of them out")
    raise_file_limit()
    wanted: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda *_: wanted.append(1))
    try:
        with Service(run, host=host, port=port, metrics_port=metrics_port, **more) as service:
            say(f"serving     round {service.backs.now.round} of {service.run}, at {endpoint(host, service.port)}")
            say(f"rates       {', '.join(service.backs.now.asking)}")
            if (exits := service.backs.base.behind) is not None:
                say(f"exits       here after block {', '.join(map(str, exits.blocks))}, for who asks with a confidence")
            if service.metrics_port is not None:
                say(f"metrics at  http://127.0.0.1:{service.metrics_port}/metrics")
            say(f"bytes in    {service.tally.folder}")
            if service.adapter is not None:
                say(f"adapting    norms: {service.adapter.settings.norms}, after {service.adapter.steps} steps so far")
            look = time.monotonic()
            while True:
                time.sleep(_LOOK_SECONDS)
                try:
                    if forgotten := service.forget():
                        say(forgotten)
                except SplitfedError as error:
                    say(f"what was adapted stays on disk: {error}")
                due = watch is not None and time.monotonic() - look >= watch
                if due:
                    look = time.monotonic()
                if wanted or (due and service.backs.newer()):
                    wanted.clear()
                    try:
                        say(service.reload())
                    except SplitfedError as error:
                        say(f"round {service.backs.now.round} is served on: {error}")
    finally:
        signal.signal(signal.SIGHUP, before)
