"""What waiting threads cost on shared cores: training steps/s alone and beside a second process, by GOMP_SPINCOUNT.

    python benchmarks/threads.py [--threads 2] [--seconds 6] [--spins 10000]

torch's CPU build lets idle threads of libgomp spin before they sleep, by default for so long that two processes with as
many threads as there are cores stop each other almost entirely. `splitfed` sets a shorter wait before torch is loaded.
Both settings are measured in one run, alternated; the printed ratios are theirs to the default.
"""

import argparse
import os
import statistics
import subprocess
import sys

STEP = """
import sys, time
import splitfed.model._torchvision
import timm, torch
torch.set_num_threads(int(sys.argv[1]))
model, images = timm.create_model("deit_tiny_patch16_224", img_size=96, num_classes=100), torch.randn(32, 3, 96, 96)
model(images).sum().backward()
print("ready", flush=True)
sys.stdin.readline()
began, steps = time.perf_counter(), 0
while time.perf_counter() - began < float(sys.argv[2]):
    model(images).sum().backward()
    steps += 1
print(steps / (time.perf_counter() - began))
"""


def rate(processes: int, spins: int | None, threads: int, seconds: float) -> float:
    """Return the mean steps/s of so many processes that train at the same time."""
    settings = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    settings |= {"GOMP_SPINCOUNT": str(spins)} if spins is not None else {}
    command = [sys.executable, "-c", STEP, str(threads), str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": settings}
    running = [subprocess.Popen(command, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
    for process in running:
        process.stdout.readline()
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    return statistics.mean(float(process.communicate()[0]) for process in running)


def main() -> None:
    """Print steps/s and ratios, alone and in company."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--spins", type=int, default=10000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for processes, name in ((1, "alone"), (2, "beside another")):
        pairs = [
            [rate(processes, spins, options.threads, options.seconds) for spins in (None, options.spins)]
            for _ in range(options.repeats)
        ]
        default, short = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name}: default {default:.2f} steps/s, GOMP_SPINCOUNT={options.spins} {short:.2f} steps/s")
        print(f"ratio {name}: {int(100 * short / default) / 100:.2f}", flush=True)


if __name__ == "__main__":
    main()
