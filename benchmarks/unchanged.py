"""Whether two commits behave alike: what short runs send, learn and find, recorded with one, compared with the other.

    python benchmarks/unchanged.py record before.json [--only inline --only ray --only deployment] [--case sl]
    python benchmarks/unchanged.py record after.json        # in the other commit's tree
    python benchmarks/unchanged.py compare before.json after.json

A run's record is every row of the data plane in `ledger.csv`, `metrics.csv` without seconds, the test accuracy, what
`splitfed.estimate` foretells, and, of the inline engine, the last model bit for bit. Bytes of the control plane are
compared on the inline engine alone: elsewhere they hold numbers that Flower draws. Each mode, reducer, codec and way to
send weights is in one run at least. Only public names and the command line are used, so that a record can be made with
any commit. It prints a line for each difference and exits with 1 if there is one.
"""

import argparse
import csv
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, astuple
from pathlib import Path

import torch

from splitfed import Scenario, estimate, simulate
from splitfed.scenario.overrides import named

BASE = """
name: unchanged
model: {name: vit_tiny_patch16_224, cut: 1, image_size: 8, args: {patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2}}
data: {path: digits, limit: 96, test_limit: 50}
federation: {clients: 3, rounds: 2, local_epochs: 1}
training:
  batch_size: 16
  client: {optimiser: {kind: adam, lr: 1e-3}}
  server: {optimiser: {kind: adam, lr: 1e-3}}
engine: {kind: inline, threads: 1}
"""
UNIFORM = "compression.{}.codec={{kind: uniform, bits: {}}}"
SEVERAL = ["federation.clients=4", "federation.cohort=2", "federation.rounds=3"]


def _reducer(text: str) -> list[str]:
    return [f"compression.reducer={{{text}}}"]


def _codec(text: str) -> list[str]:
    return [f"compression.{role}.codec={{{text}}}" for role in ("smashed", "cut_gradient")]


CASES: dict[str, list[str]] = {
    "sl": ["federation.mode=sl"],
    "sfl-v1": ["federation.mode=sfl-v1"],
    "sfl-v2": ["federation.mode=sfl-v2"],
    "arrival": ["federation.mode=sfl-v2", "federation.order=arrival"],
    "psl": ["federation.mode=psl", "federation.wave=2"],
    "fl": ["federation.mode=fl", "training.server={}", UNIFORM.format("front_weights", 8)],
    "private": ["federation.labels=private", UNIFORM.format("tail_smashed", 4), UNIFORM.format("tail_gradient", 4)],
    "private-sl": ["federation.labels=private", "federation.mode=sl", "compression.tail_smashed.codec={kind: fedlite}"],
    "private-sfl-v1": ["federation.labels=private", "federation.mode=sfl-v1", "evaluation.held_out=0.2"],
    "delta": [*SEVERAL, "compression.front_weights.delta=true", UNIFORM.format("front_weights", 8)],
    "delta-codec": [*SEVERAL, "compression.front_weights.delta={kind: uniform, bits: 2, rotation: true}"],
    "norms": [*SEVERAL, "model.adapter=norms"],
    "lora": ["model.adapter={kind: lora, rank: 2}", "compression.front_weights.delta=true"],
    "evaluation": [*SEVERAL, "evaluation.held_out=0.2", "evaluation.cohort=2"],
    "evaluation-fl": ["federation.mode=fl", "training.server={}", "evaluation.held_out=0.2"],
    "keep": ["training.client_state=keep", "training.client.schedule={kind: cosine, final: 0.1}"],
    "fedadam": ["federation.strategy={kind: FedAdam}"],
    "fedprox": ["federation.strategy={kind: FedProx, proximal_mu: 0.1}"],
    "phones": [
        *SEVERAL, "federation.oversample=1.5", "federation.availability="
        "{kind: drawn, away: 0.1, dropout: 0.3, step_seconds: {kind: uniform, low: 1.0, high: 3.0}}",
    ],
    "dirichlet": ["data.partition={kind: dirichlet, alpha: 0.5, min_size: 5}", "data.augment=flip"],
    "steps": ["federation.local_epochs=null", "federation.local_steps=3", "training.precision=bfloat16"],
    "dropout": ["model.args.proj_drop_rate=0.2", "training.client.clip=0.5", "training.server.clip=0.5"],
    "budget": ["budget={kind: cut_bytes, bytes: 120kB}", "federation.rounds=9"],
    "presets-medium": named("medium"),
    "adc": _reducer("kind: adc, ratio: 0.4") + _codec("kind: uniform, bits: 4"),
    "merge_samples": _reducer("kind: merge_samples, kept_samples: 0.5") + _codec("kind: uniform, bits: 3"),
    "discard_tokens": _reducer("kind: discard_tokens, kept_tokens: 0.5"),
    "topk": _reducer("kind: topk, ratio: 0.2"),
    "random_topk": _reducer("kind: random_topk, ratio: 0.2, alpha: 0.2"),
    "c3sl": _reducer("kind: c3sl, r: 4"),
    "bottleneck": [*_reducer("kind: bottleneck, width: 4"), UNIFORM.format("parts", 8)],
    "bottleneck-evaluation": [*_reducer("kind: bottleneck, width: 4"), "evaluation.held_out=0.2"],
    "ae": _reducer("kind: ae, width: 4, warm_up_epochs: 1"),
    "float16": _codec("kind: float16"),
    "bfloat16": _codec("kind: bfloat16"),
    "float8": _codec("kind: float8, format: e4m3"),
    "rotated": _codec("kind: uniform, bits: 2, rotation: true, scale_bits: 16"),
    "fedlite": ["compression.smashed.codec={kind: fedlite, subvectors: 4, centroids: 8}"],
    "plain": [f"compression.{role}.lossless=none" for role in ("smashed", "targets", "cut_gradient", "front_weights")],
}  # fmt: skip
RAY = ("sfl-v1", "psl", "private", "delta", "adc", "evaluation", "fl")
DEPLOYED = ("sfl-v2", "private-sfl-v1", "delta", "psl")
CONTROL = ("total_bytes", "total_raw_bytes")


