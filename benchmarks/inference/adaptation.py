"""What adaptation in the field brings: accuracy on corrupted images before and after, and the bytes of what is kept.

    python benchmarks/inference/adaptation.py RUN [--norms whole] [--corruptions noise,blur,brightness,jpeg]
        [--severities 1,2,3,4,5] [--images 2000] [--seeds 0,1,2] [--select '{kind: entropy, high: 0.4, low: 0.02}']
        [--adapt '{batch: 32}'] [--threads 1] [--json FILE] [--set data.path=FOLDER]

RUN is a run's folder, with exits in its front. Its test split, in an order of the seed, is corrupted; the first images
are what clients see, and from what they keep norms are adapted, as `serve-model --adapt` does, one step after the
other; all the others tell the accuracy, of the last exit of the front and of the whole model. That is done by `entropy`
and by drawing as many at `random`. Printed are means over the seeds; bytes are lengths of frames: with `whole` those of
kept images and of the norms that come back, with `back` of the requests that hold what is kept, which are sent anyway.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from splitfed.config import read_option
from splitfed.data.batches import normaliser
from splitfed.data.corruptions import corrupt
from splitfed.data.images import Images
from splitfed.data.partitions.evenly import CORRUPTIONS
from splitfed.inference.asking import Asking
from splitfed.inference.exits import heads
from splitfed.inference.rates import rates
from splitfed.inference.remote.bundle import pack_norms
from splitfed.inference.remote.keeping import pack_image, unpack_image
from splitfed.inference.remote.selecting import Select, Selector
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.adaptation.kept import Kept, Replay
from splitfed.inference.service.adaptation.learning import Pupil
from splitfed.inference.service.adaptation.models import OtherModel, OwnModel
from splitfed.inference.service.adaptation.settings import Adapt, AdaptConfig
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.exits.heads import Exits
from splitfed.run.origin import load_data
from splitfed.seeds import Key

_BATCH = 64
PLAIN = "8 bits={reducer: none, smashed: {codec: {kind: uniform, bits: 8}}}"


def corrupted(images: Images, rows: Tensor, kind: str, severity: int, key: Key) -> Tensor:
    """Return these rows of images, each corrupted, uint8 `[N, 3, S, S]`."""
    found = []
    for row, image in zip(rows.tolist(), images.pixels(rows), strict=True):
        pixels = corrupt(image.permute(1, 2, 0).numpy(), kind, severity, key.at(kind, row).numpy())  # type: ignore[arg-type]
        found.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    return torch.stack(found)


class Front:
    """A front as a client has it: what its exits say of images, and how these cross."""

    def __init__(self, model: RunModel, exits: Exits, rate: str) -> None:
        self._model, self._exits, self._trunk = model, exits, model.trunk
        self._normalise = normaliser(model.mean, model.std)
        self._rate = rates(model.scenario.compression, [rate])[0]
        geometry = self._trunk.front.geometry(_BATCH, len(model.classes))
        self._asking = Asking(self._rate.compression, self._trunk, geometry, model.device)
        needs = self._asking.needs_attention(self._trunk.cut)
        self._attention = ClsAttention(self._trunk.front) if needs else None

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the probabilities of the last exit and of the whole model, `[B, C]` each, what the front made, and
        what its class token looked at."""
        trunk, logits, said = self._trunk, [], None
        tokens = trunk.begin(self._normalise(images).to(self._model.device))
        for block in range(1, trunk.cut + 1):
            tokens = trunk.block(block, tokens)
            if block in self._exits.blocks:
                before = logits[-1] if logits else None
                logits.append(self._exits.head(len(logits), self._exits.look(tokens), before))
                said = self._exits.answer(len(logits) - 1, logits)
        assert said is not None
        looked = self._attention.read() if self._attention else None
        whole = trunk.end(trunk.go_on(trunk.cut, trunk.cross(tokens)))
        return said.float(), whole.float().softmax(1), tokens, looked

    def cross(self, tokens: Tensor, looked: Tensor | None, number: int) -> tuple[int, Tensor]:
        """Send what the front made of one image, and return the bytes of the request and what arrives."""
        packed = self._asking.pack(
            tokens[None], self._trunk.cut, Key(0).at("ask", number), number=number, model="0" * 16, kept=[True],
            attention=None if looked is None else (lambda: looked[None]),
        )  # fmt: skip
        return packed.total, self._asking.unpack(packed.buffer).tokens[0]

    def right(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return the accuracies of the last exit and of the whole model."""
        exit, whole = 0, 0
        for part, own in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
            said, all_said, *_ = self.look(part)
            exit += int((said.argmax(1).cpu() == own).sum())
            whole += int((all_said.argmax(1).cpu() == own).sum())
        return exit / len(labels), whole / len(labels)


class Exactly:
    """Keeps so many of some images, drawn from all of them."""

    def __init__(self, count: int, images: int, key: Key) -> None:
        self._drawn, self._next = torch.zeros(images, dtype=torch.bool), 0
        self._drawn[torch.randperm(images, generator=key.generator())[:count]] = True

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Tell which of the next images are kept, bool `[B]`."""
        start, self._next = self._next, self._next + len(probabilities)
        return self._drawn[start : self._next]


def adapt(
    model: RunModel,
    exits: Exits,
    stream: Tensor,
    select: Callable[[Tensor], Tensor],
    settings: AdaptConfig,
    rate: str,
    key: Key,
) -> tuple[RunModel, int, int, list[int]]:
    """Adapt a model by what a client keeps of a stream of images, batch by batch; return it, the bytes of what was kept
    and of norms that came back, and the places of what was kept. The client has the new norms after each `publish`
    steps."""
    side = model.scenario.model.image_size
    student = OwnModel(model, exits, settings.norms)
    if settings.teacher is None:
        teacher = OwnModel(model, None, settings.norms)
    else:
        teacher = OtherModel(settings.teacher, len(model.classes), side, model.device)
    pupil, replay = Pupil(None, student, teacher, settings, key), Replay(settings.buffer)
    front, waiting, up, down = Front(model, exits, rate), list[Kept](), 0, 0
    places: list[int] = []
    for number, images in enumerate(stream.split(_BATCH)):
        said, _, tokens, looked = front.look(images)
        for row in select(said).nonzero().flatten().tolist():
            places.append(number * _BATCH + row)
            if settings.norms == "whole":
                packed = pack_image(images[row], row)
                size, kept = packed.total, Kept(0, unpack_image(packed.buffer, side)[2])
            else:
                size, arrived = front.cross(tokens[row], None if looked is None else looked[row], number * _BATCH + row)
                kept = Kept(model.trunk.cut, arrived.cpu())
            up += size
            waiting.append(kept)
            if len(waiting) == settings.batch:
                pupil.learn(waiting, replay)
                waiting = []
                if pupil.steps % settings.publish == 0 and settings.norms == "whole":
                    down += len(pack_norms(pupil.student.norms))
                    front = Front(OwnModel(student.model, exits, settings.norms).model, exits, rate)
    return student.model, up, down, places


def measured(arguments: argparse.Namespace) -> Iterator[dict]:
    """Yield a row for each corruption, severity, seed and way to select."""
    model = RunModel.read(arguments.run, overrides=arguments.set)
    exits, images = heads(model), load_data(model.scenario).test
    settings = read_option("--adapt", {**json.loads(arguments.adapt), "norms": arguments.norms}, Adapt)
    select = read_option("--select", arguments.select, Select)
    for kind in arguments.corruptions.split(","):
        for severity in arguments.severities:
            for seed in arguments.seeds:
                key = Key(seed).at("adaptation")
                order = torch.randperm(len(images), generator=key.at("order").generator())
                seen, others = order[: arguments.images], order[arguments.images :]
                stream = corrupted(images, seen, kind, severity, key)
                measure = corrupted(images, others, kind, severity, key), images.labels[others]
                before = Front(model, exits, arguments.rate).right(*measure)
                informative = Selector(select, key.at("select"))
                for way in ("entropy", "random"):
                    keep = informative if way == "entropy" else Exactly(informative.kept, len(seen), key.at("select"))
                    found, up, down, places = adapt(model, exits, stream, keep, settings, arguments.rate, key)
                    exit, whole = Front(found, exits, arguments.rate).right(*measure)
                    held, kept = (
                        images.labels[rows].bincount(minlength=len(model.classes)) for rows in (seen, seen[places])
                    )
                    shares = [int(k) / int(h) for k, h in zip(kept, held, strict=False) if h]
                    yield {
                        "corruption": kind, "severity": severity, "seed": seed, "select": way,
                        "kept": len(places) / len(seen), "least_of_a_class": min(shares),
                        "most_of_a_class": max(shares), "up": up, "down": down, "exit_before": before[0],
                        "exit_after": exit, "whole_before": before[1], "whole_after": whole,
                    }  # fmt: skip


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    return [int(one) for one in text.split(",")]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--norms", choices=("back", "whole"), default="whole")
    parser.add_argument("--corruptions", default="noise,blur,brightness,jpeg", help=", ".join(CORRUPTIONS))
    parser.add_argument("--severities", type=numbers, default="1,2,3,4,5")
    parser.add_argument("--images", type=int, default=2000, help="what clients see")
    parser.add_argument("--seeds", type=numbers, default="0")
    parser.add_argument("--select", default="entropy")
    parser.add_argument("--adapt", default="{}", help="keys of AdaptConfig, as JSON")
    parser.add_argument("--rate", default=PLAIN, help="how kept activations cross, with --norms back")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all rows here")
    parser.add_argument("--set", action="append", help="a value of the run's scenario, such as data.path=FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict] = []
    print("corruption severity select    kept (of a class)   exit before after   whole before after   kB up   kB down")
    for row in measured(arguments):
        rows.append(row)
        same = [one for one in rows if all(one[key] == row[key] for key in ("corruption", "severity", "select"))]
        if len(same) == len(arguments.seeds):
            mean = {key: statistics.mean(one[key] for one in same) for key in row if isinstance(row[key], float | int)}
            print(
                f"{row['corruption']:10} {row['severity']:8} {row['select']:8} {mean['kept']:6.1%}"
                f" ({mean['least_of_a_class']:4.0%} to {mean['most_of_a_class']:4.0%})"
                f"     {mean['exit_before']:6.1%} {mean['exit_after']:6.1%}"
                f"         {mean['whole_before']:6.1%} {mean['whole_after']:6.1%}"
                f" {mean['up'] / 1e3:9.1f} {mean['down'] / 1e3:8.1f}",
                flush=True,
            )  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
