"""Small records of finished runs: what tables and pictures are made of, without weights, checkpoints and single steps.

    python benchmarks/records/keep.py runs/cifar100-methods docs/results/runs/cifar100-methods \
        --set data.path=uoft-cs/cifar100

Each record is a folder that `splitfed compare` and `benchmarks/records/results.py` read like the run itself, and that
a sweep takes for done when it lies among its runs: the scenario, with `--set` naming data and weights as others find
them, the metrics, the summary, what it ran with, and the ledger with a row for each round, direction, plane and role.
"""

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path

from splitfed import Scenario
from splitfed.errors import SplitfedError
from splitfed.run.ledger import COLUMNS, Row, Sizes, read_rows
from splitfed.run.summary import NAME

COPIED = ("metrics.csv", NAME)


def summed(path: Path) -> str:
    """Return a ledger as CSV, summed over clients (-1) and steps (0)."""
    sums: dict[tuple, Sizes] = defaultdict(Sizes)
    for row in read_rows(path):
        sums[row.round, row.direction, row.plane, row.role] += row.sizes
    rows = [Row(r, 0, -1, direction, plane, role, sizes) for (r, direction, plane, role), sizes in sums.items()]
    return ",".join(COLUMNS) + "\n" + "".join(row.line() for row in rows)


def keep(run: Path, record: Path, overrides: list[str]) -> None:
    """Write the record of a finished run, in place of an older one."""
    scenario = Scenario.load(str(run / "scenario.yaml"), overrides)
    ledger = summed(run / "ledger.csv")
    record.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(run / name, record / name)
    (record / "scenario.yaml").write_text(scenario.to_yaml())
    (record / "ledger.csv").write_text(ledger)
    attempts = json.loads((run / "environment.json").read_text())
    for attempt in attempts:
        attempt.pop("command", None)  # it names folders of one machine
    (record / "environment.json").write_text(json.dumps(attempts, indent=2) + "\n")


def main() -> None:
    """Keep every finished run of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder of run folders, as a sweep makes it")
    parser.add_argument("records", type=Path, help="the folder of the records")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="how the scenario names it")
    options = parser.parse_args()
    try:
        finished = sorted(path.parent for path in options.runs.glob(f"*/{NAME}"))
        for run in finished:
            keep(run, options.records / run.name, options.set)
    except (SplitfedError, OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    print(f"{len(finished)} runs kept in {options.records}")


if __name__ == "__main__":
    main()