def scenario(case: str, folder: Path, *more: str) -> Scenario:
    """Return a case's scenario; that of `ae` with weights drawn here, as it needs a fitted autoencoder."""
    found = Scenario.parse(BASE, overrides=[*CASES[case], *more] if case != "ae" else [*more])
    if case == "ae":
        weights = folder / "ae.safetensors"
        if not weights.exists():
            given = folder / "align.yaml"
            given.write_text(found.with_(["compression.reducer={kind: ae, width: 4}"]).to_yaml())
            command(folder, "align", given, "--public", "digits", "--steps", 5, "--out", weights)
        found = found.with_([f"compression.reducer={{kind: ae, width: 4, weights: {weights}, warm_up_epochs: 1}}"])
    return found


def command(folder: Path, *arguments: object) -> None:
    """Run a command of splitfed to its end, with what it prints in a file."""
    if start(folder, *arguments).wait(600):
        raise SystemExit((folder / f"{arguments[0]}.log").read_text())


def start(folder: Path, *arguments: object, name: str = "") -> subprocess.Popen:
    """Start a command of splitfed."""
    log = open(folder / f"{name or arguments[0]}.log", "wb")  # noqa: SIM115 - the process has it from now on
    return subprocess.Popen([sys.executable, "-m", "splitfed", *map(str, arguments)], stdout=log, stderr=log)


def inline_or_ray(case: str, engine: str, folder: Path) -> dict:
    """Run a case in this process, or under Ray, and return its record."""
    more = ["engine={kind: ray, threads: 1}"] if engine == "ray" else []
    given = scenario(case, folder, *more)
    found = record(simulate(given, runs=folder / "runs").folder, engine)
    if engine == "inline":
        guess = estimate(given)
        found["estimate"] = {
            "round": _sums(guess.round),
            "once": _sums(guess.once),
            "numbers": [guess.examples, guess.classes, guess.steps, guess.rounds, guess.limit, guess.images],
            "sides": [asdict(guess.client), asdict(guess.server)],
            "operations": asdict(guess.operations),
        }
    return found


def _sums(totals) -> list[list]:
    return sorted([*place, *astuple(sizes)] for place, sizes in totals.sums.items())


