"""How far what the back sees is from what the front made, visit by visit, with and without copies at both ends.

    python benchmarks/copies.py [--images 128] [--lr 3e-3]

One client of `digits` and its server in one process; the front learns at this rate, in mini-batches of 16. A row is a
setting of `compression.smashed`, rotated and with scales in 16 bits; a column is a pass over the images:

    error      norm of what the back sees less what the front made, as a share of the latter's, mean of the mini-batches
    skipped    share of the samples that are not sent, of the settings that skip

Bytes are those of smashed data and ids over all passes, after the lossless stage.
"""

import argparse

import torch
from torch import nn

from splitfed import Scenario
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.model.build import pixel_stats
from splitfed.seeds import Key
from splitfed.split.assembly import assemble
from splitfed.split.copies import SKIPPED, Copies, Visit
from splitfed.split.cut import Cut
from splitfed.wire.frame import Place

SHOWN = (1, 2, 4, 8, 16)


def bits(number: int) -> str:
    return f"codec: {{kind: uniform, bits: {number}, rotation: true, scale_bits: 16}}"


SETTINGS = {f"{number} bits": f"{{{bits(number)}}}" for number in (2, 3, 4)}
SETTINGS |= {f"{number} bits, delta": f"{{{bits(number)}, delta: true}}" for number in (2, 3, 4)}
SETTINGS |= {f"3 bits, delta, skip {t}": f"{{{bits(3)}, delta: true, skip: {t}}}" for t in (0.98, 0.95, 0.9)}


class Client:
    """One client with its server: trains pass after pass, and notes error and share of skipped samples of each."""

    def __init__(self, smashed: str, images: int, lr: float) -> None:
        scenario = Scenario.load("digits", [f"compression.smashed={smashed}", "federation.clients=1"])
        self.key, self.scenario = Key(scenario.seed), scenario
        self.data = load(scenario.data, scenario.model.image_size, 1, self.key.at("data"))
        self.rows = self.data.partitions[0][:images]
        self.front, self.back, _ = assemble(scenario, 10)
        self.cut = Cut.of(scenario, self.front.geometry(scenario.training.batch_size, 10), torch.device("cpu"))
        self.optimisers = [
            torch.optim.Adam(self.front.parameters(), lr),
            torch.optim.Adam(self.back.parameters(), 3e-4),
        ]
        self.ends = self.cut.copies(), self.cut.copies()
        self.bytes = 0

    def train(self, number: int) -> tuple[float, float]:
        """Go through the images once; return the mean error and the share that was skipped."""
        mean, std = pixel_stats(self.scenario.model)
        found = []
        size, key = self.scenario.training.batch_size, self.key.at(number)
        for batch in batches(self.data.train, self.rows, size, key, mean=mean, std=std, epochs=1):
            found.append(self.step(batch, self.key.at(number, len(found))))
        errors, skipped = zip(*found, strict=True)
        return sum(errors) / len(errors), sum(skipped) / len(self.rows)

    def step(self, batch, key: Key) -> tuple[float, int]:
        """Train a mini-batch; return its error and how many samples of it were skipped."""
        made, (here, there) = self.front(batch.images), self.ends
        plan, targets = self.cut.plan(made, batch.labels, key)
        smashed = plan.reduce(made)
        visit = Visit(batch.rows, here) if isinstance(here, Copies) else None
        packed = self.cut.pack_step(plan, smashed, targets, len(targets), key, Place(1, 0, 1), visit)
        frame = self.cut.unpack_up(packed.buffer)
        arrived = self.cut.batch(frame, there)
        self.bytes += sum(packed.sizes[role].sent for role in ("smashed", "ids") if role in packed.sizes)
        seen = arrived.smashed.requires_grad_()
        nn.functional.cross_entropy(self.back(seen), targets).backward()
        smashed.backward(seen.grad)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        error = (seen - smashed).norm() / smashed.norm()
        return float(error.detach()), int(frame.tensors[SKIPPED].sum()) if SKIPPED in frame.tensors else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':26}" + "".join(f"{f'pass {number}':>9}" for number in SHOWN) + f"{'bytes':>12}")
    for name, smashed in SETTINGS.items():
        client = Client(smashed, given.images, given.lr)
        passes = {number: client.train(number) for number in range(1, SHOWN[-1] + 1)}
        print(
            f"{name:26}" + "".join(f"{passes[number][0]:9.1%}" for number in SHOWN) + f"{client.bytes:12,}", flush=True
        )
        if "skip" in name:
            print(f"{'  skipped':26}" + "".join(f"{passes[number][1]:9.1%}" for number in SHOWN), flush=True)


if __name__ == "__main__":
    main()
