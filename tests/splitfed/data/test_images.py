import io
import multiprocessing
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from splitfed.data.batches import batches
from splitfed.data.images import Images, fit
from splitfed.data.sources.base import InMemory, Stored
from splitfed.data.sources.decode import to_rgb
from splitfed.data.sources.tables import Cells
from splitfed.errors import DataError
from splitfed.seeds import Key


def stored(files: list[bytes]) -> Stored:
    rows = {"image": [{"bytes": file, "path": None} for file in files]}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    dataset = datasets.Dataset.from_dict(rows, features=features)
    return Stored(Cells([("photos.parquet", dataset)], "image"), torch.arange(len(files)), torch.arange(len(files)))


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> Image.Image:
    return Image.new("RGB", (9, 12), (200, 100, 50)).quantize(4)


@pytest.mark.parametrize(
    ("image", "options", "colour"),
    [
        (Image.new("RGB", (20, 10), (200, 100, 50)), {}, (200, 100, 50)),
        (Image.new("L", (10, 30), 77), {}, (77, 77, 77)),
        (Image.new("1", (10, 30), 1), {}, (255, 255, 255)),
        (Image.new("LA", (10, 30), (77, 128)), {}, (77, 77, 77)),
        (Image.new("RGBA", (16, 16), (200, 100, 50, 128)), {}, (200, 100, 50)),
        (palette(), {}, (200, 100, 50)),
        (palette(), {"transparency": b"\x80\xff"}, (200, 100, 50)),
        (Image.fromarray(np.full((12, 9), 0x4D00, dtype=np.uint16)), {}, (77, 77, 77)),
    ],
    ids=["RGB", "L", "1", "LA", "RGBA", "P", "P transparent", "16 bits"],
)
def test_every_kind_of_png_becomes_rgb_of_one_size(image, options, colour, recwarn):
    images = Images(stored([encoded(image, **options)]), torch.tensor([0]), 8)
    pixels = images.pixels(torch.tensor([0]))
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.dtype == torch.uint8
    assert (pixels - torch.tensor(colour).view(1, 3, 1, 1)).abs().max() <= 1
    assert not recwarn.list


def test_short_side_is_resized_and_the_middle_cut_out():
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8))
    expected = np.array(wide.resize((30, 10), Image.Resampling.BICUBIC))[:, 10:20]
    assert np.array_equal(np.array(fit(wide, 10)), expected)
    assert np.array_equal(np.array(fit(wide.transpose(Image.Transpose.TRANSPOSE), 10)), expected.transpose(1, 0, 2))
    same = Image.new("RGB", (8, 8))
    assert fit(same, 8) is same


def test_resizing_is_bicubic_with_antialiasing():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    expected = noise.resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(np.array(fit(noise, 8)), np.array(expected))


def test_a_photo_that_lies_on_its_side_is_turned_upright():
    photo = Image.fromarray(np.r_[np.zeros((8, 16, 3), np.uint8), np.full((8, 16, 3), 255, np.uint8)])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    upright = to_rgb(Image.open(io.BytesIO(encoded(photo, "jpeg", exif=exif, quality=95))))
    assert np.array(upright)[:, 0].mean() > 240
    assert np.array(upright)[:, -1].mean() < 15


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"no image", "cannot identify image file"),
        (encoded(Image.new("RGB", (50, 50)))[:60], ""),
        (encoded(Image.new("F", (5, 5)), "tiff"), "floating-point"),
    ],
)
def test_a_corrupt_image_is_named_by_its_row(file, reason):
    good = encoded(Image.new("RGB", (10, 10)))
    images = Images(stored([good, good, file]), torch.tensor([1, 2]), 8)
    images.keep()
    with pytest.raises(DataError) as caught:
        images.pixels(torch.tensor([0, 1]))
    message = str(caught.value)
    assert message.startswith("row 2 of photos.parquet: is no image that can be decoded")
    assert message.endswith("repair or remove it, or leave all such out with data.on_bad: skip")
    assert reason in message
    assert "\n" not in message


class Counting(InMemory):
    """Counts how often images are decoded."""

    decoded = 0

    def image(self, row: int) -> Image.Image:
        self.decoded += 1
        return super().image(row)


def counting(count: int = 20) -> Counting:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Counting(pixels, torch.arange(count) % 3)


def test_kept_images_are_decoded_once_when_first_used():
    source = counting()
    rows = torch.arange(5, 15)
    images, plain = Images(source, rows, 8), Images(counting(), rows, 8)
    images.keep()
    assert source.decoded == 0
    assert images.labels.tolist() == (rows % 3).tolist()
    assert images.nbytes == 10 * 3 * 64
    for wanted in ([0, 3], [3, 9, 0], [3, 3], list(range(10))):
        assert torch.equal(images.pixels(torch.tensor(wanted)), plain.pixels(torch.tensor(wanted)))
    assert source.decoded == 10


def test_what_is_returned_is_a_copy():
    images = Images(counting(), torch.arange(20), 8)
    images.keep()
    first = images.pixels(torch.tensor([1]))
    expected = first.clone()
    first.zero_()
    assert torch.equal(images.pixels(torch.tensor([1])), expected)


def test_without_keeping_nothing_is_kept():
    source = counting()
    images = Images(source, torch.arange(20), 8)
    for _ in range(3):
        images.pixels(torch.tensor([4]))
    assert source.decoded == 3


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="processes share no memory here")
def test_loader_processes_decode_for_all():
    source = counting()
    images = Images(source, torch.arange(20), 8)
    images.keep()
    list(batches(images, torch.arange(20), 8, Key(0), workers=2, epochs=1, mean=(0, 0, 0), std=(1, 1, 1)))
    found = images.pixels(torch.arange(20))
    assert source.decoded == 0
    assert torch.equal(found, Images(counting(), torch.arange(20), 8).pixels(torch.arange(20)))


def test_images_travel_to_a_spawned_process():
    images = Images(counting(), torch.arange(20), 8)
    images.keep()
    expected = images.pixels(torch.arange(20))
    assert torch.equal(pickle.loads(pickle.dumps(images)).pixels(torch.arange(20)), expected)
