"""From files of every kind to RGB of 8 bits: by one rule, and refused where next to nothing would be left."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from splitfed.data.sources.decode import decode, to_rgb


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values, dtype) -> bytes:
    return encoded(Image.fromarray(np.array(values, dtype).reshape(1, -1)), "tiff")


def levels(content: bytes, white: float | None = None) -> list[int]:
    return np.asarray(decode(content, white))[0, :, 0].tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_grey_of_16_bits_loses_its_lower_half(dtype):
    assert levels(grey([0, 255, 256, 0x4D80, 65535], dtype)) == [0, 0, 1, 0x4D, 255]


@pytest.mark.parametrize(
    ("dtype", "values", "white", "expected"),
    [
        (np.uint16, [0, 15, 16, 900, 4095], 4095, [0, 0, 1, 56, 255]),
        (np.uint16, [0, 60, 200, 255], 255, [0, 60, 200, 255]),
        (np.int32, [0, 5 * 10**8, 10**9], 10**9, [0, 127, 255]),
        (np.float32, [0, 0.5, 1], 1.0, [0, 127, 255]),
        (np.float32, [0, 1000, 2000], 2000, [0, 127, 255]),
        (np.uint16, [0, 1, 2], 65535, [0, 0, 0]),  # all but black, and so it was wished
    ],
)
def test_white_says_what_is_white(dtype, values, white, expected):
    assert levels(grey(values, dtype), white) == expected


@pytest.mark.parametrize(
    ("content", "white", "reason"),
    [
        (grey([0, 4095], np.uint16), None, "pixels are up to 4095 where 65535 is white, so fewer than 16 of 256"),
        (grey([0, 255], np.int32), None, "set data.white, for instance to 4095 for 12 bits"),
        (grey([0, 10**9], np.int32), None, "its pixels are from 0 to 1e\\+09, where 0 is black and 65535 is white"),
        (grey([-5, 60000], np.int32), None, "its pixels are from -5 to 60000"),
        (grey([0, 5000], np.uint16), 4095, "its pixels are from 0 to 5000, where 0 is black and 4095 is white"),
        (grey([0, 0.5], np.float32), None, "floating-point numbers of unknown range: set data.white"),
        (grey([0, np.nan], np.float32), 1.0, "not finite"),
        (grey([0, np.inf], np.float32), 1.0, "not finite"),
    ],
)
def test_grey_of_which_nothing_would_be_left_is_refused(content, white, reason):
    with pytest.raises(ValueError, match=reason):
        decode(content, white)


def deep_colour(value: int) -> bytes:
    """A PNG of one pixel with 16 bits a colour, which Pillow cannot write."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", value, value, value)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_colours_of_16_bits_that_hold_12_are_refused():
    assert levels(deep_colour(0x8000)) == [0x80]
    with pytest.raises(ValueError, match="its 16 bits a colour hold values so small that fewer than 16"):
        decode(deep_colour(4095))


def test_transparency_is_taken_away_unless_it_is_all_there_is():
    colours = np.arange(16, dtype=np.uint8).reshape(4, 4)
    alpha = np.where(colours > 7, 255, 0).astype(np.uint8)
    whole = Image.fromarray(np.stack([colours, colours, colours, alpha], -1))
    assert np.array_equal(np.asarray(decode(encoded(whole)))[..., 0], colours)
    black = Image.fromarray(np.stack([colours * 0, colours * 0, colours * 0, alpha], -1))
    with pytest.raises(ValueError, match="only its transparency has a shape"):
        decode(encoded(black))


def test_palettes_and_cmyk_become_their_colours():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    few = photo.quantize(8)
    assert np.array_equal(np.asarray(decode(encoded(few))), np.asarray(few.convert("RGB")))
    printed = Image.new("RGB", (8, 8), (200, 60, 20)).convert("CMYK")
    found = np.asarray(decode(encoded(printed, "jpeg", quality=95)))
    assert np.abs(found.astype(int) - [200, 60, 20]).max() < 12


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value


def exif(*entries: bytes, tail: bytes = b"") -> bytes:
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(entries) + struct.pack("<I", 0) + tail


SIDEWAYS = entry(0x112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    ("block", "turned"),
    [
        (exif(SIDEWAYS), True),
        # A resolution that cannot be written again, and one of two values where one belongs.
        (exif(SIDEWAYS, entry(0x11A, 10, 1, struct.pack("<I", 38)), tail=struct.pack("<ii", -1, 0)), True),
        (exif(SIDEWAYS, entry(0x11A, 5, 2, struct.pack("<I", 38)), tail=struct.pack("<IIII", 72, 1, 72, 1)), True),
        (exif(SIDEWAYS, entry(0x10F, 2, 300, struct.pack("<I", 900)))[:30], None),
        (b"Exif\0\0", False),
        (b"Exif\0\0" + exif(SIDEWAYS), None),
        (b"no such block", False),
        (exif(entry(0x112, 3, 1, struct.pack("<HH", 0, 0))), False),
        (exif(entry(0x112, 3, 1, struct.pack("<HH", 77, 0))), False),
        (exif(entry(0x112, 2, 4, b"x\0\0\0")), False),
        (exif(entry(0x112, 3, 0, b"\0\0\0\0")), False),
    ],
)  # fmt: skip
def test_no_exif_block_makes_a_photo_unreadable(block, turned):
    photo = Image.new("RGB", (12, 8))
    found = decode(encoded(photo, "jpeg", exif=block))
    assert found.size in ([(8, 12), (12, 8)] if turned is None else [(8, 12) if turned else (12, 8)])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_are_as_pillow_turns_them(orientation):
    from PIL import ImageOps

    block = exif(entry(0x112, 3, 1, struct.pack("<HH", orientation, 0)))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8))
    content = encoded(noise, "jpeg", exif=block)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(np.asarray(decode(content)), np.asarray(expected))


def test_of_several_pictures_the_first():
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    content = encoded(first, "tiff", save_all=True, append_images=[second])
    assert np.asarray(decode(content)).max() == 10


def test_an_image_that_was_never_a_file():
    assert np.asarray(to_rgb(Image.new("L", (2, 2), 9))).tolist() == [[[9, 9, 9]] * 2] * 2
