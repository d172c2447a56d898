"""What each method makes client and server compute, as figure 5 of the ADC paper (arXiv 2509.15058) shows it.

    python benchmarks/operations.py sweeps/cifar100-methods.yaml
    python benchmarks/operations.py cifar100-paper --set compression.reducer='{kind: adc, ratio: 0.05}'

The rows are the points of a sweep, or one scenario. Operations are those of a training image, forward and backward, a
multiplication and an addition being two; `splitfed/operations.py` says what is counted. `compression` is the part of
the client's or the server's that reducer and codecs add, in percent of the model's own half there without reduction;
`ratio` is the whole side's over the uncompressed one's. Clusters depend on the mini-batch: it is the scenario's.
"""

import argparse
import os

from splitfed import Scenario
from splitfed.errors import SplitfedError
from splitfed.reports.sweep.plan import Sweep
from splitfed.scenario.document import read
from splitfed.split.computing.operations import Operations, count

COLUMNS = ("client GFLOP", "compression %", "ratio", "server GFLOP", "compression %", "ratio")


def methods(source: str, overrides: list[str]) -> dict[str, Scenario]:
    """Return the scenarios of a sweep by their labels, or a scenario by its name. Raises ScenarioError."""
    if os.path.isfile(source):
        with open(source, encoding="utf-8-sig") as file:
            keys = read(file.read(), source).data
        if "scenario" in keys and "model" not in keys:
            return {point.label: point.scenario for point in Sweep.load(source, overrides).points}
    scenario = Scenario.load(source, overrides)
    return {scenario.name: scenario}


def cells(found: Operations) -> list[str]:
    """Return a row's figures."""
    row = []
    for side, plain, added, ratio in (
        (found.client, found.front, found.reducing, found.client_ratio),
        (found.server, found.plain_back, found.restoring, found.server_ratio),
    ):
        row += [f"{side / 1e9:.3f}", f"{100 * added / plain:.2f}", f"{ratio:.3f}"]
    return row


def main() -> None:
    """Print the table, a row as soon as it is counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SCENARIO_OR_SWEEP", help="a file, or the name of a scenario that ships")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as splitfed takes it")
    options = parser.parse_args()
    try:
        rows = methods(options.source, options.set)
        width = max(len("method"), *map(len, rows))
        print(f"{'method':{width}}" + "".join(f"{column:>15}" for column in COLUMNS))
        for label, scenario in rows.items():
            print(f"{label:{width}}" + "".join(f"{cell:>15}" for cell in cells(count(scenario))), flush=True)
    except SplitfedError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
