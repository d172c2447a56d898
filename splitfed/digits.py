"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, in the package, for what must run anywhere."""

import numpy as np
import torch

from splitfed.seeds import Key
from splitfed.sources import InMemory
from splitfed.spread import spread


def open_digits() -> tuple[InMemory, InMemory, list[str]]:
    """Return the training images (1,438), the test images (359) and the class names.

    The set comes undivided. Which fifth is for testing is fixed, whatever a run's seed, and stratified by class.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # the values are 0 to 16
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    order = spread(labels, Key(0).at("digits"))
    count = len(order) // 5
    test, train = order[:count].sort().values, order[count:].sort().values
    return InMemory(pixels[train], labels[train]), InMemory(pixels[test], labels[test]), [str(i) for i in range(10)]
