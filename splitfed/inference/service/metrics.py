"""What a service tells of itself, in the text format of Prometheus, and whether it is well: over HTTP, to this machine
alone."""

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from splitfed.errors import RunError
from splitfed.files import reason

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOLD = {
    "splitfed_requests_total": "counter: requests by what came of them",
    "splitfed_images_total": "counter: images answered, by the block after which they left their client",
    "splitfed_answers_total": "counter: images answered, by the block whose exit answered; model: the whole model",
    "splitfed_bytes_total": "counter: bytes of frames, by direction and role",
    "splitfed_adapted_images_total": "counter: images of adaptation, by what was done with them",
    "splitfed_request_seconds": "histogram: seconds from a request's arrival to its answer",
    "splitfed_batch_seconds": "histogram: seconds that a batch was computed",
    "splitfed_batch_images": "histogram: images of a batch",
    "splitfed_batch_requests": "histogram: requests of a batch",
    "splitfed_reloads_total": "counter: how often another checkpoint was read, by what came of it",
    "splitfed_waiting": "gauge: requests in the queue",
    "splitfed_streams": "gauge: open streams of clients",
    "splitfed_round": "gauge: the round whose checkpoint is served",
}
Labels = tuple[tuple[str, str], ...]


class _Histogram:
    """Counts values up to each of some bounds, and above them all."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        so_far, found = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            so_far += count
            found.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
        return [*found, f"{name}_sum {self._sum}", f"{name}_count {so_far}"]


class Metrics:
    """Counts what happens; `gauges` are asked when somebody looks. Safe to call from threads."""

    def __init__(self) -> None:
        self.gauges: dict[str, Callable[[], float]] = {}
        self._counts: dict[tuple[str, Labels], int] = defaultdict(int)
        self._histograms = {
            "splitfed_request_seconds": _Histogram(_SECONDS), "splitfed_batch_seconds": _Histogram(_SECONDS),
            "splitfed_batch_images": _Histogram(_SIZES), "splitfed_batch_requests": _Histogram(_SIZES),
        }  # fmt: skip
        self._lock = threading.Lock()

    def count(self, outcome: str) -> None:
        """Count a request that was not answered."""
        self._add("splitfed_requests_total", 1, outcome=outcome)

    def answered(self, block: int, exits: Sequence[int | None], seconds: float) -> None:
        """Count a request that was answered, for images that had left their client after a block, each answered by the
        exit after another one, or None, the whole model."""
        self._add("splitfed_requests_total", 1, outcome="answered")
        self._add("splitfed_images_total", len(exits), block=str(block))
        for by, images in Counter(exits).items():
            self._add("splitfed_answers_total", images, exit="model" if by is None else str(by))
        with self._lock:
            self._histograms["splitfed_request_seconds"].add(seconds)

    def batch(self, requests: int, images: int, seconds: float) -> None:
        """Count a batch that was computed."""
        with self._lock:
            self._histograms["splitfed_batch_requests"].add(requests)
            self._histograms["splitfed_batch_images"].add(images)
            self._histograms["splitfed_batch_seconds"].add(seconds)

    def crossed(self, direction: str, role: str, sent: int) -> None:
        """Count bytes."""
        self._add("splitfed_bytes_total", sent, direction=direction, role=role)

    def computed(self, what: str, images: int) -> None:
        """Count images of adaptation."""
        self._add("splitfed_adapted_images_total", images, what=what)

    def reloaded(self, outcome: str) -> None:
        """Count that a checkpoint was read, or could not be."""
        self._add("splitfed_reloads_total", 1, outcome=outcome)

    def _add(self, name: str, by: int, **labels: str) -> None:
        with self._lock:
            self._counts[name, tuple(labels.items())] += by

    def text(self) -> str:
        """Return all of it as Prometheus reads it."""
        with self._lock:
            found: dict[str, list[str]] = defaultdict(list)
            for (name, labels), value in sorted(self._counts.items()):
                told = ",".join(f'{key}="{text}"' for key, text in labels)
                found[name].append(f"{name}{{{told}}} {value}")
            for name, histogram in self._histograms.items():
                found[name] = histogram.lines(name)
        for name, gauge in self.gauges.items():
            found[name] = [f"{name} {gauge()}"]
        lines = []
        for name, meaning in _TOLD.items():
            kind, _, what = meaning.partition(": ")
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", *found.get(name, [])]
        return "\n".join(lines) + "\n"


class Page:
    """Offers `/metrics` and `/health` at 127.0.0.1:`port` (0 takes a free one, see `port`) within its `with` block.
    Raises RunError where the port cannot be had."""

    def __init__(self, metrics: Metrics, port: int) -> None:
        texts = {"/metrics": metrics.text, "/health": lambda: "ok\n"}

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # of a silent connection

            def do_GET(self) -> None:
                text = texts.get(self.path)
                body = (text() if text else "there are /metrics and /health\n").encode()
                self.send_response(200 if text else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as error:
            raise RunError(
                f"--metrics-port {port}: cannot listen at 127.0.0.1 ({reason(error)}); choose another"
            ) from error
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._entered = ExitStack()

    def __enter__(self) -> "Page":
        thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        thread.start()
        self._entered.callback(thread.join)
        self._entered.callback(self._server.server_close)
        self._entered.callback(self._server.shutdown)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()
