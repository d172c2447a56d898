"""What is kept: images that are none are refused before they are decoded, and what is replayed stays bounded."""

from io import BytesIO

import pytest
import torch
from PIL import Image

from splitfed.compression.codecs.integers import encode_integers
from splitfed.compression.lossless import NoStage
from splitfed.errors import WireError
from splitfed.inference.remote.keeping import most_bytes, pack_image, unpack_image
from splitfed.inference.service.adaptation.kept import Kept, Replay, open_jpeg, pixels
from splitfed.seeds import Key
from splitfed.wire.frame import pack


def file(side: int = 16, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    out = BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert(mode).save(out, kind)
    return out.getvalue()


def frame(content: torch.Tensor) -> bytes:
    return pack("keep", 0, 0, 1, {"kept/image": (encode_integers(content), NoStage())}).buffer


def test_an_image_arrives_as_pillow_makes_it() -> None:
    image = torch.randint(0, 256, (3, 16, 16), generator=Key(0).generator(), dtype=torch.uint8)
    smooth = torch.nn.functional.avg_pool2d(image.float(), 9, 1, 4).byte()
    packed = pack_image(smooth, 7)
    counted, number, content = unpack_image(packed.buffer, 16)
    assert (number, counted.total, counted.sizes) == (7, packed.total, packed.sizes)
    assert counted.sizes["kept"].sent == len(content) + 1  # and a byte that says how wide a number is
    assert (pixels(content, 16).int() - smooth.int()).abs().float().mean() < 3
    assert packed.total <= most_bytes(16)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no JPEG file"), (b"\xff\xd8\xff\xe0 nothing more", "no JPEG file"), (file(kind="PNG"), "no JPEG file"),
        (file(32), "32 x 32 pixels in RGB, not 16"), (file(mode="L"), "16 x 16 pixels in L"),
        (file(mode="CMYK"), "pixels in CMYK"),
    ],
)  # fmt: skip
def test_what_is_no_such_image_is_refused_by_its_header(content: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        open_jpeg(content, 16)


def test_what_breaks_off_is_refused_when_it_is_decoded() -> None:
    broken = file()[:-20]
    open_jpeg(broken, 16)
    with pytest.raises(WireError, match="broken"):
        pixels(broken, 16)


def test_frames_that_hold_none_are_refused() -> None:
    for buffer in (
        frame(torch.tensor([256, 1])), frame(torch.zeros(0, dtype=torch.int64)),
        frame(torch.ones(3 * 16 * 16 + 5000, dtype=torch.int64)), b"", b"\x02" * 40,
        frame(torch.tensor([1, 2]))[:-1], pack_image(torch.zeros(3, 16, 16, dtype=torch.uint8), 1).buffer + b"\0",
    ):  # fmt: skip
        with pytest.raises(WireError):
            unpack_image(buffer, 16)


def sample(number: int, size: int = 10) -> tuple[list[Kept], torch.Tensor]:
    return [Kept(0, bytes([number]) * size)], torch.full((1, 2), float(number))


def replayed(replay: Replay, owner: int | None, count: int = 99) -> list[int]:
    found = list(replay.draw(owner, count, Key(0)))
    assert all(float(said[0]) == one.content[0] for one, said in found)  # each with its own answer
    return sorted(one.content[0] for one, _ in found)


def test_the_newest_stay_whoever_they_are_of() -> None:
    replay = Replay(4)
    for number in range(6):
        replay.add(number % 2, *sample(number))
    assert (replayed(replay, 0), replayed(replay, 1), replayed(replay, None)) == ([2, 4], [3, 5], [])
    replay.forget(0)
    assert (len(replay), replayed(replay, 0), replayed(replay, 1)) == (2, [], [3, 5])
    replay.add(1, *sample(7))
    assert replayed(replay, 1) == [3, 5, 7]


def test_each_is_drawn_once_and_not_always_the_same() -> None:
    replay = Replay(100)
    for number in range(50):
        replay.add(None, *sample(number))
    draws = [sorted(one.content[0] for one, _ in replay.draw(None, 10, Key(seed))) for seed in range(3)]
    assert all(len(set(draw)) == 10 for draw in draws)
    assert draws[0] != draws[1] != draws[2]


def test_so_are_bytes_bounded() -> None:
    replay = Replay(100, most_bytes=1000)
    for number in range(20):
        replay.add(None, *sample(number, size=192))  # and 8 bytes of an answer
    assert replayed(replay, None) == [15, 16, 17, 18, 19]
    none = Replay(0)
    none.add(None, *sample(1))
    assert len(none) == 0
