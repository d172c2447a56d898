"""Answers for images by a front here and a back elsewhere: what an exit is not sure of is sent."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from splitfed.config import read_option
from splitfed.data.batches import normaliser
from splitfed.engines.deployment.processes import is_loopback, parse
from splitfed.engines.deployment.tls import read_client
from splitfed.errors import RunError, Unreached
from splitfed.federation.control.account import Account
from splitfed.inference.deciding import Aim, Measure
from splitfed.inference.pictures import Named, Picture
from splitfed.inference.predictor import NOTHING, Prediction, batched, told
from splitfed.inference.remote.bundle import read_bundle
from splitfed.inference.remote.dialling import Dialler
from splitfed.inference.remote.fetching import Cache, fetch
from splitfed.inference.remote.keeping import TAKING, Count, Keeping, most_bytes
from splitfed.inference.remote.line import Line, Reply
from splitfed.inference.remote.pacing import Pacing, account_of
from splitfed.inference.remote.selecting import Drawn, Informative, Select, Selector
from splitfed.inference.remote.walking import Leaving, Walked, Walker
from splitfed.seeds import Key
from splitfed.wire.answers import ANEW, BUSY, KEEP, LATE, REFUSED
from splitfed.wire.records import shown

PORT = 9094
_AHEAD = 4  # mini-batches whose answers are not there yet while the next is computed
_UNFIT = {
    "": "{} adapts nothing: it was started without --adapt",
    "back": "{} adapts its back, by what is sent to be answered, and takes no images: leave out --send-images",
    "whole": "{} adapts the whole model, by images: say --send-images if they may leave this device, or leave out "
    "--select",
}
_TARGET = "the target allows no more"
_MOST_ANEW = 5  # times that a front is fetched anew for one mini-batch


class RemotePredictor:
    """Answers with the front, exits and class names of the service at `server` (host or host:port), which are fetched
    once and kept below `state`, and with its help for what no exit is sure of.

    `tls` is this client's folder from `splitfed certs`; without it all is plain text, which must be wanted
    (`insecure`) for another machine, and `client` is the number that it says. `confidence`, `accuracy`, `most_bytes`,
    `most_operations`, `measure`, `rise` and `top` are as in `Predictor`, also for exits of the server; without a
    confidence all images are sent and the whole model answers, and with a `rise` some leave before the cut. `rate` is
    one of those that the server takes, the first if None; with a `target`, such as `20kB/s` (both ways) or `200ms`
    (from when a mini-batch is sent until its last answer), it is chosen for each mini-batch so that the mean keeps to
    it in the long run, and where even the smallest is too much the last exit answers, or without exits all is sent at
    it; `spent` is what the mean came to, and `held` whether it keeps to the target. `batch` images are computed at
    once, and those of them that leave after the same block are sent in one request. What is not answered within
    `deadline` seconds is answered by the last exit here, and says so (`Prediction.alone`), or has a problem where there
    is none.

    With a `select`, of `Informative` or `Drawn` by kind and keys, images are kept for the server to adapt by: those of
    them that are sent are marked, or with `send_images`, which is how one says that images may leave, they go up as
    JPEG files, answered here or not; `kept` counts them. A server that adapts all norms is asked for the new ones.

    Raises a SplitfedError where the server refuses, or cannot be reached and nothing was kept from before. One thread
    at a time. `close` or a `with` block end the connection.
    """

    def __init__(
        self, server: str, *, tls: str | Path | None = None, insecure: bool = False, client: int | None = None,
        confidence: float | None = None, accuracy: float | None = None, most_bytes: float | None = None,
        most_operations: float | None = None, measure: Measure = "probability", rise: float | None = None,
        top: int = 1, batch: int = 64, rate: str | None = None, target: str | None = None,
        state: str | Path = "splitfed-client", deadline: float = 10.0, device: str | None = None, select: Any = None,
        send_images: bool = False,
    ) -> None:  # fmt: skip
        host, port = parse(server, PORT)
        if tls is None and not is_loopback(host) and not insecure:
            raise RunError(
                f"asking {host} without --tls: all would cross in plain text, to a server that proves nothing. Add "
                "--tls with the folder of this client that 'splitfed certs' made, or say --insecure"
            )
        files = read_client(Path(tls)) if tls is not None else None
        if files is not None and client not in (None, files.client):
            raise RunError(f"this is the key of client {files.client}, not of client {client}")
        if rate is not None and target is not None:
            raise RunError("a rate and a target are asked for: a target chooses among all rates, name one of them")
        account = account_of(target) if target is not None else None
        self._aim = Aim(confidence, accuracy, most_bytes, most_operations, measure, rise)
        self.rule = self._aim.rule(None)
        self._top, self._batch, self._deadline, self._device = top, batch, deadline, device
        self._dialler = Dialler(host, port, files, files.client if files else client or 0)
        self._cache = Cache(Path(state), self._dialler.where)
        self._bytes: Counter[tuple[str, str]] = Counter()
        self._lock = Lock()
        self._lines: dict[str, Line] = {}
        self._next = 1
        self._keeping: Keeping | None = None
        self._walker, adapts = self._begin()
        if select is not None:
            self._keeping = self._kept_by(read_option("--select", select, Select), send_images, adapts)
        elif send_images:
            raise RunError("images may leave, and nothing says which: name them, for instance with --select entropy")
        self._rate = self._chosen(rate)
        self._pacing = self._paced(account) if account else None

    def predict(self, images: str | Path | Sequence[Named]) -> list[Prediction]:
        """Answer for images, in order: files, folders of them, or what Pillow has opened. What cannot be decoded is
        answered with its problem. Raises DataError for a place where nothing is, and for a folder without images, and
        WireError where the server refuses this client."""
        return list(self.stream(images))

    def stream(self, images: str | Path | Sequence[Named]) -> Iterator[Prediction]:
        """Answer as `predict` does, a batch at a time; the next ones are computed while answers are awaited."""
        scenario = self._walker.bundle.scenario
        under_way: deque[tuple[list[Picture], _Awaited | None]] = deque()
        for pictures in batched(images, scenario.model.image_size, scenario.data.white, self._batch):
            good = [picture.pixels for picture in pictures if picture.pixels is not None]
            under_way.append((pictures, self._ask(torch.stack(good)) if good else None))
            if len(under_way) > _AHEAD:
                yield from self._told(*under_way.popleft())
        while under_way:
            yield from self._told(*under_way.popleft())

    @property
    def bytes(self) -> dict[tuple[str, str], int]:
        """The bytes that have crossed, by direction and role: those of frames, and of fronts that were fetched."""
        with self._lock:
            return dict(self._bytes)

    @property
    def front(self) -> str:
        """The SHA-256 of the front that images are taken through now."""
        return self._walker.bundle.name

    @property
    def kept(self) -> Count | None:
        """How many images were looked at and kept for the server; None without a `select`."""
        return self._keeping.count if self._keeping else None

    @property
    def spent(self) -> float | None:
        """What a `target` has come to in the mean, in bytes a second or seconds of a mini-batch; None without one."""
        return self._pacing.came_to if self._pacing else None

    @property
    def held(self) -> bool | None:
        """Whether that is within the target; None where there is none."""
        return self._pacing.held if self._pacing else None

    @property
    def has_exits(self) -> bool:
        """Whether exits are here, of which the last one answers what is not sent."""
        return self._walker.bundle.exits is not None

    @property
    def rates(self) -> list[str]:
        """The rates that the server takes."""
        return [rate.name for rate in self._walker.bundle.rates]

    def close(self) -> None:
        """End the connection."""
        if self._keeping is not None:
            self._keeping.close()
        for line in self._lines.values():
            line.close()

    def __enter__(self) -> "RemotePredictor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> tuple[Walker, str | None]:
        """Return what takes images to the cut, and which norms the server adapts; None where it does not answer."""
        try:
            fetched = fetch(self._dialler, self._cache, self._deadline, self._hear)
        except Unreached as error:
            if not (names := self._cache.names()):
                raise Unreached(f"{error}; and nothing of it is kept in {self._cache.folder}") from None
            return self._walker_of(self._cache.path(names[0])), None
        return self._walker_of(fetched.file), fetched.adapts

    def _kept_by(self, select: Informative | Drawn, images: bool, adapts: str | None) -> Keeping:
        bundle = self._walker.bundle
        if bundle.exits is None:
            raise RunError(
                f"--select: images are kept by what an exit says, and what {self._dialler.where} serves has none "
                "before its cut: make one with 'splitfed exits RUN'"
            )
        if adapts is not None and adapts != ("whole" if images else "back"):
            raise RunError(f"--select: {_UNFIT[adapts].format(self._dialler.where)}")
        line: Line | None = None
        if images:
            most = most_bytes(bundle.scenario.model.image_size)
            line = Line(self._dialler, "", self._deadline, TAKING, most, self._hear, KEEP)
            with suppress(Unreached):
                line.ready(self._deadline)
        return Keeping(Selector(select, Key(bundle.scenario.seed).at("select", self._dialler.client)), line, adapts)

    def _walker_of(self, file: Path) -> Walker:
        bundle = read_bundle(file, self._device)
        if self._aim.of_exits and bundle.exits is None and not bundle.behind:
            raise RunError(
                f"a confidence is asked for, and what {self._dialler.where} serves has no exits that take part: make "
                "some there with 'splitfed exits RUN', or leave it out to send every image"
            )
        if self._aim.follows and bundle.judged is None:
            raise RunError(f"{self._dialler.where} does not tell how its exits do: name a confidence instead")
        self.rule = self._aim.rule(bundle.judged)
        return Walker(bundle, self.rule)

    def _chosen(self, rate: str | None) -> str:
        if rate is not None and rate not in self.rates:
            raise RunError(f"--rate {rate}: {self._dialler.where} takes {', '.join(self.rates)}")
        return rate or self.rates[0]

    def _paced(self, account: Account) -> Pacing:
        if not self.has_exits and len(self.rates) < 2:
            raise RunError(
                f"a target is asked for, and there is nothing to choose: {self._dialler.where} takes one rate and has "
                "no exits: serve it with more than one --rate, or make exits with 'splitfed exits RUN'"
            )
        return Pacing(account, self._walker.sizes(), self.has_exits)

    def _line(self, rate: str) -> Line:
        if rate not in self._lines:
            bundle, asking = self._walker.bundle, self._walker.asking[rate]
            answers = asking.expected_answers((1, bundle.most))
            self._lines[rate] = Line(
                self._dialler, rate, self._deadline, answers, asking.most_answer_bytes(bundle.most), self._hear
            )
        return self._lines[rate]

    def _hear(self, direction: str, role: str, sent: int) -> None:
        with self._lock:
            self._bytes[direction, role] += sent

    def _ask(self, pixels: Tensor, keep: bool = True) -> "_Awaited":
        """Take images through the front, and send what is not answered there; `keep` some for the server."""
        self._renew()
        walker, keeping = self._walker, self._keeping if keep else None
        images = normaliser(walker.bundle.mean, walker.bundle.std)(pixels).to(walker.bundle.device)
        rate = self._pacing.choose() if self._pacing else self._rate
        line = self._line(rate) if rate is not None else None
        select = keeping.marks(line) if keeping is not None else None
        walked = walker.walk(pixels, images, rate or self._rate, self._next, select)
        if keeping is not None:
            keeping.send(walked)
        self._next += len(walked.leaving)
        awaited = _Awaited(walked, time.monotonic() + self._deadline, rate)
        if line is not None:
            for leaving in walked.leaving:
                try:
                    line.ready(awaited.until - time.monotonic())
                    awaited.sent[leaving.number] = line.send(leaving.number, leaving.packed)
                    awaited.sent[leaving.number].add_done_callback(awaited.hear)
                except Unreached:
                    pass  # it is told where the answer is awaited
        return awaited

    def _renew(self) -> None:
        """Take the front that is served now, where adaptation has come to another one."""
        served = self._keeping.served() if self._keeping is not None else None
        if served is not None and not self._walker.bundle.name.startswith(served):
            with suppress(Unreached):  # then the one that is here goes on
                fetched = fetch(self._dialler, self._cache, self._deadline, self._hear)
                before, self._walker = self._walker, self._walker_of(fetched.file)
                before.close()

    def _told(self, pictures: list[Picture], awaited: "_Awaited | None") -> Iterator[Prediction]:
        answered = NOTHING
        if awaited is not None:
            self._wait(awaited, 0)
            answered = awaited.walked.answered
        yield from told(pictures, answered, self._walker.bundle.classes, self._top, self.rule.measure)

    def _wait(self, awaited: "_Awaited", depth: int) -> None:
        """Wait for all answers of a mini-batch, and put them where they belong."""
        walked = awaited.walked
        answered, anew, received = walked.answered, [], 0
        for leaving in walked.leaving:
            if awaited.rate is None:
                self._without(walked, leaving, _TARGET, _TARGET)
                continue
            try:
                header, buffer = self._reply(leaving, awaited, self._line(awaited.rate))
                received += len(buffer)
                if header.kind == ANEW:
                    anew.append(leaving.rows)
                elif header.kind == REFUSED:
                    self._without(walked, leaving, None, f"refused: {shown(str(header.meta.get('why', '')))}")
                else:
                    found = leaving.asking.unpack_answer(buffer, leaving.number, len(leaving.rows), leaving.exits)
                    answered.probabilities[leaving.rows] = found.logits.float().softmax(1)
                    for row, block in zip(leaving.rows.tolist(), found.exits, strict=True):
                        answered.exits[row] = block
            except Unreached as error:
                self._line(awaited.rate).forget(leaving.number)
                awaited.heard = awaited.until
                self._without(walked, leaving, str(error), str(error))
        if self._pacing:
            images = sum(len(leaving.rows) for leaving in walked.leaving)
            up = sum(leaving.packed.total for leaving in walked.leaving) if awaited.rate is not None else 0
            self._pacing.learn(awaited.rate, images, up + received, awaited.seconds if images else 0.0)
        if anew:
            self._again(walked, torch.cat(anew), depth)

    def _reply(self, leaving: Leaving, awaited: "_Awaited", line: Line) -> Reply:
        """Wait for what answers a request; it is sent again where the queue was full or the stream broke. Raises
        Unreached where its time is over."""
        future = awaited.sent.get(leaving.number)
        late = f"no answer from {self._dialler.where} within {self._deadline:g} s"
        while True:
            left = awaited.until - time.monotonic()
            if future is None:
                line.ready(left)
                future = line.send(leaving.number, leaving.packed)
                future.add_done_callback(awaited.hear)
            try:
                header, buffer = future.result(max(0.0, left))
            except TimeoutError:
                raise Unreached(late) from None
            except Unreached:
                if left <= 0:
                    raise
                future = None
                continue
            if header.kind == LATE:
                raise Unreached(late)
            if header.kind != BUSY:
                return header, buffer
            after = header.meta.get("after_ms")
            pause = min(max(after / 1000 if isinstance(after, int) else 0.1, 0.01), 2.0)
            if pause > left:
                raise Unreached(f"{self._dialler.where} has no time for it within {self._deadline:g} s")
            time.sleep(pause)
            future = None

    def _without(self, walked: Walked, leaving: Leaving, alone: str | None, problem: str) -> None:
        """Let the last exit answer for what the server did not, or say what is wrong."""
        for row in leaving.rows.tolist():
            if alone is not None and walked.last[row] is not None:
                walked.answered.exits[row], walked.answered.alone[row] = walked.last[row], alone
            else:
                walked.answered.problems[row] = problem

    def _again(self, walked: Walked, rows: Tensor, depth: int) -> None:
        """Take images through the front that is served now."""
        try:
            if depth == _MOST_ANEW:
                raise Unreached(f"{self._dialler.where} has other weights again and again")
            if walked.front == self._walker.bundle.name:
                before = self._walker
                fetched = fetch(self._dialler, self._cache, self._deadline, self._hear)
                self._walker = self._walker_of(fetched.file)
                before.close()
        except Unreached as error:
            for leaving in walked.leaving:
                own = leaving.rows[torch.isin(leaving.rows, rows)]
                self._without(walked, replace(leaving, rows=own), str(error), str(error))
            return
        awaited = self._ask(walked.pixels[rows.cpu()], keep=False)
        self._wait(awaited, depth + 1)
        found, old = awaited.walked.answered, walked.answered
        old.probabilities[rows] = found.probabilities.to(old.probabilities.device)
        for place, row in enumerate(rows.tolist()):
            old.exits[row], old.alone[row], old.problems[row] = (
                found.exits[place], found.alone[place], found.problems[place],
            )  # fmt: skip


class _Awaited:
    """A mini-batch whose answers are awaited `until` then, at which rate it was sent (None: it was not), and those of
    its requests that were."""

    def __init__(self, walked: Walked, until: float, rate: str | None) -> None:
        self.walked, self.until, self.rate = walked, until, rate
        self.sent: dict[int, Future[Reply]] = {}
        self.begun = self.heard = time.monotonic()

    def hear(self, _: object) -> None:
        """Take note that an answer is there."""
        self.heard = time.monotonic()

    @property
    def seconds(self) -> float:
        """From when the first request was made until the last answer was there."""
        return self.heard - self.begun
