"""A client and a server that lies, breaks off, or is another program: refused by a line, or asked again."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from splitfed import Predictor, RemotePredictor
from splitfed.data.sources.base import open_digits
from splitfed.errors import SplitfedError, WireError
from splitfed.inference.service.backs import Backs
from splitfed.wire.answers import (
    ASK,
    BASE_KEY,
    BYTES_KEY,
    FETCH,
    FRONT_KEY,
    GREET,
    PROTOCOL,
    PROTOCOL_KEY,
    REFUSED,
    SERVICE,
    notice,
)

PLAIN = ["plain={reducer: none, smashed: {codec: float32}}"]
SPOKEN = (PROTOCOL_KEY, str(PROTOCOL))


class Liar:
    """A service without a door, which says what a test has it say."""

    def __init__(self, run: Path) -> None:
        self.back = Backs(run, named=PLAIN).now
        self.front, self.size, self.chunks = self.back.name, str(len(self.back.bundle)), [self.back.bundle]
        self.spoken: tuple = (SPOKEN,)
        self.base = ""
        self.nonce = b"nonce"
        self.asked = 0
        self.answer: Callable[[bytes], Iterator[bytes]] = self.honest
        handlers = {GREET: self._greet, FETCH: self._fetch, ASK: self._ask}
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[grpc.method_handlers_generic_handler(
            SERVICE, {name: grpc.stream_stream_rpc_method_handler(how) for name, how in handlers.items()}
        )])  # fmt: skip
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def honest(self, buffer: bytes) -> Iterator[bytes]:
        asking = self.back.asking["plain"]
        yield asking.answer(asking.unpack(buffer)).buffer

    def _greet(self, requests, context):
        yield self.nonce

    def _fetch(self, requests, context):
        context.send_initial_metadata(
            (*self.spoken, (FRONT_KEY, self.front), (BYTES_KEY, self.size), (BASE_KEY, self.base))
        )
        yield from self.chunks

    def _ask(self, requests, context):
        context.send_initial_metadata(self.spoken)
        for buffer in requests:
            self.asked += 1
            yield from self.answer(buffer)

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def liar(finished: Path) -> Iterator[Liar]:
    one = Liar(finished)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def digit() -> Image.Image:
    return open_digits()[0].image(0)


def asking(liar: Liar, state: Path) -> RemotePredictor:
    return RemotePredictor(f"127.0.0.1:{liar.port}", state=state, deadline=5)


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"chunks": [b"x"]}, "another SHA-256"), ({"chunks": []}, "another SHA-256"),
        ({"chunks": [b"x" * 200_000] * 20}, "another SHA-256"),  # more than was said
        ({"front": "0" * 64}, "another SHA-256"), ({"front": "../../../etc"}, "does not say what"),
        ({"size": "-1"}, "does not say what"), ({"size": str(1 << 40)}, "does not say what"),
        ({"base": "0" * 64}, "does not say what"),  # it has no such front
        ({"spoken": ()}, "is no service of splitfed"), ({"nonce": b"\xff\x00"}, "is no service of splitfed"),
    ],
)  # fmt: skip
def test_a_front_that_is_not_what_it_says_is_not_kept(liar: Liar, tmp_path: Path, lie: dict, told: str) -> None:
    for name, value in lie.items():
        setattr(liar, name, value)
    with pytest.raises(WireError, match=told):
        asking(liar, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("norms", "told"),
    [
        (b"", "norms that are not of this front"), (b"x" * 999, "norms that are not of this front"),
        (save({"front.norm.weight": torch.ones(3)}), "norms that are not of this front"), (save({}), "another SHA-256"),
        (b"x" * (1 << 22), "does not say what"),  # more than all of it
    ],
)  # fmt: skip
def test_norms_that_are_not_of_the_front_are_not_taken(liar: Liar, tmp_path: Path, norms: bytes, told: str) -> None:
    asking(liar, tmp_path).close()
    before = sorted(tmp_path.rglob("*"))
    liar.base, liar.front, liar.size, liar.chunks = liar.front, "0" * 64, str(len(norms)), [norms]
    with pytest.raises(WireError, match=told):
        asking(liar, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_front_that_nobody_can_read_is_told(liar: Liar, tmp_path: Path) -> None:
    import hashlib

    other = b"no safetensors"
    liar.front, liar.size, liar.chunks = hashlib.sha256(other).hexdigest(), str(len(other)), [other]
    with pytest.raises(SplitfedError, match="cannot be read"):
        asking(liar, tmp_path)


@pytest.mark.parametrize("lie", [b"", b"garbage", b"\0" * (1 << 22), "another number", "another shape"])
def test_an_answer_that_is_none_is_refused(liar: Liar, digit: Image.Image, tmp_path: Path, lie: bytes | str) -> None:
    def answer(buffer: bytes) -> Iterator[bytes]:
        if isinstance(lie, bytes):
            yield lie
            return
        asked = liar.back.asking["plain"].unpack(buffer)
        if lie == "another shape":
            tokens = asked.tokens.repeat(2, 1, 1)
            asked = type(asked)(asked.number, asked.block, asked.model, tokens)
        else:
            yield liar.back.asking["plain"].answer(type(asked)(99, asked.block, asked.model, asked.tokens)).buffer
        yield liar.back.asking["plain"].answer(asked).buffer

    liar.answer = answer
    with asking(liar, tmp_path) as predictor:
        if lie == "another number":  # nobody waits for it
            assert predictor.predict([digit])[0].label is not None
        else:
            with pytest.raises(WireError):
                predictor.predict([digit])


def test_words_of_a_server_are_shown_as_one_short_line(liar: Liar, digit: Image.Image, tmp_path: Path) -> None:
    liar.answer = lambda buffer: iter([
        notice(REFUSED, liar.back.asking["plain"].look(buffer)[0].step, why="no\n\x1b[31mway").buffer
    ])  # fmt: skip
    with asking(liar, tmp_path) as predictor:
        problem = predictor.predict([digit])[0].problem or ""
    assert problem.startswith("refused: no")
    assert problem.isprintable()


def test_what_a_broken_stream_has_lost_is_sent_again(
    liar: Liar, finished: Path, digit: Image.Image, tmp_path: Path
) -> None:  # fmt: skip
    def once(buffer: bytes) -> Iterator[bytes]:
        if liar.asked == 1:
            raise RuntimeError("the server breaks off")
        return liar.honest(buffer)

    liar.answer = once
    with asking(liar, tmp_path) as predictor:
        assert predictor.predict([digit]) == Predictor(finished).predict([digit])
    assert liar.asked == 2
