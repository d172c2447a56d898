"""What a controller brings on a line whose rate changes, beside settings that stay: accuracy at equal bytes and times.

    python benchmarks/controller.py [--seeds 0,1,2,3,4] [--seconds 3.5] [--jobs 1] [--runs FOLDER]

Four clients with 160 digits each, `sfl-v2`, one pass a round. Each seed has a recording of its own, whose rate is
another every 2 to 15 seconds (median 0.8 Mbit/s, sigma 0.9; twice that down). With a controller rounds are to take so
many `--seconds` in the mean, by points of 16 bits, of 4 up and 3 down, and of 2 with half of the tokens: `told` is
given utilities of 1, 0.9 and 0.4, `seen` finds them itself. Beside them each point throughout, and 6 bits up and 4
down. Learning rates are constant, so that curves can be cut anywhere.

Printed is, for each seed, where the controller ended, and what every setting had after as many bytes and after as much
simulated time, on the validation split; then the means. A setting that never sent as much is taken at its end, and
marked with *. Runs that are done are not made again.
"""

import argparse
import csv
import statistics
import tempfile
from pathlib import Path

import numpy as np
import yaml

import splitfed
from splitfed.reports.study.groups import Axis, Run
from splitfed.run.summary import Summary

ROUNDS, LONGER = 24, 60  # of the controllers, and of the others, for they send less in a round or take less time
SECONDS = 900  # of a recording, which then begins again


def bits(up: int, down: int, **more: object) -> dict:
    """Return what a scenario says of compression in so many rotated bits."""
    codec = {"kind": "uniform", "rotation": True, "scale_bits": 16}
    return {
        "smashed": {"codec": {**codec, "bits": up}}, "cut_gradient": {"codec": {**codec, "bits": down}}, **more,
    }  # fmt: skip


WIDE = {"smashed": {"codec": "float16"}, "cut_gradient": {"codec": "float16"}}
POINTS = {
    "fine": WIDE, "mid": bits(4, 3),
    "coarse": bits(2, 2, reducer={"kind": "discard_tokens", "kept_tokens": 0.5}),
}  # fmt: skip
FIXED = {**POINTS, "six": bits(6, 4)}
UTILITIES = {"fine": 1.0, "mid": 0.9, "coarse": 0.4}


def recording(seed: int, place: Path, faster: float) -> None:
    """Write a recording: seconds, and the Mbit/s until then."""
    numbers = np.random.default_rng(seed)
    second, lines = 0.0, []
    while second < SECONDS:
        second += numbers.uniform(2, 15)
        lines.append(f"{second:.3f} {faster * 0.8 * np.exp(0.9 * numbers.standard_normal()):.4f}")
    place.write_text("\n".join(lines) + "\n")


def sweep(seed: int, folder: Path, seconds: float) -> Path:
    """Write a seed's recordings and its sweep, and return the sweep's path."""
    for name, faster in (("up", 1.0), ("down", 2.0)):
        recording(seed, folder / f"{name}-{seed}.trace", faster)
    target = {"kind": "seconds_per_round", "seconds": seconds}

    def controlled(utilities: dict[str, float]) -> dict:
        # Points are written over what is without them, so each says all of it.
        points = {
            name: {"compression": {"reducer": "none", **what}, **({"utility": utilities[name]} if utilities else {})}
            for name, what in POINTS.items()
        }  # fmt: skip
        return {
            "control": {"kind": "drift_plus_penalty", "v": 1.0, "target": target, "points": points},
            "federation.rounds": ROUNDS, "compression.smashed": WIDE["smashed"],
            "compression.cut_gradient": WIDE["cut_gradient"],
        }  # fmt: skip

    file = {
        "scenario": "digits-lte",
        "set": {
            "preset": None, "compression": {"front_weights": {"codec": {"kind": "uniform", "bits": 8}}},
            "federation.clients": 4, "federation.local_epochs": 1, "federation.rounds": LONGER, "data.limit": 640,
            "federation.profiles": {"phone": {"share": 1, "device": {"flops": "5GFLOPS"}}},
            "training.client.schedule": "constant", "training.server.schedule": "constant",
            "link": {
                "kind": "trace", "up": str(folder / f"up-{seed}.trace"), "down": str(folder / f"down-{seed}.trace"),
                "latency": "30ms",
            },
            "engine": {"kind": "inline", "threads": 1},
        },
        "points": {
            "told": controlled(UTILITIES), "seen": controlled({}),
            **{name: {f"compression.{key}": value for key, value in what.items()} for name, what in FIXED.items()},
        },
        "seeds": [seed],
    }  # fmt: skip
    place = folder / f"controller-{seed}.yaml"
    place.write_text(yaml.safe_dump(file, sort_keys=False))
    return place


def at(run: Run, amount: float, of: Axis) -> tuple[float, str]:
    """Return a run's accuracy after so much was spent, and a mark where it never spent as much."""
    found = run.at(amount, of)
    if found is not None:
        return found, ""
    last = [row.eval_accuracy for row in run.rounds if row.eval_accuracy is not None][-1]
    return last, "*"


def mean_seconds(folder: Path) -> float:
    """Return what the rounds of a run's clients took in the mean, by themselves."""
    with open(folder / "control.csv", newline="") as file:
        return statistics.mean(float(row["seconds"]) for row in csv.DictReader(file))


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    return [int(one) for one in text.split(",")]


def main() -> None:
    """Run all, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=numbers, default="0,1,2,3,4")
    parser.add_argument("--seconds", type=float, default=3.5, help="what a round is to take")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, help="where runs are made and kept; nowhere when left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.runs or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        compared(given, folder)


def compared(given: argparse.Namespace, folder: Path) -> None:
    """Run the sweeps of all seeds below a folder, and print what came."""
    for name in ("told", "seen"):
        rows, sums = [], dict[str, list[float]]()
        for seed in given.seeds:
            swept = splitfed.sweep(sweep(seed, folder, given.seconds), runs=folder, jobs=given.jobs)
            runs = {one.name.rpartition("-seed")[0]: Run(one, Summary.read(one)) for one in swept.done}
            own = runs[name]
            last = own.rounds[-1]
            bytes_, time = last.total_bytes, last.simulated_seconds or 0.0
            row = [str(seed), f"{last.eval_accuracy or 0.0:.1%}", f"{mean_seconds(own.folder):.2f} s",
                   f"{bytes_ / 1e6:.2f} MB", f"{time:.0f} s"]  # fmt: skip
            sums.setdefault("own", []).append(last.eval_accuracy or 0.0)
            for axis, amount in (("total", bytes_), ("simulated", time)):
                for other in FIXED:
                    accuracy, mark = at(runs[other], amount, axis)  # type: ignore[arg-type]
                    row.append(f"{accuracy:.1%}{mark}")
                    sums.setdefault(f"{axis} {other}", []).append(accuracy)
            rows.append(row)
        means = [statistics.mean(values) for values in sums.values()]
        rows.append(["mean", f"{means[0]:.1%}", "", "", "", *(f"{mean:.1%}" for mean in means[1:])])
        heads = ["seed", name, "a client's round", "bytes", "time", *(f"{one}, bytes" for one in FIXED),
                 *(f"{one}, time" for one in FIXED)]  # fmt: skip
        for line in [heads, ["---"] * len(heads), *rows]:
            print(f"| {' | '.join(line)} |")
        print()


if __name__ == "__main__":
    main()
