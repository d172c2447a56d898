"""What one GPU does with it, as JSON: under ten minutes, of which the two rounds take the most.

    python benchmarks/gpu.py [--data FOLDER] [--weights FILE] [--device cuda] [--images 10000] [--out FILE.json]
    python benchmarks/gpu.py --small --device cpu     # all parts at toy sizes, to try the script itself

- `overhead`: samples/s of the inline engine over those of a bare loop, DeiT-Small at 224 px, float32 and bfloat16: one
  client, nothing reduced. `psl` is the same of a joint step of eight clients, beside a bare loop of all their images.
- `adc`: the share of a client's step that ADC adds (DeiT-Tiny at 224 px, 128 images, a tenth of the numbers).
- `codecs`: GB/s of float32 input on the device, to bytes and from bytes to the device.
- `attention`: bfloat16 with fused attention, with attention as two products, and float32, beside each other.
- `compile`: a step of eight blocks as they are over one of compiled blocks (`training.server.compile`), and the seconds
  that compiling took.
- `reproducible`: whether two runs come to the same weights, bit for bit.
- `rounds`: seconds of one round of `cifar100` and of `cifar100-paper`, on so many images at most.

`--data` is a folder as those scenarios take (`data.path`), `--weights` a file of DeiT-Tiny's weights; without them
images and weights are random, which is said in `given`: times are the same, accuracies are none. What is compared takes
turns, and medians of ratios are told. Each part that fails says why in its place, and the others go on.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order each time

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import splitfed
from splitfed import Scenario, simulate
from splitfed.compression.codecs.decoders import decode
from splitfed.compression.codecs.settings import BFloat16, FedLite, Float8, Float16, Float32, Klt, Uniform
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.base import View
from splitfed.compression.reducers.settings import AdcConfig
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.build import build, pixel_stats, split
from splitfed.model.forward import autocast, suit_attention
from splitfed.model.settings import ModelConfig
from splitfed.scenario.scenario import shipped
from splitfed.seeds import Key
from splitfed.server.cohort.train import TrainCall
from splitfed.split.computing.compiled import compile_blocks

SCENARIO = """
seed: 0
model: {name: deit_small_patch16_224, cut: 3, image_size: 224}
data: {path: %s, train_split: train, validation: 0.01, test_limit: 16}
federation: {clients: 1, rounds: 1, local_epochs: null, local_steps: 20}
compression:
  smashed: &plain {lossless: none}
  targets: *plain
  cut_gradient: *plain
  front_weights: *plain
