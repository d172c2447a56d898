"""Common corruptions of images, in five severities each: what another camera, another light or a file made small does.

Kinds and steps follow ImageNet-C (arXiv 1903.12261), but lengths are shares of an image's short side, so that small
images are not wiped out.
"""

import io
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFilter

Corruption = Literal["noise", "blur", "brightness", "contrast", "jpeg", "rotation", "hue"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
SEVERITIES = 5

# One step for each severity from 1 on.
_NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)  # deviation, where white is 1
_BLUR = (0.006, 0.010, 0.016, 0.022, 0.030)  # deviation, in short sides
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # what is added, where white is 1
_CONTRAST = (0.75, 0.55, 0.40, 0.28, 0.18)  # what is left of it
_JPEG = (30, 22, 15, 10, 6)  # Pillow's quality
_ROTATION = (18, 36, 54, 72, 90)  # degrees
_HUE = (30, 60, 90, 120, 150)  # degrees of the colour circle


def corrupt(
    image: np.ndarray, kind: Corruption, severity: int, random: np.random.Generator, direction: Literal[1, -1] = 1
) -> np.ndarray:
    """Return a corrupted copy of an image, uint8 `[H, W, 3]`; with severity 0 the image itself.

    `direction` -1 goes the other way where there is one: darker, with more contrast, turned clockwise, other hues. Only
    noise draws from `random`. Raises `ValueError` for a severity that is not one of 0 to 5.
    """
    if not 0 <= severity <= SEVERITIES:
        raise ValueError(f"severity: {severity} is not from 0 to {SEVERITIES}")
    return _KINDS[kind](image, severity - 1, random, direction) if severity else image


def _noise(image: np.ndarray, step: int, random: np.random.Generator, direction: int) -> np.ndarray:
    return _rounded(image + 255 * _NOISE[step] * random.standard_normal(image.shape))


def _blur(image: np.ndarray, step: int, random: np.random.Generator, direction: int) -> np.ndarray:
    deviation = _BLUR[step] * min(image.shape[:2])
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(deviation)))


def _brightness(image: np.ndarray, step: int, random: np.random.Generator, direction: int) -> np.ndarray:
    return _rounded(image + direction * 255 * _BRIGHTNESS[step])


def _contrast(image: np.ndarray, step: int, random: np.random.Generator, direction: int) -> np.ndarray:
    mean = image.mean((0, 1))
    return _rounded(mean + (image - mean) * _CONTRAST[step] ** direction)


def _jpeg(image: np.ndarray, step: int, random: np.random.Generator, direction: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG[step])
    return np.array(Image.open(file))


def _rotation(image: np.ndarray, step: int, random: np.random.Generator, direction: int) -> np.ndarray:
    """Turn about the middle, counterclockwise; what comes in at the corners is mirrored at the edges."""
    height, width = image.shape[:2]
    margin = int(np.hypot(height, width) - min(height, width)) // 2 + 1
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    turned = Image.fromarray(wide).rotate(direction * _ROTATION[step], Image.Resampling.BILINEAR)
    return np.array(turned)[margin : margin + height, margin : margin + width]


def _hue(image: np.ndarray, step: int, random: np.random.Generator, direction: int) -> np.ndarray:
    """Turn the colour circle; grey stays as it is."""
    hue, *others = Image.fromarray(image).convert("HSV").split()
    turn = direction * round(_HUE[step] * 256 / 360)
    turned = Image.fromarray(((np.asarray(hue).astype(np.int16) + turn) % 256).astype(np.uint8))
    return np.array(Image.merge("HSV", (turned, *others)).convert("RGB"))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


_KINDS: dict[Corruption, Callable[[np.ndarray, int, np.random.Generator, int], np.ndarray]] = {
    "noise": _noise, "blur": _blur, "brightness": _brightness, "contrast": _contrast, "jpeg": _jpeg,
    "rotation": _rotation, "hue": _hue,
}  # fmt: skip
