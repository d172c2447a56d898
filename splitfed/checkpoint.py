"""Checkpoints: everything that the next round needs, written at the end of each round or not at all.

`checkpoints/round-000012/` holds `model.safetensors` (front and back under timm's names), `optimiser.safetensors` (the
back's) and `state.json`. A folder by that name is complete: it is written beside and renamed.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitfed.errors import RunError
from splitfed.files import sync
from splitfed.optimiser_state import OptimiserState, flatten, unflatten


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: the finished round, the attempt that finished it, seconds so far, the lengths in bytes that
    `ledger.csv` and `metrics.csv` had, the examples that each client holds, and the clients that have fitted an encoder
    to their images."""

    round: int
    attempt: int
    seconds: float
    ledger_bytes: int
    metrics_bytes: int
    examples: list[int]
    aligned: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as read: the model under timm's names, the back's optimiser, and the progress."""

    model: dict[str, Tensor]
    optimiser: OptimiserState
    progress: Progress


class Checkpoints:
    """The checkpoints of a run; the newest `keep` stay."""

    def __init__(self, run: Path, keep: int = 1) -> None:
        self._folder, self._keep = run / "checkpoints", keep

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("round-*"))

    def save(self, model: dict[str, Tensor], optimiser: OptimiserState, progress: Progress) -> None:
        """Write a checkpoint; when this returns it is on disk."""
        self._folder.mkdir(exist_ok=True)
        scratch, final = self._folder / ".new", self._folder / f"round-{progress.round:06d}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for name, tensors in (("model", model), ("optimiser", flatten(optimiser))):
            path = scratch / f"{name}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
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
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise RunError(f"{folder}: broken checkpoint ({error}); delete it to go on from the one before") from error
        return Checkpoint(model, unflatten(optimiser), progress)
