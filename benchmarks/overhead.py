"""What federation, wire and ledger cost: samples/s of the inline engine against a bare PyTorch loop of the same maths.

    python benchmarks/overhead.py [--threads 1] [--repeats 5] [--case digits] [--case deit_tiny_96]

Both train the same model on the same batches with the same optimisers: one client, nothing reduced, float32, no
lossless stage, one round. The bare loop is what a PyTorch user would write for the unsplit model, with its images from
the same loader. They alternate in one run, so that a busy machine slows both; the ratio of the medians is printed as
`ratio deit_tiny_96: 0.97`. Set-up, evaluation and checkpoints are in neither figure, the exchange of the front's
weights and the start of the round are in the engine's.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from splitfed import Scenario, simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.model.build import build, pixel_stats
from splitfed.seeds import Key
from splitfed.server.cohort.train import TrainCall

PLAIN = "\n".join(f"  {role}: {{lossless: none}}" for role in ("smashed", "targets", "cut_gradient", "front_weights"))
COMMON = f"""
seed: 0
federation: {{clients: 1, rounds: 1}}
compression:
{PLAIN}
"""
CASES = {
    "digits": """
model: {name: vit_tiny_patch16_224, cut: 2, image_size: 8, args: {patch_size: 2, embed_dim: 64, depth: 6, num_heads: 4}}
data: {path: digits}
training: {batch_size: 32}
""",
    "deit_tiny_96": """
model: {name: deit_tiny_patch16_224, cut: 3, image_size: 96}
data: {path: digits, limit: 640}
training: {batch_size: 64}
""",
}


def engine(scenario: Scenario, runs: Path) -> float:
    """Return the seconds of the round's training in the inline engine."""
    seconds = []
    run = TrainCall.run

    def timed(self, *given):
        began = time.perf_counter()
        replies = run(self, *given)
        seconds.append(time.perf_counter() - began)
        return replies

    TrainCall.run = timed  # type: ignore[method-assign]
    try:
        simulate(scenario, runs=runs)
    finally:
        TrainCall.run = run  # type: ignore[method-assign]
    return seconds[0]


def bare(scenario: Scenario) -> float:
    """Return the seconds of the same steps on the unsplit model in a plain loop."""
    key, training = Key(scenario.seed), scenario.training
    data = load(scenario.data, scenario.model.image_size, 1, key.at("data"))
    model = build(scenario.model, len(data.classes), key=key.at("model")).train()
    mean, std = pixel_stats(scenario.model)
    optimiser = training.client.optimiser_for(model, training.head_lr)
    began = time.perf_counter()
    for batch in batches(
        data.train, data.partitions[0], training.batch_size, key.at("batches", 1, 0), mean=mean, std=std, epochs=1
    ):
        loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()
    return time.perf_counter() - began


def main() -> None:
    """Print one ratio for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="one of the cases; all by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for case in options.case or CASES:
        scenario = Scenario.parse(COMMON + CASES[case], overrides=[f"engine.threads={options.threads}"], name=case)
        with tempfile.TemporaryDirectory() as folder:
            engine(scenario, Path(folder))  # the first of each decodes images and warms up
            bare(scenario)
            times = [(engine(scenario, Path(folder)), bare(scenario)) for _ in range(options.repeats)]
        samples = scenario.data.counts(1438, 359).train
        split, whole = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{case}: inline {samples / split:.1f} samples/s, bare loop {samples / whole:.1f} samples/s")
        print(f"ratio {case}: {int(100 * whole / split) / 100:.2f}", flush=True)


if __name__ == "__main__":
    main()
