"""Random changes to training images, drawn from keys; no global random state decides or is changed."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from splitfed.data.settings import Augment
from splitfed.seeds import Key


def nothing(pixels: Tensor, start: int, key: Key) -> Tensor:
    """Return the images as they are."""
    return pixels


def flip(pixels: Tensor, start: int, key: Key) -> Tensor:
    """Mirror each image left to right, or not, with equal chances.

    `pixels` is uint8 `[B, 3, S, S]`, the images from place `start` on of the pass over the data that `key` belongs to.
    """
    chosen = draw_seeds(key, start, len(pixels)) & 1 == 1
    out = pixels.numpy().copy()
    out[chosen] = out[chosen][..., ::-1]  # numpy mirrors bytes several times faster than torch
    return torch.from_numpy(out)


def paper(pixels: Tensor, start: int, key: Key) -> Tensor:
    """Augment as for DeiT in the ADC paper (arXiv 2509.15058, section IV): mirroring, RandAugment with 2 operations of
    magnitude 9 (arXiv 1909.13719, timm's), and brightness, contrast and saturation each changed by up to 40 %.

    `pixels` is uint8 `[B, 3, S, S]`, the images from place `start` on of the pass over the data that `key` belongs to.
    """
    pixels = flip(pixels, start, key)
    operations = _rand_augment()
    out = torch.empty_like(pixels)
    with _lent_global_randomness() as seed:
        for place, number in enumerate(draw_seeds(key, start, len(pixels)).tolist()):
            seed(number >> 1)  # the lowest bit has decided about mirroring
            image = operations(Image.fromarray(pixels[place].permute(1, 2, 0).numpy()))
            image = _colour_jitter(image, 0.4)
            out[place] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return out


_AUGMENTERS = {"none": nothing, "flip": flip, "paper": paper}


def augmenter(name: Augment) -> Callable[[Tensor, int, Key], Tensor]:
    """Return the function that a scenario's `data.augment` names."""
    return _AUGMENTERS[name]


def draw_seeds(key: Key, start: int, count: int) -> np.ndarray:
    """Return a number in [0, 2**33) for each place of a pass from `start` on, as if drawn one after the other."""
    bits = np.random.Philox(key.integer())
    bits.advance(start // 4)  # a step of this counter gives four numbers
    return bits.random_raw(start % 4 + count)[start % 4 :] >> np.uint64(31)


def _colour_jitter(image: Image.Image, strength: float) -> Image.Image:
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    random.shuffle(enhancers)
    for enhancer in enhancers:
        image = enhancer(image).enhance(random.uniform(1 - strength, 1 + strength))
    return image


@cache
def _rand_augment() -> Callable[[Image.Image], Image.Image]:
    from splitfed.model._torchvision import declare_missing

    declare_missing()
    from timm.data.auto_augment import rand_augment_transform

    return rand_augment_transform("rand-m9-n2", {"img_mean": (128, 128, 128)})  # what turns into view is grey


@contextmanager
def _lent_global_randomness() -> Iterator[Callable[[int], Any]]:
    """Lend the global generators of `random` and numpy, which timm insists on, and put them back as they were."""
    with _lock:
        before, numpy_before = random.getstate(), np.random.get_state()
        try:
            yield lambda number: (random.seed(number), np.random.seed(number))
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # where processes can fork at all
    # One forked while another thread holds the lock would wait for it for ever.
    os.register_at_fork(after_in_child=_renew_lock)
