"""How fast codecs, the lossless stage and frames are: `python benchmarks/codecs.py [THREADS]`.

MB/s of float32 input, best of many runs that alternate between the codecs, on activations of a DeiT-Tiny at 96 px:
[64, 37, 192], 1.8 MB. Then what a frame costs by itself: a step of [4, 5, 8] with its labels, packed and read.
"""

import sys
import time
from collections.abc import Callable

import torch

from splitfed.compression.codecs.base import Codec
from splitfed.compression.codecs.bits import pack as pack_bits
from splitfed.compression.codecs.bits import unpack as unpack_bits
from splitfed.compression.codecs.decoders import decode
from splitfed.compression.codecs.settings import BFloat16, FedLite, Float8, Float16, Float32, Klt, Uniform
from splitfed.compression.codecs.uniform import WIDTHS
from splitfed.compression.expect import Expect
from splitfed.compression.lossless import decompress
from splitfed.compression.lossless_settings import Zstd
from splitfed.seeds import Key
from splitfed.wire.frame import pack, unpack

KEY = Key(0)


def best(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the shortest time of each in seconds; they take turns, so that all see the same machine."""
    times = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name] = min(times[name], time.perf_counter() - started)
    return times


def codecs() -> dict[str, Codec]:
    """Return every codec by its column's name."""
    chosen: dict[str, Codec] = {c.kind: c.build() for c in (Float32(), Float16(), BFloat16())}
    chosen |= {f"float8 {format}": Float8(format=format).build() for format in ("e4m3", "e5m2")}
    for rounding in ("stochastic", "nearest"):
        chosen |= {f"uniform {b} {rounding}": Uniform(bits=b, rounding=rounding).build() for b in WIDTHS}
    for bits in (4, 2):
        chosen[f"uniform {bits} channel"] = Uniform(bits=bits, scale="channel").build()
        chosen[f"uniform {bits} 16-bit scales"] = Uniform(bits=bits, scale_bits=16).build()
        chosen[f"uniform {bits} rotated"] = Uniform(bits=bits, rotation=True).build()
    chosen |= {f"klt {snr} dB": Klt(snr=snr).build() for snr in (6, 12)}
    chosen |= {f"fedlite 16/{groups}/16": FedLite(groups=groups).build() for groups in (1, 16)}
    return chosen


def speeds() -> None:
    """Print MB/s of each codec, with and without zstd after it."""
    # Tokens differ in scale and share most of their position, as activations do.
    generator = KEY.generator()
    x = torch.randn(37, 192, generator=generator) + 0.5 * torch.randn(64, 37, 192, generator=generator)
    megabytes, stage, runs = x.numel() * 4 / 1e6, Zstd().build(), {}
    packets = {}
    for name, codec in codecs().items():
        packets[name] = packet = codec.encode(x, KEY)
        tag, sent = stage.compress(packet.buffer)
        runs[f"{name}/encode"] = lambda codec=codec: codec.encode(x, KEY)
        runs[f"{name}/decode"] = lambda packet=packet: decode(packet)
        runs[f"{name}/zstd"] = lambda packet=packet: stage.compress(packet.buffer)
        runs[f"{name}/unzstd"] = lambda tag=tag, sent=sent, packet=packet: decompress(tag, sent, len(packet.buffer))
    times = best(runs, 30)
    columns = ("encode", "decode", "zstd", "unzstd")
    print(f"{'codec':24}{'bytes':>9}{'zstd':>9}" + "".join(f"{c + ' MB/s':>13}" for c in columns))
    for name, packet in packets.items():
        row = "".join(f"{megabytes / times[f'{name}/{column}']:13.0f}" for column in columns)
        print(f"{name:24}{len(packet.buffer):9}{len(stage.compress(packet.buffer)[1]):9}{row}")
    for width in (4, 2):
        plain, turned = (
            sum(times[f"uniform {width} {kind}/{way}"] for way in ("encode", "decode"))
            for kind in ("stochastic", "rotated")
        )
        print(f"{width} bits: a rotation takes encoding and decoding to {turned / plain:.2f} of {1e3 * plain:.2f} ms")


def bits() -> None:
    """Print the milliseconds that packing 454,656 codes takes."""
    count, runs = 64 * 37 * 192, {}
    for width in WIDTHS[:-1]:
        codes = torch.randint(0, 2**width, (count,), generator=KEY.generator()).to(torch.uint8)
        packed = pack_bits(codes, width)
        runs[f"pack {width}"] = lambda codes=codes, width=width: pack_bits(codes, width)
        runs[f"unpack {width}"] = lambda packed=packed, width=width: unpack_bits(packed, width, count)
    print("ms: " + ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in best(runs, 30).items()))


def frames() -> None:
    """Print the milliseconds of a small step's frame: its codecs, the frame around them, and all of reading it."""
    codec, stage = Uniform(bits=4).build(), Zstd().build()
    smashed, targets = torch.randn(4, 5, 8, generator=KEY.generator()), torch.arange(4)
    packets = {"smashed": (codec.encode(smashed, KEY), stage), "targets": (codec.encode(targets, KEY), stage)}
    buffer = pack("step", 1, 2, 3, packets, {"n": 5}).buffer
    kinds = {"step": {"smashed": (Expect.floats((1, 8), 5, 8),), "targets": (Expect.integers((1, 8)),)}}
    runs: dict[str, Callable[[], object]] = {
        "encode": lambda: (codec.encode(smashed, KEY), codec.encode(targets, KEY)),
        "pack": lambda: pack("step", 1, 2, 3, packets, {"n": 5}),
        "unpack and decode": lambda: unpack(buffer, kinds, max_bytes=1 << 20),
        "decode alone": lambda: [decode(packet) for packet, _ in packets.values()],
    }
    print("tiny frame, ms: " + ", ".join(f"{name} {1e3 * s:.3f}" for name, s in best(runs, 500).items()))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    speeds()
    bits()
    frames()
