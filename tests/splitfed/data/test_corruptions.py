"""Corruptions of images: what each does, and that severities are an order."""

import colorsys
import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from splitfed.data.corruptions import CORRUPTIONS, corrupt
from splitfed.seeds import Key

KEY = Key(3).at("corruptions")


def photo(height: int = 48, width: int = 48) -> np.ndarray:
    """Return waves of colour over a slope, with some fine grain: something for each corruption to change."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    red = 90 + 60 * x + 40 * np.sin(9 * y)
    blue = 60 + 90 * x * y
    grain = KEY.numpy().normal(0, 6, (height, width, 3))
    return np.clip(np.stack([red, 120 + 30 * np.cos(20 * x), blue], -1) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_severities_are_an_order_that_begins_with_the_image_itself(kind) -> None:
    for direction in (1, -1):
        image = photo()
        before = image.copy()
        made = [corrupt(image, kind, severity, KEY.numpy(), direction) for severity in range(6)]
        assert np.array_equal(made[0], before)
        assert np.array_equal(image, before)
        away = [float(np.abs(one.astype(int) - before).mean()) for one in made]
        assert all(less < more for less, more in itertools.pairwise(away)), away
        assert all(one.dtype == np.uint8 and one.shape == before.shape for one in made)
        assert np.array_equal(made[3], corrupt(image, kind, 3, KEY.numpy(), direction))


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (20, 33)])
def test_any_size_is_taken(kind, size: tuple[int, int]) -> None:
    image = photo(*size)
    image.setflags(write=False)
    assert corrupt(image[:, ::-1], kind, 5, KEY.numpy()).shape == (*size, 3)


def test_noise_has_its_deviation_and_is_drawn_from_the_generator() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = corrupt(grey, "noise", 2, KEY.numpy()).astype(float)
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.2)
    assert not np.array_equal(noisy, corrupt(grey, "noise", 2, KEY.at("else").numpy()))


def test_blur_is_a_gaussian_one() -> None:
    image = photo(200, 100)
    wanted = gaussian_filter(image.astype(float), (2.2, 2.2, 0), mode="nearest")
    assert np.abs(corrupt(image, "blur", 4, KEY.numpy()) - wanted).mean() < 1.0


def test_brightness_and_contrast_change_mean_and_deviation_alone() -> None:
    image = photo().astype(float)
    assert np.allclose(corrupt(photo(), "brightness", 1, KEY.numpy()) - image, 25.5, atol=0.5)
    assert np.allclose(corrupt(photo(), "brightness", 1, KEY.numpy(), -1) - image, -25.5, atol=0.5)
    flat = corrupt(photo(), "contrast", 3, KEY.numpy()).astype(float)
    assert flat.mean() == pytest.approx(image.mean(), abs=0.1)
    assert flat.std((0, 1)) == pytest.approx(0.4 * image.std((0, 1)), rel=0.02)


@pytest.mark.parametrize(("direction", "quarters"), [(1, 1), (-1, 3)])
def test_the_last_rotation_is_a_quarter_turn(direction, quarters: int) -> None:
    assert np.array_equal(corrupt(photo(), "rotation", 5, KEY.numpy(), direction), np.rot90(photo(), quarters))


def test_rotation_keeps_the_middle_and_leaves_no_black_corner() -> None:
    image = np.full((31, 31, 3), 200, np.uint8)
    image[15, 15] = 0
    turned = corrupt(image, "rotation", 2, KEY.numpy())
    assert (turned[15, 15] == 0).all()
    assert (turned[[0, 0, -1, -1], [0, -1, 0, -1]] == 200).all()


def test_hue_turns_the_colour_circle_and_leaves_grey() -> None:
    colours = np.array([[[200, 40, 40], [40, 200, 90], [90, 90, 90]]], np.uint8)
    turned = corrupt(colours, "hue", 4, KEY.numpy())
    for before, after in zip(colours[0, :2] / 255, turned[0, :2] / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        wanted = colorsys.hsv_to_rgb((hue + 1 / 3) % 1, saturation, value)
        assert np.allclose(after, wanted, atol=0.04)
    assert (turned[0, 2] == 90).all()


def test_jpeg_leaves_what_is_flat() -> None:
    flat = np.full((32, 32, 3), 128, np.uint8)
    assert np.abs(corrupt(flat, "jpeg", 5, KEY.numpy()).astype(int) - 128).max() <= 1


@pytest.mark.parametrize("severity", [-1, 6])
def test_other_severities_are_refused(severity: int) -> None:
    with pytest.raises(ValueError, match="severity"):
        corrupt(photo(), "blur", severity, KEY.numpy())
