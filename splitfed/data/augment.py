"""Random changes to training images, drawn from keys; no global random state decides or is changed."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from splitfed.data.settings import Augment, DataConfig
from splitfed.seeds import Key


def flip(pixels: Tensor, numbers: np.ndarray) -> Tensor:
    """Mirror the images left to right whose numbers are odd. `pixels` is uint8 `[B, 3, S, S]`, `numbers` `[B]`."""
    chosen = numbers & 1 == 1
    out = pixels.numpy().copy()
    out[chosen] = out[chosen][..., ::-1]  # numpy mirrors bytes several times faster than torch
    return torch.from_numpy(out)


def paper(pixels: Tensor, numbers: np.ndarray) -> Tensor:
    """Augment as for DeiT in the ADC paper (arXiv 2509.15058, section IV): mirroring, RandAugment with 2 operations of
    magnitude 9 (arXiv 1909.13719, timm's), and brightness, contrast and saturation each changed by up to 40 %.

    `pixels` is uint8 `[B, 3, S, S]`; each image's number, of `[B]`, seeds what becomes of it.
    """
    pixels = flip(pixels, numbers)
    out = torch.empty_like(pixels)
    with _lent_global_randomness() as seed:
        operations = _rand_augment()  # in here, as what it imports draws numbers
        for place, number in enumerate(numbers.tolist()):
            seed(number >> 1)  # the lowest bit has decided about mirroring
            image = operations(Image.fromarray(pixels[place].permute(1, 2, 0).numpy()))
            image = _colour_jitter(image, 0.4)
            out[place] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return out


def anew(name: Augment, pixels: Tensor, start: int, key: Key) -> Tensor:
    """Change images as a scenario's `data.augment` says: uint8 `[B, 3, S, S]`, those from place `start` on of the pass
    over the data that `key` belongs to."""
    if name == "none":
        return pixels
    numbers = draw_seeds(key, start, len(pixels))
    return flip(pixels, numbers) if name == "flip" else paper(pixels, numbers)


@dataclass(frozen=True, slots=True)
class Variants:
    """An image has `count` fixed variants, whatever pass shows them: variant 0 is the image as it is, all others depend
    on `key`, sample and variant alone."""

    augment: Augment
    count: int
    key: Key

    def of(self, pixels: Tensor, samples: Tensor, variants: Tensor) -> Tensor:
        """Return images as their variants, int64 `[B]` below `count`, show them: uint8 `[B, 3, S, S]`, of the samples
        that `samples`, int64 `[B]`, numbers."""
        if self.augment == "flip":
            return flip(pixels, variants.numpy())
        if self.augment == "none" or not bool(variants.any()):
            return pixels
        changed = variants > 0
        each = zip(samples[changed].tolist(), variants[changed].tolist(), strict=True)
        numbers = [draw_seeds(self.key.at(variant), sample, 1) for sample, variant in each]
        out = pixels.clone()
        out[changed] = paper(pixels[changed], np.concatenate(numbers))
        return out

    def draw(self, key: Key, samples: int) -> Tensor:
        """Return which variant each of so many samples shows in the pass that `key` belongs to, int64 `[samples]`."""
        return torch.from_numpy((draw_seeds(key, 0, samples) % np.uint64(self.count)).astype(np.int64))


def variants_of(config: DataConfig, key: Key) -> Variants | None:
    """Return the fixed variants that images have in a run with this key; None where each pass changes them anew."""
    return None if config.variants is None else Variants(config.augment, config.variants, key.at("variants"))


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
