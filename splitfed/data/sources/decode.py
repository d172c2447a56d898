"""From an encoded image to upright RGB of 8 bits, by one rule for all images; what it would spoil is refused."""

import io

import numpy as np
from PIL import Image

_WHITE = 65535.0  # of grey images of more than 8 bits, where nothing else is said
_FEWEST_LEVELS = 16  # of 256
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(content: bytes, white: float | None = None) -> Image.Image:
    """Decode an image file and return its first picture as `to_rgb` does. Raises what Pillow raises, and ValueError."""
    with Image.open(io.BytesIO(content)) as image:
        return to_rgb(image, white)


def to_rgb(image: Image.Image, white: float | None = None) -> Image.Image:
    """Return the image upright and as RGB of 8 bits.

    It is turned as its EXIF orientation says, if that is one of the eight; no other tag is looked at. Grey of more than
    8 bits, whole numbers or floating point, is scaled so that 0 is black and `white` is white: without it, 65535 for
    whole numbers. Palettes and CMYK become the colours that they stand for, and transparency is taken away.

    Raises ValueError for an image of which next to nothing would be left: values above `white` or below 0, fewer than
    16 of 256 levels where no `white` is set, floating-point numbers without a `white`, colours that transparency
    alone gives a shape.
    """
    deep = _is_deep_colour(image)
    turn = _TURNS.get(_orientation(image))
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey(image, white)
    elif image.mode == "P":  # straight to RGB, Pillow warns about some palettes
        image = image.convert("RGBA")
    if "A" in image.mode and image.mode != "LAB":
        _check_transparency(image)
    image = image.convert("RGB")
    if deep and max(high for _, high in _extrema(image)) < _FEWEST_LEVELS:
        raise ValueError(
            f"its 16 bits a colour hold values so small that fewer than {_FEWEST_LEVELS} of 256 levels would be left: "
            "save it with 8 bits"
        )
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION)
        return int(found) if found is not None else 1
    except Exception:  # an EXIF block may hold anything, and no viewer minds
        return 1


def _grey(image: Image.Image, white: float | None) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are not finite numbers")
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and white is None:
        raise ValueError("its pixels are floating-point numbers of unknown range: set data.white to what is white")
    top = _WHITE if white is None else white
    if low < 0 or high > top:
        raise ValueError(
            f"its pixels are from {low:g} to {high:g}, where 0 is black and {top:g} is white: set data.white"
        )
    if white is None and high * 256 < top * _FEWEST_LEVELS:
        raise ValueError(
            f"its pixels are up to {high:g} where {top:g} is white, so fewer than {_FEWEST_LEVELS} of 256 levels would "
            "be left: set data.white, for instance to 4095 for 12 bits"
        )
    return Image.fromarray(np.floor(values * (256 / (top + 1) if top >= 255 else 255 / top)).astype(np.uint8))


def _is_deep_colour(image: Image.Image) -> bool:
    """Tell whether Pillow drops the lower half of 16 bits a colour, as it has no mode for them."""
    tiles = getattr(image, "tile", None) or []
    arguments = tiles[0][3] if tiles else None
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw, str) and ";16" in raw and not image.mode.startswith("I")


def _check_transparency(image: Image.Image) -> None:
    """Raise ValueError for an image that is one colour throughout, of which transparency shows a part."""
    *colours, alpha = _extrema(image)
    if alpha[0] != alpha[1] and all(low == high for low, high in colours):
        raise ValueError("only its transparency has a shape, and it is taken away: put it on a background")


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    found = image.getextrema()
    return list(found) if isinstance(found[0], tuple) else [found]
