"""What the lossless stage gains on real smashed data and gradients, codec by codec, and at which cost.

    python benchmarks/wire/lossless.py [--threads 1] [--data CIFAR100 --weights DEIT_TINY]
    python benchmarks/wire/lossless.py --contexts [...]

Two models train for a while, and the last batch's activations at the cut and their gradient are packed: the scenario
`digits` (its front after 200 steps), and `cifar100-cpu` (DeiT-Tiny at 96 pixels, 40 steps) where the data set's folder
and the weights' file are named. A cell is bytes after the stage over bytes before it, and milliseconds to compress and
decompress. Then come the relative squared error of each codec and its bits a number, both before the stage.

With `--contexts` it tells what coding with contexts could gain instead, for few rotated bits, the front's weights, and
their difference to those of an epoch before. A cell is a share of the packet's bytes: as Zstandard leaves them, and as
an arithmetic coder would that learns as it goes (by Krichevsky and Trofimov's estimate; scales as they are), of each
code by itself, or given its position, its channel, its row's grid (where zero lies in it), or the code that the
reconstruction of an epoch before has in its place.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from splitfed import Scenario
from splitfed.compression.codecs.base import Codec, Packet
from splitfed.compression.codecs.bits import packed_size, unpack
from splitfed.compression.codecs.buffers import from_buffer
from splitfed.compression.codecs.choices import Scale
from splitfed.compression.codecs.decoders import decode
from splitfed.compression.codecs.settings import BFloat16, FedLite, Float8, Float16, Float32, Klt, Uniform
from splitfed.compression.codecs.transform.rotation import rotate
from splitfed.compression.codecs.uniform import WIDTHS, read_scales
from splitfed.compression.lossless import Lossless, decompress
from splitfed.compression.lossless_settings import Zstd
from splitfed.data.batches import Batch, batches
from splitfed.data.dataset import load
from splitfed.model.build import build, pixel_stats, split
from splitfed.seeds import Key

STAGES = {
    "zstd 1": Zstd(), "zstd 3": Zstd(level=3), "shuffled": Zstd(shuffle=True), "channels": Zstd(shuffle="channels"),
    "channels, 15": Zstd(level=15, shuffle="channels"),
}  # fmt: skip
KEY = Key(0)


Visits = dict[str, tuple[Tensor, Tensor | None]]


def trained(scenario: Scenario, steps: int) -> Visits:
    """Train the unsplit model for some steps; return the last batch's activations at the cut and their gradient, the
    front's weights and their difference, each with what it was an epoch before."""
    data = load(scenario.data, scenario.model.image_size, 1, KEY.at("data"))
    front, back = split(build(scenario.model, len(data.classes), key=KEY.at("model")).train(), scenario.model.cut)
    training = scenario.training
    sides = [(part, training.server.optimiser_for(part, training.head_lr)) for part in (front, back)]
    mean, std = pixel_stats(scenario.model)
    size = scenario.training.batch_size
    flow = batches(data.train, data.partitions[0], size, KEY, mean=mean, std=std, epochs=1000)
    epoch = -(-len(data.partitions[0]) // (size * scenario.federation.clients))  # of each client, which train at once
    for step, batch in enumerate(itertools.islice(flow, steps)):
        if step == steps - 1 - epoch:
            before = copy.deepcopy((front, back))
        smashed = crossed(front, back, batch)
        for part, optimiser in sides:
            scenario.training.server.step(optimiser, part)
    earlier, now, then = crossed(*before, batch), rows(front), rows(before[0])
    return {
        "activations": (smashed.detach(), earlier.detach()), "gradient": (smashed.grad, earlier.grad),
        "weights": (now, then), "weights, difference": (now - then, None),
    }  # fmt: skip


def crossed(front: nn.Module, back: nn.Module, batch: Batch) -> Tensor:
    """Return the activations of a batch at the cut, with their gradient."""
    smashed = front(batch.images)
    smashed.retain_grad()
    nn.functional.cross_entropy(back(smashed), batch.labels).backward()
    return smashed


def rows(front: nn.Module) -> Tensor:
    """Return the weights of a front that cross as rows of the most frequent length, as the wire groups them."""
    lengths = [tensor.shape[-1] for tensor in front.state_dict().values() if tensor.dim() == 2]
    width = max(lengths, key=lengths.count)
    return torch.cat([t.detach().reshape(-1, width) for t in front.state_dict().values() if t.shape[-1:] == (width,)])


def codecs() -> dict[str, Codec]:
    """Return codecs by the names of their rows."""
    chosen: dict[str, Codec] = {c.kind: c.build() for c in (Float32(), Float16(), BFloat16())}
    chosen |= {f"float8 {format}": Float8(format=format).build() for format in ("e4m3", "e5m2")}
    scales: tuple[Scale, ...] = ("token", "channel")
    for bits, scale in itertools.product(reversed(WIDTHS), scales):
        chosen[f"uniform {bits} {scale}"] = Uniform(bits=bits, scale=scale).build()
    for bits in (4, 3, 2):
        chosen[f"uniform {bits} rotated"] = Uniform(bits=bits, rotation=True, scale_bits=16).build()
    chosen["uniform 3 nearest"] = Uniform(bits=3, scale="channel", rounding="nearest").build()
    chosen["6 levels nearest"] = Uniform(bits=3, levels=6, scale="channel", rounding="nearest").build()
    chosen |= {f"klt {snr} dB": Klt(snr=snr).build() for snr in (8, 10, 12, 14)}
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
    size, (tag, sent) = len(packet.buffer), stage.compress(packet.buffer, packet.bits, packet.shape)
    down = best(lambda: stage.compress(packet.buffer, packet.bits, packet.shape))
    up = best(lambda: decompress(tag, sent, size))
    return f"{len(sent) / size:10.3f} {down:6.2f}+{up:4.2f} ms"


def table(name: str, x: Tensor) -> None:
    """Print what each stage makes of each codec's packet."""
    print(f"\n{name} {list(x.shape)}")
    print(f"{'codec':20}{'bytes':>9}" + "".join(f"{stage:>24}" for stage in STAGES) + f"{'error':>9}{'bits':>7}")
    for codec_name, codec in codecs().items():
        packet = codec.encode(x, KEY)
        size, row = len(packet.buffer), ""
        for stage in STAGES.values():
            row += cell(stage.build(), packet)
        error = float((decode(packet) - x).square().mean() / x.var())
        print(f"{codec_name:20}{size:9}{row}{error:9.4f}{8 * size / x.numel():7.2f}", flush=True)


def adaptive(codes: Tensor, context: Tensor, levels: int) -> float:
    """Return the bytes of codes under an arithmetic coder that learns their shares in each context as it goes."""
    counts = torch.bincount(context.long() * levels + codes.long()).double()
    counts = nn.functional.pad(counts, (0, -len(counts) % levels)).view(-1, levels)
    half, all_ = torch.tensor(0.5).double(), torch.tensor(levels / 2).double()
    nats = (
        torch.lgamma(counts.sum(1) + all_)
        - torch.lgamma(all_)
        - (torch.lgamma(counts + half) - torch.lgamma(half)).sum(1)
    )
    return float(nats.sum() / torch.log(torch.tensor(2.0)) / 8)


CONTEXTS = ("alone", "position", "channel", "grid", "before")


def shares(config: Uniform, x: Tensor, earlier: Tensor | None) -> list[float]:
    """Return the share of a packet's bytes under each of `CONTEXTS`."""
    codec, width = config.build(), x.shape[-1]
    packet = codec.encode(x, KEY)
    count, coded = x.numel(), packed_size(x.numel(), config.bits)
    buffer = from_buffer(packet.buffer, torch.uint8, "cpu")
    codes = unpack(buffer[:coded], config.bits, count)
    height, levels = count // width, 2**config.bits
    end = len(buffer) - 4 * config.rotation
    low, step = read_scales(buffer[coded:end].numpy().tobytes(), (height, 1), config.scale_bits, "cpu")
    grid = (-low / step * 2).round().nan_to_num().clamp(0, 2 * levels).long().expand(height, width).reshape(-1)
    row, channel = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    position = row % x.shape[-2] if x.dim() == 3 else torch.zeros_like(row)
    contexts = {"alone": torch.zeros_like(row), "position": position, "channel": channel, "grid": grid}
    if earlier is not None:
        known = decode(codec.encode(earlier, KEY.at("before"))).reshape(height, width)
        if config.rotation:
            known = rotate(known, int(buffer[end:].view(torch.int32)) & 0xFFFFFFFF)
        contexts["before"] = ((known - low) / step + 0.5).nan_to_num().clamp(0, levels - 1).long().reshape(-1)
    rest = len(buffer) - coded
    return [
        (adaptive(codes, contexts[c], levels) + rest) / len(buffer) if c in contexts else float("nan") for c in CONTEXTS
    ]


def coding(name: str, x: Tensor, earlier: Tensor | None) -> None:
    """Print what Zstandard and what coders with contexts make of few bits."""
    print(f"\n{name} {list(x.shape)}\n{'codec':20}" + "".join(f"{one:>13}" for one in STAGES)
          + "".join(f"{one:>10}" for one in CONTEXTS))  # fmt: skip
    few = [Uniform(bits=bits, rotation=True, scale_bits=16) for bits in (2, 3, 4)]
    for config in [Uniform(bits=8)] if name.endswith("weights") else few:
        packet = config.build().encode(x, KEY)
        sizes = [len(stage.build().compress(packet.buffer, packet.bits, packet.shape)[1]) for stage in STAGES.values()]
        print(f"uniform {config.bits}{' rotated' * config.rotation:12}"
              + "".join(f"{size / len(packet.buffer):13.3f}" for size in sizes)
              + "".join(f"{share:10.3f}" for share in shares(config, x, earlier)), flush=True)  # fmt: skip


def main() -> None:
    """Print a table for each tensor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="a folder of CIFAR-100; without it DeiT-Tiny is left out")
    parser.add_argument("--weights", help="DeiT-Tiny's weights, a .safetensors file; random without it")
    parser.add_argument("--contexts", action="store_true", help="show what coding with contexts could gain")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    cases = {"digits": (Scenario.load("digits"), 200)}
    if options.data:
        weights = f"model.weights={options.weights}" if options.weights else "model.pretrained=false"
        cases["cifar100-cpu"] = (Scenario.load("cifar100-cpu", [f"data.path={options.data}", weights]), 40)
    for name, (scenario, steps) in cases.items():
        for what, (tensor, earlier) in trained(scenario, steps).items():
            if options.contexts:
                coding(f"{name}, {what}", tensor, earlier)
            elif "weights" not in what:
                table(f"{name}, {what}", tensor)


if __name__ == "__main__":
    main()
