"""What the lossless stage gains on real smashed data and gradients, codec by codec, and at which cost.

    python benchmarks/lossless.py [--threads 1] [--data CIFAR100 --weights DEIT_TINY]

Two models train for a while, and the last batch's activations at the cut and their gradient are packed: the scenario
`digits` (its front after 200 steps), and `cifar100-cpu` (DeiT-Tiny at 96 pixels, 40 steps) where the data set's folder
and the weights' file are named. A cell is bytes after the stage over bytes before it, and milliseconds to compress and
decompress. Then come the relative squared error of each codec and its bits a number, both before the stage.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from splitfed import Scenario
from splitfed.compression.codecs.base import Codec, Packet
from splitfed.compression.codecs.choices import Scale
from splitfed.compression.codecs.decoders import decode
from splitfed.compression.codecs.settings import BFloat16, FedLite, Float8, Float16, Float32, Uniform
from splitfed.compression.codecs.uniform import WIDTHS
from splitfed.compression.lossless import Lossless, decompress
from splitfed.compression.lossless_settings import Zstd
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.model.build import build, pixel_stats, split
from splitfed.seeds import Key

STAGES = {f"zstd {level}{', shuffled' * shuffle}": (level, shuffle) for level in (1, 3) for shuffle in (False, True)}
KEY = Key(0)


def trained(scenario: Scenario, steps: int) -> dict[str, Tensor]:
    """Train the unsplit model for some steps; return the last batch's activations at the cut and their gradient."""
    data = load(scenario.data, scenario.model.image_size, 1, KEY.at("data"))
    front, back = split(build(scenario.model, len(data.classes), key=KEY.at("model")).train(), scenario.model.cut)
    sides = [(part, scenario.training.server.optimiser_for(part)) for part in (front, back)]
    mean, std = pixel_stats(scenario.model)
    size = scenario.training.batch_size
    flow = batches(data.train, data.partitions[0], size, KEY, mean=mean, std=std, epochs=1000)
    for batch in itertools.islice(flow, steps):
        smashed = front(batch.images)
        smashed.retain_grad()
        nn.functional.cross_entropy(back(smashed), batch.labels).backward()
        for part, optimiser in sides:
            scenario.training.server.step(optimiser, part)
    return {"activations": smashed.detach(), "gradient": smashed.grad}


def codecs() -> dict[str, Codec]:
    """Return codecs by the names of their rows."""
    chosen: dict[str, Codec] = {c.kind: c.build() for c in (Float32(), Float16(), BFloat16())}
    chosen |= {f"float8 {format}": Float8(format=format).build() for format in ("e4m3", "e5m2")}
    scales: tuple[Scale, ...] = ("token", "channel")
    for bits, scale in itertools.product(reversed(WIDTHS), scales):
        chosen[f"uniform {bits} {scale}"] = Uniform(bits=bits, scale=scale).build()
    for bits in (4, 3, 2):
        chosen[f"uniform {bits} rotated"] = Uniform(bits=bits, rotation=True, scale_bits=16).build()
    chosen |= {f"fedlite {q}/{g}/16": FedLite(subvectors=q, groups=g).build() for q, g in ((16, 1), (16, 16), (32, 32))}
    return chosen


def best(run: Callable[[], object], repeats: int = 10) -> float:
    """Return the shortest time in milliseconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def cell(stage: Lossless, packet: Packet) -> str:
    """Return the share of a packet's bytes that a stage leaves, and the milliseconds of both directions."""
    size, (tag, sent) = len(packet.buffer), stage.compress(packet.buffer, packet.bits)
    down = best(lambda: stage.compress(packet.buffer, packet.bits))
    up = best(lambda: decompress(tag, sent, size))
    return f"{len(sent) / size:10.3f} {down:6.2f}+{up:4.2f} ms"


def table(name: str, x: Tensor) -> None:
    """Print what each stage makes of each codec's packet."""
    print(f"\n{name} {list(x.shape)}")
    print(f"{'codec':20}{'bytes':>9}" + "".join(f"{stage:>24}" for stage in STAGES) + f"{'error':>9}{'bits':>7}")
    for codec_name, codec in codecs().items():
        packet = codec.encode(x, KEY)
        size, row = len(packet.buffer), ""
        for level, shuffle in STAGES.values():
            row += cell(Zstd(level=level, shuffle=shuffle).build(), packet)
        error = float((decode(packet) - x).square().mean() / x.var())
        print(f"{codec_name:20}{size:9}{row}{error:9.4f}{8 * size / x.numel():7.2f}", flush=True)


def main() -> None:
    """Print a table for each tensor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="a folder of CIFAR-100; without it DeiT-Tiny is left out")
    parser.add_argument("--weights", help="DeiT-Tiny's weights, a .safetensors file; random without it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    cases = {"digits": (Scenario.load("digits"), 200)}
    if options.data:
        weights = f"model.weights={options.weights}" if options.weights else "model.pretrained=false"
        cases["cifar100-cpu"] = (Scenario.load("cifar100-cpu", [f"data.path={options.data}", weights]), 40)
    for name, (scenario, steps) in cases.items():
        for what, tensor in trained(scenario, steps).items():
            table(f"{name}, {what}", tensor)


if __name__ == "__main__":
    main()
