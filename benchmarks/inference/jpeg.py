"""What to send the images themselves costs, and how they are answered then: the yardstick of `splitfed tradeoff`.

    python benchmarks/inference/jpeg.py RUN [RUN ...] [--quality 95,75,50,25,10] [--formats jpeg,webp] [--threads 1]
        [--set data.path=FOLDER]

Each image of a run's test split, in the size that it has in the data set, is written as a file of each quality, read
again, resized as the run's data are, and answered by the whole model. Printed are the mean bytes of a file and the
accuracy, for each run and, of several, the mean, with the lowest and the highest accuracy.
"""

import argparse
import io
import statistics
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from splitfed.data.batches import normaliser
from splitfed.inference.pictures import read
from splitfed.inference.run_model import RunModel
from splitfed.run.origin import load_data

_BATCH = 64


def written(image: Image.Image, kind: str, quality: int) -> tuple[int, Image.Image]:
    """Return the bytes of an image's file, and what is read from it."""
    file = io.BytesIO()
    image.convert("RGB").save(file, kind.upper(), quality=quality)
    return file.tell(), Image.open(io.BytesIO(file.getvalue()))


@torch.no_grad()
def accuracy(model: RunModel, pixels: Tensor, labels: Tensor) -> float:
    """Return the share of images, uint8 `[N, 3, S, S]`, that the whole model answers rightly."""
    trunk, normalise, right = model.trunk, normaliser(model.mean, model.std), 0
    for part, own in zip(pixels.split(_BATCH), labels.split(_BATCH), strict=True):
        made = trunk.end(trunk.go_on(0, trunk.begin(normalise(part).to(model.device))))
        right += int((made.argmax(1).cpu() == own).sum())
    return right / len(labels)


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    return [int(one) for one in text.split(",")]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--quality", type=numbers, default="95,75,50,25,10")
    parser.add_argument("--formats", default="jpeg,webp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", help="a value of the runs' scenarios, such as data.path=FOLDER")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for run in given.runs:
        model = RunModel.read(run, overrides=given.set)
        data = load_data(model.scenario)
        size, white, source = model.scenario.model.image_size, model.scenario.data.white, data.test.source
        whole = accuracy(model, data.test.pixels(torch.arange(len(data.test))), data.test.labels)
        stored = data.test.stored_bytes(torch.arange(len(data.test))) / len(data.test)
        print(f"{run}: as stored {stored / 1e3:.2f} kB, {whole:.1%}", flush=True)
        for kind in given.formats.split(","):
            for quality in given.quality:
                files = [written(source.image(row), kind, quality) for row in range(len(source))]
                pictures = [one.pixels for one in read([image for _, image in files], size, white, _BATCH)]
                right = accuracy(model, torch.stack([one for one in pictures if one is not None]), data.test.labels)
                found.setdefault((kind, quality), []).append((statistics.mean(count for count, _ in files), right))
    for (kind, quality), rows in found.items():
        sizes, rights = zip(*rows, strict=True)
        print(
            f"{kind} {quality:3}: {statistics.mean(sizes) / 1e3:.2f} kB, {statistics.mean(rights):.1%}"
            f" ({min(rights):.1%} to {max(rights):.1%})"
        )


if __name__ == "__main__":
    main()
