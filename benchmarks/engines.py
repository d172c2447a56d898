"""How fast each engine trains: samples/s of `inline`, `ray` and a deployment beside a bare PyTorch loop.

    python benchmarks/engines.py [--mode sfl-v1] [--clients 8] [--steps 10] [--rounds 3] [--engine ray]

ViT-Tiny at 32 pixels in patches of 4, cut 3, batches of 16, nothing reduced, float32, no lossless stage: 800 kB each
way for each mini-batch. The bare loop is what a PyTorch user would write for the unsplit model, with images from the
same loader: one process, with one and with two threads. `inline` has two threads. With `ray` and in the deployment (a
server and a process for every client, over loopback, in plain text) every process has one; the server trains two
mini-batches at a time on two cores with sfl-v1, and one with sfl-v2, whose back all clients share.

Whole rounds are timed, as `metrics.csv` tells them: drawing the cohort, the messages with the fronts' weights,
training, averages, checkpoint; not what goes before the first one, and validation of three images. The bare loops run
right before and after each engine, so that a busy machine slows both. `ratio ray: 0.80` is that of the medians, to the
bare loop with two threads; a first round, which warms up, is one of them.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does: what spins stops what works

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from deployed import deployment

from splitfed import Scenario, simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.engines.allocator import keep_freed_memory
from splitfed.model.build import build, pixel_stats
from splitfed.run.metrics import read_metrics
from splitfed.seeds import Key

BATCH, WARM_STEPS, BARE_STEPS = 16, 2, 24
ENGINES = ("inline", "ray", "deployment")
SCENARIO = f"""
seed: 0
model: {{name: deit_tiny_patch16_224, cut: 3, image_size: 32, args: {{patch_size: 4}}}}
data: {{path: digits, validation: 0.002, test_limit: 16}}
federation: {{clients: 8, rounds: 1, local_steps: 1}}
training: {{batch_size: {BATCH}}}
compression:
  smashed: {{lossless: none}}
  targets: {{lossless: none}}
  cut_gradient: {{lossless: none}}
  front_weights: {{lossless: none}}
"""


def simulated(scenario: Scenario, folder: Path) -> Path:
    """Run the scenario in its engine and return the run's folder."""
    return simulate(scenario, runs=folder).folder


def deployed(scenario: Scenario, folder: Path) -> Path:
    """Run the scenario with a process for every client and return the run's folder."""
    with deployment(folder) as here:
        server = here.serve(scenario)
        for client in range(scenario.federation.clients):
            here.join(client)
        if server.end(600):
            raise SystemExit(server.text)
        return here.runs[0]


def bare(scenario: Scenario, threads: int) -> float:
    """Return the samples/s of the unsplit model in a plain loop."""
    key, training = Key(scenario.seed), scenario.training
    data = load(scenario.data, scenario.model.image_size, 1, key.at("data"))
    model = build(scenario.model, len(data.classes), key=key.at("model")).train()
    mean, std = pixel_stats(scenario.model)
    optimiser = training.client.optimiser_for(model, training.head_lr)
    torch.set_num_threads(threads)
    steps = batches(
        data.train, data.partitions[0], BATCH, key.at("batches"), mean=mean, std=std, steps=WARM_STEPS + BARE_STEPS
    )
    for number, batch in enumerate(steps):
        if number == WARM_STEPS:
            began = time.perf_counter()
        loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()
    return BATCH * BARE_STEPS / (time.perf_counter() - began)


def main() -> None:
    """Print a ratio for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("sfl-v1", "sfl-v2"), default="sfl-v1", help="sfl-v2 in order of arrival")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="mini-batches of each client in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="one of the engines; all by default")
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does too
    changes = [
        f"federation.clients={options.clients}", f"federation.local_steps={options.steps}",
        f"federation.rounds={options.rounds}", f"federation.mode={options.mode}",
        f"training.evaluate_every={options.rounds}",
    ]  # fmt: skip
    if options.mode == "sfl-v2":
        changes.append("federation.order=arrival")
    samples = BATCH * options.steps * options.clients
    for engine in options.engine or ENGINES:
        own = [
            f"engine.kind={'ray' if engine == 'ray' else 'inline'}", f"engine.threads={2 if engine == 'inline' else 1}",
        ]  # fmt: skip
        scenario = Scenario.parse(SCENARIO, overrides=[*changes, *own], name=engine)
        one, two = [bare(scenario, 1)], [bare(scenario, 2)]
        with tempfile.TemporaryDirectory() as name:
            folder = (deployed if engine == "deployment" else simulated)(scenario, Path(name))
            ends = [0.0, *(row.seconds for row in read_metrics(folder / "metrics.csv"))]
        one, two = [*one, bare(scenario, 1)], [*two, bare(scenario, 2)]
        ours = [samples / (later - earlier) for earlier, later in pairwise(ends)]
        single, double, middle = (statistics.median(rates) for rates in (one, two, ours))
        print(f"{engine}: {middle:.1f} samples/s, bare loop {single:.1f} with one thread, {double:.1f} with two")
        print(f"ratio {engine}: {int(100 * middle / double) / 100:.2f}", flush=True)


if __name__ == "__main__":
    main()
