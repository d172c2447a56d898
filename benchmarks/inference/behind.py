"""What exits behind the cut save at the server, and what they cost: `splitfed predict HOST --confidence`, with and
without them.

    python benchmarks/inference/behind.py RUN [--sure 0.7,0.8,0.9,0.95] [--rate run] [--batch 1]

RUN is a run's folder with exits after blocks of its front and of its back, and its data are here. Its test split goes
to a `serve-model` on this machine, image by image. Printed are, for each confidence, what share is answered by exits of
the client, of the server and by the whole model; and with the server's exits, and in brackets for a client that does
not ask them, the accuracy, the bytes of an image that is sent, and the operations that it takes at the server.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image

from splitfed import RemotePredictor
from splitfed.inference.exits import heads, operations
from splitfed.inference.remote.bundle import Bundle, read_bundle
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.serve import Service
from splitfed.run.origin import load_data


@dataclass(frozen=True, slots=True)
class Answers:
    """Of some images: the block whose exit answered each (None is the whole model), the share of right answers, and the
    bytes of all that crossed."""

    exits: list[int | None]
    accuracy: float
    bytes: int


def ask(service: Service, folder: Path, images: Sequence[Image.Image], labels: Sequence[str], **how) -> Answers:
    """Let a client answer for images that are known to be of these classes."""
    with RemotePredictor(f"127.0.0.1:{service.port}", state=folder, **how) as predictor:
        found = predictor.predict(list(images))
        crossed = sum(sent for (_, role), sent in predictor.bytes.items() if role != "front")
    right = [one.label == label for one, label in zip(found, labels, strict=True)]
    return Answers([one.exit for one in found], sum(right) / len(right), crossed)


def unaware(path: Path, device: str | None = None) -> Bundle:
    """Read a bundle as a client does that asks no exits of the server."""
    return replace(read_bundle(path, device), behind=())


def numbers(text: str) -> list[float]:
    """Read numbers with commas between them."""
    return [float(one) for one in text.split(",")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sure", type=numbers, default="0.7,0.8,0.9,0.95")
    parser.add_argument("--rate", default="run")
    parser.add_argument("--batch", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = RunModel.read(given.run)
    data, exits, cut = load_data(model.scenario).test, heads(model), model.trunk.cut
    labels = [model.classes[label] for label in data.labels.tolist()]
    images = [data.source.image(row) for row in range(len(data))]
    so_far = operations(model, exits, exits.blocks)
    at_server = {block: so_far[block] - so_far[cut] for block in exits.blocks} | {None: so_far[-1] - so_far[cut]}
    print(f"{'sure':>5}  {'client':>7} {'server':>7} {'whole':>7}   {'accuracy':>17}   {'bytes sent':>15}   operations")
    with tempfile.TemporaryDirectory() as folder, Service(
        given.run, port=0, metrics_port=0, rates=[given.rate], batch=given.batch, ledger=Path(folder) / "ledger"
    ) as service:  # fmt: skip
        for sure in given.sure:
            now = ask(service, Path(folder), images, labels, confidence=sure, batch=given.batch)
            with patch("splitfed.inference.remote.predictor.read_bundle", unaware):
                without = ask(service, Path(folder), images, labels, confidence=sure, batch=given.batch)
            told = []
            for one in (now, without):
                sent = Counter(block for block in one.exits if block is None or block > cut)
                count = max(sent.total(), 1)
                told.append((
                    one.accuracy, one.bytes / count, sum(at_server[block] * n for block, n in sent.items()) / count,
                ))  # fmt: skip
            count, whole = len(images), now.exits.count(None)
            client = sum(block is not None and block <= cut for block in now.exits)
            shares = " ".join(f"{n / count:7.1%}" for n in (client, count - client - whole, whole))
            (right, sent, ops), (right_, sent_, ops_) = told
            print(
                f"{sure:5g}  {shares}   {right:7.1%} ({right_:6.1%})   {sent:6.0f} ({sent_:5.0f})   "
                f"{ops / 1e6:.2f} M ({ops_ / 1e6:.2f} M)"
            )


if __name__ == "__main__":
    main()
