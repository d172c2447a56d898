"""How fast each federation mode trains, and what it sends, beside a bare PyTorch loop at the same total batch.

    python benchmarks/modes.py [--mode psl] [--packing tokens] [--clients 8] [--batch 16] [--steps 10] [--repeats 3]

`private` is sfl-v2 with private labels, whose second cut has the codecs of the first.

ViT-Tiny at 32 pixels in patches of 4, cut 3, engine `inline`, with so many torch threads (`--threads`, 1 by default);
uncompressed (nothing reduced, float32, no lossless stage) and with few bits of seven tokens of ten. The bare loop is
what a PyTorch user would write for the unsplit model, with images from the same loader. One client's mini-batch is a
step of it; with `psl` a joint step is, with the mini-batches of all clients in one: 8 clients of 16 images beside
batches of 128.

Whole rounds are timed, as `metrics.csv` tells them: drawing the cohort, the messages with the fronts' weights,
training, averages, checkpoint, and validation of three images. A first round, which builds what clients train with, is
left out, as the bare loop's first step is. The bare loop trains as many images as a round right before and right after
each run, so that a busy machine slows both; runs of all modes alternate. `ratio psl uncompressed: 0.96` is the median
over runs of the samples/s of a run to those of the loops around it. Bytes are those of a round.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from itertools import pairwise

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does: what spins stops what works

import torch
from torch import nn

from splitfed import Scenario, simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.engines.allocator import keep_freed_memory
from splitfed.model.build import build, pixel_stats
from splitfed.reports import units
from splitfed.scenario.overrides import named
from splitfed.scenario.presets import PRESETS
from splitfed.seeds import Key

# What makes each mode.
MODES = {
    "sl": ["federation.mode=sl"],
    "sfl-v1": ["federation.mode=sfl-v1"],
    "sfl-v2": ["federation.mode=sfl-v2"],
    "psl": ["federation.mode=psl"],
    "fl": ["federation.mode=fl"],
    "private": ["federation.labels=private"],
}
PACKINGS = ("uncompressed", "tokens")
FEWER = "compression.reducer={kind: discard_tokens, kept_tokens: 0.7}"
CUT, SECOND_CUT = ("smashed", "targets", "cut_gradient"), ("tail_smashed", "tail_gradient")
SCENARIO = """
seed: 0
model: {name: deit_tiny_patch16_224, cut: 3, image_size: 32, args: {patch_size: 4}}
data: {path: digits, validation: 0.002, test_limit: 16}
federation: {clients: 8, rounds: 1, local_steps: 1}
"""


def packing_of(mode: str, packing: str) -> list[str]:
    """Return what makes a packing, of the roles that a mode has."""
    if packing == "uncompressed":
        second = SECOND_CUT if mode == "private" else ()
        roles = ("front_weights",) if mode == "fl" else (*CUT, *second, "front_weights")
        return [f"compression.{role}.lossless=none" for role in roles]
    few = PRESETS["medium"]["compression"]
    if mode == "fl":
        return [f"compression.front_weights={json.dumps(few['front_weights'])}"]
    if mode != "private":
        return [*named("medium"), FEWER]
    second = zip(SECOND_CUT, ("smashed", "cut_gradient"), strict=True)
    return [*named("medium"), FEWER, *(f"compression.{one}={json.dumps(few[like])}" for one, like in second)]


def ours(scenario: Scenario, samples: int) -> tuple[list[float], int, int]:
    """Return the samples/s of each round of a run but the first, and the bytes of a round: at the cut, and in all."""
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(scenario, runs=folder, observers=())
    ends = [row.seconds for row in result.rounds]
    cut, total = (number // len(result.rounds) for number in (result.summary.cut_bytes, result.summary.total_bytes))
    return [samples / (later - earlier) for earlier, later in pairwise(ends)], cut, total


def bare(scenario: Scenario, batch: int, samples: int) -> float:
    """Return the samples/s of the unsplit model in a plain loop, after a step that warms up."""
    key, training = Key(scenario.seed), scenario.training
    data = load(scenario.data, scenario.model.image_size, 1, key.at("data"))
    model = build(scenario.model, len(data.classes), key=key.at("model")).train()
    mean, std = pixel_stats(scenario.model)
    optimiser = training.client.optimiser_for(model, training.head_lr)
    steps = samples // batch
    given = batches(data.train, data.partitions[0], batch, key.at("batches"), mean=mean, std=std, steps=1 + steps)
    for number, one in enumerate(given):
        if number == 1:
            began = time.perf_counter()
        loss = nn.functional.cross_entropy(model(one.images), one.labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()
    return batch * steps / (time.perf_counter() - began)


def main() -> None:
    """Print a ratio for each mode and packing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", action="append", choices=MODES, help="one of the modes; all by default")
    parser.add_argument("--packing", action="append", choices=PACKINGS, help="one of the two; both by default")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16, help="images of a client's mini-batch")
    parser.add_argument("--steps", type=int, default=10, help="mini-batches of each client in a round")
    parser.add_argument("--rounds", type=int, default=1, help="so many are timed, after one that is not")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command line does too
    samples = options.clients * options.batch * options.steps
    changes = [
        f"federation.clients={options.clients}", f"federation.local_steps={options.steps}",
        f"federation.rounds={1 + options.rounds}", f"training.batch_size={options.batch}",
        "training.evaluate_every=1", f"engine.threads={options.threads}",
    ]  # fmt: skip
    cases = [(mode, packing) for packing in options.packing or PACKINGS for mode in options.mode or MODES]
    rates, ratios, sent = defaultdict(list), defaultdict(list), {}
    for _ in range(options.repeats):
        for mode, packing in cases:
            scenario = Scenario.parse(
                SCENARIO, overrides=[*changes, *MODES[mode], *packing_of(mode, packing)], name=mode
            )
            step = options.batch * (options.clients if mode == "psl" else 1)
            before = bare(scenario, step, samples)
            found, *sent[mode, packing] = ours(scenario, samples)
            around = (before + bare(scenario, step, samples)) / 2
            rates[mode, packing].append((statistics.median(found), around))
            ratios[mode, packing].append(statistics.median(found) / around)
    for mode, packing in cases:
        rate, loop = (statistics.median(column) for column in zip(*rates[mode, packing], strict=True))
        cut, total = map(units.size, sent[mode, packing])
        print(f"{mode} {packing}: {rate:.1f} samples/s, bare loop {loop:.1f}; {cut} at the cut, {total} in all")
        print(f"ratio {mode} {packing}: {int(100 * statistics.median(ratios[mode, packing])) / 100:.2f}", flush=True)


if __name__ == "__main__":
    main()
