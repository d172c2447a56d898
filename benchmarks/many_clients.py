"""What a thousand clients cost over ten, at the same cohort: peak memory, and seconds until training begins.

    python benchmarks/many_clients.py --set data.path=FOLDER --set model.weights=FILE

CIFAR-100 and DeiT-Tiny at 96 pixels, all 50,000 images, inline engine, cohorts of 10, a few mini-batches a round. Each
run is a process of its own. Images are decoded when they are needed and not kept, as kept ones would hide the rest.
Memory is the most that the process ever had resident; the seconds include imports, data and weights.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

CLIENTS = (10, 1000, 10_000)
SETTINGS = (
    "data.limit=null", "data.test_limit=200", "data.validation=0.01", "data.cache=null", "federation.cohort=10",
    "federation.local_epochs=null", "federation.local_steps=2", "training.batch_size=32",
    "training.client_state=keep", "budget=none", "phases=[]", "memory=null", "data.variants=null",
    # Of its own, so that figures can be compared when the scenario's follow new measurements.
    "compression={reducer: {kind: discard_tokens, kept_tokens: 0.8}, front_weights: {codec: {kind: uniform, bits: 8}}}",
    "compression.smashed.codec={kind: uniform, bits: 4}", "compression.cut_gradient.codec={kind: uniform, bits: 4}",
)  # fmt: skip


def run(clients: int, rounds: int, threads: int, overrides: list[str]) -> None:
    """Train with so many clients and print what it took, as JSON; called in a process of its own."""
    began = time.monotonic()
    from splitfed import Scenario, simulate
    from splitfed.run.observer import Observer

    class Watch(Observer):
        """Notes when training begins."""

        seconds = 0.0

        def started(self, info) -> None:
            """Everything is loaded and every client has answered."""
            self.seconds = time.monotonic() - began

    settings = [*SETTINGS, f"federation.clients={clients}", f"federation.rounds={rounds}", f"engine.threads={threads}"]
    watch = Watch()
    with tempfile.TemporaryDirectory() as runs:
        simulate(Scenario.load("cifar100-cpu", [*settings, *overrides]), runs=runs, observers=[watch])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"clients": clients, "peak": peak, "start": watch.seconds, "all": time.monotonic() - began}))


def main() -> None:
    """Print a line for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the scenario")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch's")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run(options.only, options.rounds, options.threads, options.set)
        return
    print(f"{'clients':>8}  {'peak MB':>8}  {'ratio':>6}  {'start s':>8}  {'all s':>7}")
    first = None
    for clients in CLIENTS:
        told = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--only", str(clients)], stdout=subprocess.PIPE, check=True
        )  # fmt: skip
        found = json.loads(told.stdout.splitlines()[-1])
        first = first or found["peak"]
        print(
            f"{clients:>8,}  {found['peak'] / 1e6:>8.0f}  {found['peak'] / first:>6.2f}  {found['start']:>8.1f}  "
            f"{found['all']:>7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
