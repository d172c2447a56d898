"""Evaluation of the whole model, where the back lives; nothing crosses the cut.

A reducer takes no part in it, but for layers of its own: these belong to the model, which is then front, encoder,
decoder, back, with the encoder that the server knows.
"""

import torch
from torch import nn

from splitfed.batches import batches
from splitfed.images import Images
from splitfed.parts import Parts
from splitfed.precision import autocast
from splitfed.seeds import Key


def evaluate(
    parts: Parts, images: Images, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...],
    device: torch.device, precision: str, workers: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Return the mean loss and the accuracy (a share in [0, 1]) over all images."""
    was_training = [part.training for part in parts]
    model = parts.whole().eval()
    loss, right = 0.0, 0
    rows = torch.arange(len(images))
    with torch.inference_mode():
        for batch in batches(
            images, rows, batch_size, Key(0), augment="none", workers=workers, mean=mean, std=std, epochs=1,
            shuffle=False,
        ):  # fmt: skip
            labels = batch.labels.to(device)
            with autocast(precision, device):
                logits = model(batch.images.to(device))
            loss += float(nn.functional.cross_entropy(logits.float(), labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
    for part, training in zip(parts, was_training, strict=True):
        part.train(training)
    return loss / len(images), right / len(images)
