"""What it is worth that freed memory stays with the process: samples/s of a run, and its peak memory, without and with.

    python benchmarks/allocator.py [--mode psl] [--repeats 3]

Every run is a process of its own; both kinds alternate. ViT-Tiny at 32 pixels in patches of 4, 8 clients of 16 images,
engine `inline`, one torch thread, rounds of five mini-batches, of which the second is timed. `ratio psl: 1.08` is the
median samples/s with it to that without, `memory` likewise the median peaks.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from splitfed import Scenario, simulate
from splitfed.engines.allocator import SETTINGS, keep_freed_memory

SCENARIO = """
model: {name: deit_tiny_patch16_224, cut: 3, image_size: 32, args: {patch_size: 4}}
data: {path: digits, validation: 0.002, test_limit: 16}
federation: {clients: 8, rounds: 2, local_steps: 5}
training: {batch_size: 16, evaluate_every: 2}
engine: {threads: 1}
"""
MODES = ("sfl-v1", "sfl-v2", "psl")


def one(mode: str, kept: bool) -> None:
    """Print the samples/s of a run's second round, and this process's peak memory in MB."""
    if kept:
        keep_freed_memory()
    scenario = Scenario.parse(SCENARIO, overrides=[f"federation.mode={mode}"], name=mode)
    with tempfile.TemporaryDirectory() as folder:
        first, second = simulate(scenario, runs=folder, observers=()).rounds
    print(second.examples / (second.seconds - first.seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def run(mode: str, kept: bool) -> tuple[float, float]:
    """Return what a process of its own prints for a run."""
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, __file__, "--only", mode, *(["--kept"] if kept else [])]
    rate, peak = subprocess.run(command, env=clean, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(rate), float(peak)


def main() -> None:
    """Print both ratios for each mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", action="append", choices=MODES, help="one of the modes; all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        one(options.only, options.kept)
        return
    for mode in options.mode or MODES:
        pairs = [(run(mode, False), run(mode, True)) for _ in range(options.repeats)]
        (rate, peak), (kept_rate, kept_peak) = (
            [statistics.median(column) for column in zip(*results, strict=True)]
            for results in zip(*pairs, strict=True)
        )  # fmt: skip
        print(f"{mode}: {rate:.1f} samples/s, {peak:.0f} MB by default; kept {kept_rate:.1f}, {kept_peak:.0f} MB")
        print(f"ratio {mode}: {int(100 * kept_rate / rate) / 100:.2f}, memory {kept_peak / peak:.2f}", flush=True)


if __name__ == "__main__":
    main()
