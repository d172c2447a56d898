"""Checkpoints: everything that the next round needs, written at the end of each round or not at all.

Whatever must survive a kill has a `state_dict` and a `load_state_dict`, and is registered under a name. A checkpoint,
`checkpoints/round-000012/`, holds `<name>.safetensors` for each: a flat mapping of tensors as it is (so
`model.safetensors` has timm's names), nested values as tensors with the rest as metadata. What JSON can hold alone
stands in `state.json`, beside the run's progress and the names of all files. A folder by that name is complete: it is
written beside and renamed.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitfed.errors import RunError, SplitfedError
from splitfed.files import sync
from splitfed.run.tree import flatten, unflatten

_STATE, _STATES, _FILES, _NESTED = "state.json", "states", "files", "state"
# What a checkpoint of 0.1 has under another name, and what of it this version cannot read.
_EXAMPLES, _ALIGNED, _UNREADABLE = "examples", "aligned", "held.safetensors"

State = dict[str, Any]


class Stateful(Protocol):
    """What has a state that a run goes on with: nested dicts and lists of tensors, arrays and plain values."""

    def state_dict(self) -> State:
        """Return what the next round needs; nothing where that is nothing."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Take over what `state_dict` returned in an earlier attempt."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: the finished round, the attempt that finished it, seconds so far, and the lengths in bytes
    that `ledger.csv`, `metrics.csv` and `clients.csv` had, 0 where there was none."""

    round: int
    attempt: int
    seconds: float
    ledger_bytes: int
    metrics_bytes: int
    clients_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as read: where the run stands, and the states by name."""

    folder: Path
    progress: Progress
    states: dict[str, State] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run; the newest `keep` stay."""

    def __init__(self, run: Path, keep: int = 1) -> None:
        self._folder, self._keep = run / "checkpoints", keep
        self._parts: dict[str, Stateful] = {}

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("round-*") if path.name.removeprefix("round-").isdecimal())

    def register(self, **parts: Stateful) -> None:
        """Save and restore these from now on, each under its name."""
        self._parts |= parts

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; when this returns it is on disk. Raises RunError for a state that none can hold."""
        self._folder.mkdir(exist_ok=True)
        scratch, final = self._folder / ".new", self._folder / f"round-{progress.round:06d}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        plain: dict[str, State] = {}
        files: list[str] = []
        for name, part in self._parts.items():
            if not (state := part.state_dict()):
                continue
            tensors, nested = _tensors(name, state)
            if not tensors and _plain(state):
                plain[name] = state
                continue
            path = scratch / f"{name}.safetensors"
            files.append(path.name)
            save_file(tensors, path, None if nested is None else {_NESTED: nested})
            sync(path)
        text = json.dumps({**asdict(progress), _STATES: plain, _FILES: files}, indent=2)
        (scratch / _STATE).write_text(text + "\n")
        sync(scratch / _STATE)
        shutil.rmtree(final, ignore_errors=True)
        scratch.rename(final)
        sync(self._folder)
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give what is registered its state back. Raises RunError for a state that is another's."""
        for name, part in self._parts.items():
            if name not in checkpoint.states:
                continue
            try:
                part.load_state_dict(checkpoint.states[name])
            except SplitfedError:
                raise
            except Exception as error:
                raise RunError(f"{checkpoint.folder}: not the state of this run's {name} ({error!r})") from error

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
        if (folder / _UNREADABLE).exists():
            raise RunError(
                f"{folder}: splitfed 0.1 began this run, and what its clients hold of the weights is written otherwise "
                "now: go on with that version, or start a new run"
            )
        try:
            said = json.loads((folder / _STATE).read_text())
            states, files = (said.pop(_STATES), said.pop(_FILES)) if _STATES in said else _of_0_1(said, folder)
            progress = Progress(**said)
            states |= {Path(name).stem: _read(folder / name) for name in files}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            raise RunError(f"{folder}: broken checkpoint ({error}); delete it to go on from the one before") from error
        return Checkpoint(folder, progress, states)


def _tensors(name: str, state: State) -> tuple[dict[str, Tensor], str | None]:
    """Return a state's tensors by name, and what they are part of as text; None where they are all there is."""
    if all(isinstance(value, Tensor) for value in state.values()):
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}, None
    try:
        return flatten(state)
    except TypeError as error:
        raise RunError(
            f"{name}: a checkpoint cannot hold its state, where {error}: give the class state_dict() and "
            "load_state_dict()"
        ) from None


def _plain(state: State) -> bool:
    """Whether JSON gives a state back as it was."""
    try:
        return json.loads(json.dumps(state)) == state
    except (TypeError, ValueError):
        return False


def _read(path: Path) -> State:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        nested = (file.metadata() or {}).get(_NESTED)
    return tensors if nested is None else unflatten(tensors, nested)


def _of_0_1(said: dict[str, Any], folder: Path) -> tuple[dict[str, State], list[str]]:
    """Take the states out of a `state.json` as splitfed 0.1 wrote it, and name the files beside it."""
    examples = said.pop(_EXAMPLES)
    states = {
        "roster": {"examples": [[client, number] for client, number in enumerate(examples) if number]},
        "alignment": {"aligned": said.pop(_ALIGNED, [])},
    }
    optional = [name for name in ("strategy.safetensors",) if (folder / name).exists()]
    return states, ["model.safetensors", "optimiser.safetensors", *optional]
