"""What a round of a deployment costs beside its mini-batches, and how long one takes to start.

    python benchmarks/deployment/deployed_round.py [--clients 2] [--rounds 12] [--mode sfl-v1]

Real processes over loopback: `splitfed serve` and a `splitfed join` for every client, first in plain text and then with
TLS and keys. The model is ViT-Tiny at 32 pixels in patches of 4 with cut 3, whose front takes 5.4 MB each way for every
client and round, uncompressed. A client trains on one mini-batch of one image in a round, a twentieth of a second: all
but that is what the round costs however long its training takes, from drawing the cohort to the checkpoint on disk.

`rounds` are the times from the end of a round to the end of the next, as `metrics.csv` tells them. `first round after`
is the time from the start of all commands, which are started together, until everybody is there and round 1 begins.
"""

import argparse
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))

from deployed import deployment

from splitfed import Scenario
from splitfed.engines.deployment.certificates import make
from splitfed.run.metrics import read_metrics

SCENARIO = """
seed: 0
model: {name: deit_tiny_patch16_224, cut: 3, image_size: 32, args: {patch_size: 4}}
data: {path: digits, limit: 64, validation: 0.01, test_limit: 16}
federation: {clients: 2, rounds: 1, local_steps: 1}
training: {batch_size: 1}
compression: {front_weights: {lossless: none}}
engine: {threads: 1}
checkpoints: {keep: 1000}
"""


def measure(scenario: Scenario, folder: Path, tls: bool) -> tuple[float, list[float]]:
    """Return the seconds until round 1 begins, and those of each later round."""
    clients = range(scenario.federation.clients)
    served, joined = [], {client: [] for client in clients}
    if tls:
        make(folder / "tls", ["127.0.0.1"], len(clients))
        served, joined = ["--tls", folder / "tls"], {n: ["--tls", folder / "tls" / f"client-{n}"] for n in clients}
    with deployment(folder) as here:
        began = time.time()
        server = here.serve(scenario, *served)
        for client in clients:
            here.join(client, *joined[client])
        if server.end(300):
            raise SystemExit(server.text)
        run = here.runs[0]
    # The checkpoint that round 1 starts from is written right before it.
    start = (run / "checkpoints" / "round-000000").stat().st_mtime - began
    ends = [row.seconds for row in read_metrics(run / "metrics.csv")]
    return start, [later - earlier for earlier, later in pairwise(ends)]


def main() -> None:
    """Print a line for plain text and one for TLS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--mode", choices=("sfl-v1", "sfl-v2"), default="sfl-v1")
    options = parser.parse_args()
    changes = [
        f"federation.clients={options.clients}", f"federation.rounds={options.rounds + 1}",
        f"federation.mode={options.mode}", f"training.evaluate_every={options.rounds + 1}",
    ]  # fmt: skip
    for kind in ("plain", "tls"):
        with tempfile.TemporaryDirectory() as folder:
            start, rounds = measure(Scenario.parse(SCENARIO, overrides=changes, name=kind), Path(folder), kind == "tls")
        print(f"{kind:5}  first round after {start:.1f} s", end="  ")
        print(f"rounds: median {statistics.median(rounds):.2f} s, longest {max(rounds):.2f} s", flush=True)


if __name__ == "__main__":
    main()
