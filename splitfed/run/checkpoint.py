"""Checkpoints: everything that the next round needs, written at the end of each round or not at all.

`checkpoints/round-000012/` holds `model.safetensors` (front and back under timm's names), `optimiser.safetensors` (the
back's), `state.json` and, where there is such a state, `strategy.safetensors` (the strategy's arrays, and the rest as
metadata) and, alike, `held.safetensors` (the weights that clients hold, and who holds which). A folder by that name is
complete: it is written beside and renamed.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitfed.errors import RunError
from splitfed.files import sync
from splitfed.model.optim import OptimiserState, flatten, unflatten
from splitfed.run.tree import Flat

_STRATEGY, _HELD = "strategy", "held"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: the finished round, the attempt that finished it, seconds so far, the lengths in bytes that
    `ledger.csv` and `metrics.csv` had, the examples that each client trains on, the clients that have fitted an encoder
    to their images, and the length of `clients.csv`, 0 where there was none."""

    round: int
    attempt: int
    seconds: float
    ledger_bytes: int
    metrics_bytes: int
    examples: list[int]
    aligned: list[int] = field(default_factory=list)
    clients_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as read: the model under timm's names, the back's optimiser, the progress, and, if there is any, the
    strategy's state and what clients hold of the weights."""

    model: dict[str, Tensor]
    optimiser: OptimiserState
    progress: Progress
    strategy: Flat | None = None
    held: Flat | None = None


class Checkpoints:
    """The checkpoints of a run; the newest `keep` stay."""

    def __init__(self, run: Path, keep: int = 1) -> None:
        self._folder, self._keep = run / "checkpoints", keep

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("round-*"))

    def save(
        self, model: dict[str, Tensor], optimiser: OptimiserState, progress: Progress, strategy: Flat | None = None,
        held: Flat | None = None,
    ) -> None:  # fmt: skip
        """Write a checkpoint; when this returns it is on disk."""
        self._folder.mkdir(exist_ok=True)
        scratch, final = self._folder / ".new", self._folder / f"round-{progress.round:06d}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        files: list[tuple[str, dict[str, Tensor], dict[str, str] | None]] = [
            ("model", model, None),
            ("optimiser", flatten(optimiser), None),
        ]
        for name, state in ((_STRATEGY, strategy), (_HELD, held)):
            if state is not None:
                files.append((name, state[0], {"state": state[1]}))
        for name, tensors, metadata in files:
            path = scratch / f"{name}.safetensors"
            save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, path, metadata)
            sync(path)
        (scratch / "state.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")
        sync(scratch / "state.json")
        shutil.rmtree(final, ignore_errors=True)
        scratch.rename(final)
        sync(self._folder)
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)

    def rounds(self) -> list[int]:
        """Return the rounds after which a checkpoint was written, ascending: those that are still there."""
        return [int(folder.name.removeprefix("round-")) for folder in self._all()]

    def model(self, round: int) -> dict[str, Tensor]:
        """Read the model alone of one of `rounds`, under timm's names. Raises RunError where it is broken."""
        path = self._folder / f"round-{round:06d}" / "model.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path}: broken checkpoint ({error}); name another --round, or run again") from error

    def choose(self, round: int | None) -> tuple[int, dict[str, Tensor]]:
        """Read the model alone, the newest or that of a `round`, and return it behind its round. Raises RunError where
        there is none."""
        if not (rounds := self.rounds()):
            raise RunError(f"{self._folder.parent}: has no checkpoint yet; one is written after each round")
        if round is not None and round not in rounds:
            raise RunError(
                f"--round {round}: {self._folder.parent} holds the checkpoints of {', '.join(map(str, rounds))} alone; "
                "more stay with checkpoints.keep"
            )
        chosen = rounds[-1] if round is None else round
        return chosen, self.model(chosen)

    def latest(self) -> Checkpoint | None:
        """Read the newest checkpoint; None before the first. Raises RunError where it is broken."""
        if not (found := self._all()):
            return None
        folder = found[-1]
        try:
            progress = Progress(**json.loads((folder / "state.json").read_text()))
            model, optimiser = (load_file(folder / f"{name}.safetensors") for name in ("model", "optimiser"))
            strategy, held = (_flat(folder / f"{name}.safetensors") for name in (_STRATEGY, _HELD))
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise RunError(f"{folder}: broken checkpoint ({error}); delete it to go on from the one before") from error
        return Checkpoint(model, unflatten(optimiser), progress, strategy, held)


def _flat(path: Path) -> Flat | None:
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {})["state"]  # noqa: SIM118