engine: inline
"""
TOY = ["model.name=deit_tiny_patch16_224", "model.image_size=32", "federation.local_steps=2"]
JOINT = ["federation.mode=psl", "federation.clients=8", "training.batch_size=16"]
REPEATS, SIDES = 3, ("client", "server")  # what is compared is repeated so often
PARTS = ("overhead", "psl", "adc", "codecs", "attention", "compile", "reproducible", "rounds")
CODECS = {
    "float32": Float32(), "float16": Float16(), "bfloat16": BFloat16(), "float8": Float8(),
    "uniform 8": Uniform(bits=8), "uniform 4": Uniform(bits=4), "uniform 2": Uniform(bits=2),
    "uniform 3 rotated": Uniform(bits=3, rotation=True), "klt 12 dB": Klt(snr=12), "fedlite": FedLite(),
}  # fmt: skip


class Bench:
    """What is measured, on which device and at which size."""

    def __init__(self, given: argparse.Namespace, runs: Path) -> None:
        self.device, self.small, self.images = torch.device(given.device), given.small, given.images
        self.weights, self.runs, self.repeats = given.weights, runs, 1 if given.small else REPEATS
        self.data = given.data or random_images(runs / "images", 200 if given.small else given.images)
        self.known = given.data is not None

    def scenario(self, *more: str) -> Scenario:
        """Return the scenario of the ratios, with some values changed."""
        where = [f"training.{side}.device={self.device}" for side in SIDES]
        # As `cifar100` has them; in folders of random images they are named as everywhere.
        columns = ["data.image_column=img", "data.label_column=fine_label"] if self.known else []
        return Scenario.parse(SCENARIO % self.data, overrides=[*where, *columns, *(TOY if self.small else ()), *more])

    def wait(self) -> None:
        """Wait for what the device has still to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        """Return what `run` takes, to the end of its work on the device."""
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def ratio(self, *more: str) -> dict[str, float]:
        """Return samples/s of a round of a scenario, those of a bare loop at the same total batch, and their ratio."""
        scenario = self.scenario(*more)
        size = scenario.training.batch_size * scenario.federation.clients
        images = size * (scenario.federation.local_steps or 1)
        loop = Loop(self, scenario, size)
        loop()
        self.train(scenario)  # the first of each decodes images and warms up
        pairs = [(self.seconds(loop), self.train(scenario)) for _ in range(self.repeats)]
        return {
            "inline_samples_a_second": round(images / statistics.median(own for _, own in pairs), 1),
            "bare_samples_a_second": round(images / statistics.median(bare for bare, _ in pairs), 1),
            "ratio": round(statistics.median(bare / own for bare, own in pairs), 3),
        }

    def train(self, scenario: Scenario) -> float:
        """Return the seconds of a round's training in the inline engine."""
        seconds, run = [], TrainCall.run

        def timed(call: TrainCall, *given: object) -> object:
            began = time.perf_counter()
            replies = run(call, *given)  # type: ignore[arg-type]
            self.wait()
            seconds.append(time.perf_counter() - began)
            return replies

        TrainCall.run = timed  # type: ignore[method-assign, assignment]
        try:
            simulate(scenario, runs=self.runs)
        finally:
            TrainCall.run = run  # type: ignore[method-assign]
        return seconds[0]

    def overhead(self) -> dict[str, dict[str, float]]:
        """Compare the engine with a bare loop in both precisions."""
        return {precision: self.ratio(f"training.precision={precision}") for precision in ("float32", "bfloat16")}

    def psl(self) -> dict[str, float]:
        """Compare joint steps of eight clients with a bare loop."""
        return self.ratio(*JOINT)

    def adc(self) -> dict[str, float]:
        """Compare a client's steps with ADC and without."""
        config = ModelConfig(name="deit_tiny_patch16_224", cut=3, image_size=32 if self.small else 224)
        front = split(build(config, 100, key=Key(0)), config.cut)[0].to(self.device).train()
        attention, reducer = ClsAttention(front), AdcConfig(ratio=0.1).build()
        adam = torch.optim.Adam(front.parameters(), lr=1e-4, fused=True)
        images = torch.randn(16 if self.small else 128, 3, config.image_size, config.image_size, device=self.device)

        def step(reduced: bool) -> None:
            attention.enabled = reduced
            activations = front(images)
            if reduced:
                view = View(activations.detach(), front.num_prefix_tokens, attention.read)
                activations = reducer.plan(view, Key(0)).reduce(activations)
            activations.backward(torch.ones_like(activations))
            adam.step()
            adam.zero_grad(set_to_none=True)

        step(reduced=False)
        step(reduced=True)
        pairs = [(self.seconds(lambda: step(False)), self.seconds(lambda: step(True))) for _ in range(3 * self.repeats)]
        plain = statistics.median(without for without, _ in pairs)
        share = statistics.median(own / without - 1 for without, own in pairs)
        return {"step_ms": round(1e3 * plain, 2), "share": round(share, 4)}

    def codecs(self) -> dict[str, dict[str, float]]:
        """Return GB/s of each codec, both ways."""
        shape = (8, 37, 192) if self.small else (128, 197, 192)
        x, found = torch.randn(shape, generator=Key(0).generator()).to(self.device), {}
        for name, settings in CODECS.items():
            codec = settings.build()
            packet = codec.encode(x, Key(0))
            ways = {"encode": lambda: codec.encode(x, Key(0)), "decode": lambda: decode(packet).to(self.device)}  # noqa: B023
            took = {way: min(self.seconds(run) for _ in range(self.repeats)) for way, run in ways.items()}
            found[name] = {way: float(f"{x.nbytes / seconds / 1e9:.3g}") for way, seconds in took.items()}
        return found

    def attention(self) -> dict[str, dict[str, float]]:
        """Compare, by tokens, steps of four blocks: fused attention in bfloat16, as two products, and in float32."""
        from timm.models.vision_transformer import Block  # by now splitfed has put torchvision right

        found = {}
        for images, tokens, width in ((64, 37, 192), (16, 197, 192), (16, 197, 384)):
            blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(4))).to(self.device)
            x = torch.randn(images, tokens, width, device=self.device)

            def step(precision: str, fused: bool, blocks: nn.Sequential = blocks, x: torch.Tensor = x) -> None:
                for block in blocks:
                    block.attn.fused_attn = fused
                with autocast(precision, self.device):
                    made = blocks(x)
                made.float().square().mean().backward()

            runs = {"fused": ("bfloat16", True), "products": ("bfloat16", False), "float32": ("float32", True)}
            took = {name: [] for name in runs}
            for repeat in range(2 * self.repeats + 1):
                for name, how in runs.items():
                    seconds = self.seconds(lambda how=how: step(*how))
                    took[name] += [seconds] if repeat else []
            fused, products, full = (min(times) for times in took.values())
            found[f"{tokens} tokens of {width}"] = {
                "fused_over_products": round(fused / products, 2), "float32_over_fused": round(full / fused, 2),
                "float32_over_products": round(full / products, 2),
            }  # fmt: skip
        return found

    def compile(self) -> dict[str, dict[str, float]]:
        """Compare, by tokens and precision, steps of eight blocks as they are and compiled."""
        from timm.models.vision_transformer import Block

        found = {}
        for images, tokens, width in ((64, 37, 192),) if self.small else ((64, 37, 192), (64, 197, 384)):
            for precision in ("float32", "bfloat16"):
                plain = nn.Sequential(*(Block(width, width // 64) for _ in range(8))).to(self.device)
                blocks = copy.deepcopy(plain)
                geometry = Geometry(images, tokens, width, 1, 10)
                for one in (plain, blocks):
                    suit_attention(one, precision, self.device)
                took = compile_blocks(list(blocks), "server", geometry, precision)
                x = torch.randn(images, tokens, width, device=self.device)

                def step(run: nn.Module, x: torch.Tensor = x, precision: str = precision) -> None:
                    with autocast(precision, self.device):
                        made = run(x)
                    made.float().square().mean().backward()

                ratios = []
                for repeat in range(2 * self.repeats + 1):
                    eager, compiled = (self.seconds(lambda run=run: step(run)) for run in (plain, blocks))
                    ratios += [eager / compiled] if repeat else []
                found[f"{tokens} tokens of {width}, {precision}"] = {
                    "plain_over_compiled": round(statistics.median(ratios), 2), "compiling_seconds": round(took, 1),
                }  # fmt: skip
        return found

    def reproducible(self) -> dict[str, bool]:
        """Tell whether a run comes to the same weights twice."""
        return {
            precision: self._weights(precision) == self._weights(precision) for precision in ("float32", "bfloat16")
        }

    def _weights(self, precision: str) -> dict[str, bytes]:
        steps = () if self.small else ("federation.local_steps=5",)
        folder = simulate(self.scenario(f"training.precision={precision}", *steps), runs=self.runs).folder
        newest = max((folder / "checkpoints").iterdir()) / "model.safetensors"
        return {name: tensor.numpy().tobytes() for name, tensor in load_file(newest).items()}

    def rounds(self) -> dict[str, dict[str, float]]:
        """Return what a round of each of the two scenarios takes, training alone."""
        return {name: self._round(name) for name in ("cifar100", "cifar100-paper")}

    def _round(self, name: str) -> dict[str, float]:
        weights = [f"model.weights={self.weights}"] if self.weights else ["model.pretrained=false"]
        # With weights that are drawn there is no file that clients could load them from.
        drawn = [] if self.weights else ["compression.front_weights.initial=send"]
        columns = [] if self.known else ["data.image_column=image", "data.label_column=label", "data.expect=null"]
        toy = ["model.image_size=32", "data.workers=0", "data.partition=iid"] if self.small else []
        scenario = Scenario.load(shipped()[name]).with_([
            f"data.path={self.data}", *weights, *drawn, *columns, *toy, "federation.rounds=1", "data.test_limit=64",
            f"data.limit={self.images}", *(f"training.{side}.device={self.device}" for side in SIDES),
        ])  # fmt: skip
        return {"seconds": round(self.train(scenario), 1), "images": self.images}


class Loop:
    """What a PyTorch user would write for the unsplit model, with images from the same loader."""

    def __init__(self, bench: Bench, scenario: Scenario, batch: int) -> None:
        self.bench, self.scenario, self.batch, key = bench, scenario, batch, Key(scenario.seed)
        self.data = load(scenario.data, scenario.model.image_size, 1, key.at("data"))
        self.model = build(scenario.model, len(self.data.classes), key=key.at("model")).to(bench.device).train()
        self.mean, self.std = pixel_stats(scenario.model)

    def __call__(self) -> None:
        """Train as many steps as a round has."""
        scenario, device = self.scenario, self.bench.device
        optimiser = scenario.training.client.optimiser_for(self.model, scenario.training.head_lr)
        for batch in batches(
            self.data.train, self.data.partitions[0], self.batch, Key(0), mean=self.mean, std=self.std,
            steps=scenario.federation.local_steps,
        ):  # fmt: skip
            with autocast(scenario.training.precision, device):
                loss = nn.functional.cross_entropy(self.model(batch.images.to(device)), batch.labels.to(device))
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            loss.item()


def random_images(folder: Path, count: int) -> Path:
    """Write a data set of so many random images of 32 pixels in a hundred classes, and return its folder."""
    numbers = np.random.default_rng(0)
    for split_name, images in (("train", count), ("test", 200)):
        for number in range(images):
            place = folder / split_name / f"class-{number % 100:02d}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return folder


def main() -> None:
    """Measure all parts and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of images; random ones when left out")
    parser.add_argument("--weights", type=Path, help="DeiT-Tiny's weights; random ones when left out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=10_000, help="of the rounds, at most")
    parser.add_argument("--small", action="store_true", help="toy sizes, to try the script")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; all by default")
    parser.add_argument("--out", type=Path, help="a file for the JSON, which is printed too")
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU that this torch can use is here: --small --device cpu tries the script")
    if given.small:
        given.images = min(given.images, 200)
    began, parts = time.perf_counter(), PARTS
    card = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else "CPU"
    found: dict[str, object] = {
        "device": card, "torch": torch.__version__, "splitfed": splitfed.__version__, "small": given.small,
        "given": {"images": str(given.data or "random"), "weights": str(given.weights or "random")},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
        for part in given.only or parts:
            print(f"{time.perf_counter() - began:4.0f} s: {part}", file=sys.stderr, flush=True)
            try:
                found[part] = getattr(bench, part)()
            except Exception as error:
                found[part] = {"failed": f"{type(error).__name__}: {error}"}
            found["seconds"] = round(time.perf_counter() - began)
            if given.out:  # after each part, as a machine may be lent for a while only
                given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
