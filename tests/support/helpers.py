"""A scenario small enough to run in a second, and ways to look into runs."""

import csv
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from splitfed import Scenario, simulate

BASE = """
name: small
model: {name: vit_tiny_patch16_224, cut: 1, image_size: 8, args: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}}
data: {path: digits, limit: 96, test_limit: 50}
federation: {clients: 3, rounds: 2, local_epochs: 1}
training:
  batch_size: 16
  client: {optimiser: {kind: adam, lr: 1e-3}}
  server: {optimiser: {kind: adam, lr: 1e-3}}
engine: {kind: inline, threads: 1}
"""

# Two blocks at the client, two at the server.
DEEPER = ("model.args={patch_size: 4, embed_dim: 16, depth: 4, num_heads: 2}", "model.cut=2")
LABEL_BYTES = 8  # of a label as the uncompressed yardstick counts it
# What is called uncompressed: nothing reduced, float32, no lossless stage, on either plane.
PLAIN = [f"compression.{role}.lossless=none" for role in ("smashed", "targets", "cut_gradient", "front_weights")]
ADC = [
    "compression.reducer={kind: adc, ratio: 0.4}",
    "compression.smashed.codec={kind: uniform, bits: 4}",
    "compression.cut_gradient.codec={kind: uniform, bits: 4}",
    "compression.front_weights.codec={kind: uniform, bits: 8}",
]


def small(*overrides: str) -> Scenario:
    """Return the small scenario with some values changed."""
    return Scenario.parse(BASE, overrides=list(overrides))


def few(values: Iterable[Any], quick: int = 0) -> list[Any]:
    """Leave one of a test's cases, by its place, to the fast tests; the others are among the slow ones.

    For cases that each take runs of their own and differ little in what can break.
    """
    cases = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*case, marks=() if place == quick else pytest.mark.slow) for place, case in enumerate(cases)]


def table(path: Path, *without: str) -> list[dict[str, str]]:
    """Read a CSV file, leaving out some columns."""
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Let no file that this process writes grow beyond so many bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_in_child(text: str, runs: str, resume: str | None) -> None:
    """Start or resume a run; what a child process, which cannot import a test module, is given to do."""
    if resume:
        simulate(resume=resume)
    else:
        simulate(Scenario.parse(text), runs=runs)