def deployed(case: str, folder: Path) -> dict:
    """Run a case as `serve` and `join`, each a process, and return its record."""
    folder.mkdir()
    given = scenario(case, folder)
    file = folder / "unchanged.yaml"
    file.write_text(given.to_yaml())
    ports = [_free_port() for _ in range(2)]
    runs = folder / "runs"
    server = start(folder, "serve", file, "--port", ports[0], "--split-port", ports[1], "--runs", runs)
    clients = [
        start(
            folder, "join", f"127.0.0.1:{ports[0]}", "--partition", client, "--threads", 1, "--state",
            folder / f"state-{client}", name=f"join-{client}",
        )
        for client in range(given.federation.clients)
    ]  # fmt: skip
    for process in (server, *clients):
        try:
            if process.wait(300):
                raise SystemExit((folder / "serve.log").read_text())
        finally:
            if process.poll() is None:
                process.terminate()
    return record(next(runs.iterdir()), "deployment")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def record(folder: Path, engine: str) -> dict:
    """Return what a finished run sent, learned and found."""
    left_out = ("seconds", *(() if engine == "inline" else CONTROL))
    with open(folder / "ledger.csv", newline="") as file:
        ledger = list(csv.DictReader(file))
    with open(folder / "metrics.csv", newline="") as file:
        metrics = [{k: v for k, v in row.items() if k not in left_out} for row in csv.DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text())
    found = {
        "data": [list(row.values()) for row in ledger if row["plane"] == "data"],
        "weights": sorted(list(row.values()) for row in ledger if row["role"] in ("front_weights", "parts")),
        "metrics": metrics,
        "test": [summary["test_accuracy"], summary["test_loss"]],
    }
    if engine == "inline":
        newest = max((folder / "checkpoints").glob("round-*"))
        found["model"] = hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()
        clients = folder / "clients.csv"
        found["clients"] = clients.read_text() if clients.exists() else ""
    elif engine == "deployment" or engine == "ray":
        found["data"].sort()
    return found


def compare(before: dict, after: dict) -> int:
    """Print every difference and return how many runs differ."""
    differ = 0
    for name in before.keys() | after.keys():
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            print(f"{name}: recorded {'after' if one is None else 'before'} alone")
            differ += 1
            continue
        parts = [part for part in one if one[part] != other.get(part)]
        differ += bool(parts)
        for part in parts:
            print(f"{name}: {part}: {_first_difference(one[part], other.get(part))}")
    print(f"{len(before)} runs, {differ} differ")
    return differ


def _first_difference(one: object, other: object) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        key = next(key for key in {**one, **other} if key not in one or key not in other or one[key] != other[key])
        if key not in one or key not in other:
            return f"{key}: is recorded {'after' if key not in one else 'before'} alone"
        return f"{key}: {_first_difference(one[key], other.get(key))}"
    if isinstance(one, list) and isinstance(other, list):
        for place, (a, b) in enumerate(zip(one, other, strict=False)):
            if a != b:
                return f"[{place}] {_first_difference(a, b)}"
        return f"{len(one)} and {len(other)} entries"
    return f"{str(one)[:200]} and {str(other)[:200]}"


def main() -> None:
    """Record or compare, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--only", action="append", choices=("inline", "ray", "deployment"))
    recording.add_argument("--case", action="append", choices=list(CASES))
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "compare":
        sys.exit(bool(compare(json.loads(given.before.read_text()), json.loads(given.after.read_text()))))
    os.environ |= {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    torch.set_num_threads(1)
    found: dict[str, dict] = {}
    cases = {"inline": CASES, "ray": RAY, "deployment": DEPLOYED}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for engine in given.only or cases:
            for case in [case for case in cases[engine] if not given.case or case in given.case]:
                name = f"{engine}/{case}"
                place = folder / name.replace("/", "-")
                found[name] = deployed(case, place) if engine == "deployment" else inline_or_ray(case, engine, folder)
                print(name, found[name]["test"][0], len(found[name]["data"]), flush=True)
    if given.case and given.file.exists():
        found = json.loads(given.file.read_text()) | found
    given.file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
