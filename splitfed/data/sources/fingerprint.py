"""Whether two data sets are the same: their sizes, their classes, and hashes of their labels and of some images."""

import hashlib
from collections.abc import Sequence

import numpy as np

from splitfed.data.settings import Fingerprint
from splitfed.data.sources.base import Source
from splitfed.data.sources.labels import listed, plain

_SAMPLE = 16  # images of each split whose bytes are hashed


def take(train: Source, test: Source | None, classes: Sequence[str]) -> Fingerprint:
    """Return the fingerprint of a data set; a client's own images have no test split. It says nothing of their place: a
    copy has the same one."""
    labels, images = hashlib.sha256(), hashlib.sha256()
    for source in (train,) if test is None else (train, test):
        numbers = source.labels.numpy().astype("<i8")
        labels.update(len(numbers).to_bytes(8, "little") + numbers.tobytes())
        for row in np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(int).tolist():
            content = _content(source, row)
            images.update(len(content).to_bytes(8, "little") + content)
    return Fingerprint(
        train=len(train), test=0 if test is None else len(test), classes=tuple(classes), labels=labels.hexdigest()[:32],
        images=images.hexdigest()[:32],
    )  # fmt: skip


def differences(found: Fingerprint, expected: Fingerprint) -> str:
    """Return in what one data set differs from the expected one, in words; nothing where it does not."""
    for split, words in (("train", "training"), ("test", "test")):
        here, there = getattr(found, split), getattr(expected, split)
        if here != there:
            return f"it has {here:,} {words} images, not {there:,}"
    if list(map(plain, found.classes)) != list(map(plain, expected.classes)):
        return f"its classes are {listed(found.classes)}, not {listed(expected.classes)}"
    if found.labels != expected.labels:
        return "its images have other labels, or another order"
    if found.images != expected.images:
        return "its images are others"
    return ""


def _content(source: Source, row: int) -> bytes:
    try:
        return source.content(row)
    except (OSError, ValueError):  # a cell without an image, a link to nothing: told where images are decoded
        return b""
