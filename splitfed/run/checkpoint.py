"""Checkpoints: everything that the next round needs, written at the end of each round or not at all.

Whatever must survive a kill has a `state_dict` and a `load_state_dict`, and is registered under a name. A checkpoint,
`checkpoints/round-000012/`, holds `<name>.safetensors` for each: a flat mapping of tensors as it is (so
`model.safetensors` has timm's names), nested values as tensors with the rest as metadata. What JSON can hold alone
stands in `state.json`, beside the run's progress, the SHA-256 of all files and that of its own text. A folder by that
name is complete: it is written beside and renamed.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from splitfed.errors import RunError, SplitfedError
from splitfed.files import reason, sync, told, write
from splitfed.run.journal import Damaged, Mark
from splitfed.run.tree import flatten, not_finite, unflatten

_STATE, _STATES, _FILES, _NESTED, _SELF = "state.json", "states", "files", "state", "own_sha256"
# What a checkpoint of 0.1 has under another name, and what of it this version cannot read.
_EXAMPLES, _ALIGNED, _UNREADABLE = "examples", "aligned", "held.safetensors"

_MODEL = "model.safetensors"
# What reading one of its files may raise.
_BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError)

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
    """Where a run stands: the finished round, the attempt that finished it, seconds so far, how many bytes its growing
    files had (0: none was there), and the SHA-256 of them and of what does not change, by name.

    Earlier versions wrote no SHA-256. Raises ValueError for what cannot be."""

    round: int
    attempt: int
    seconds: float
    ledger_bytes: int
    metrics_bytes: int
    clients_bytes: int = 0
    wasted_bytes: int = 0
    control_bytes: int = 0
    exits_bytes: int = 0
    sha256: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            kind: Any = {"seconds": int | float, "sha256": dict}.get(one.name, int)
            if not isinstance(value, kind) or isinstance(value, bool) or (kind is not dict and value < 0):
                raise ValueError(f"{one.name} is {value!r}")

    def mark(self, name: str) -> Mark:
        """Return how far a growing file had come, such as `ledger.csv`."""
        return Mark(getattr(self, f"{Path(name).stem}_bytes"), self.sha256.get(name, ""))


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

    def path(self, round: int) -> Path:
        """Return the folder of a round's checkpoint."""
        return self._folder / f"round-{round:06d}"

    def register(self, **parts: Stateful) -> None:
        """Save and restore these from now on, each under its name."""
        self._parts |= parts

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; when this returns it is on disk. Raises RunError for a state that none can hold, and
        WriteError."""
        scratch, final = self._folder / ".new", self.path(progress.round)
        with told(self._folder):
            self._folder.mkdir(exist_ok=True)
            _remove(scratch)
            scratch.mkdir()
        try:
            self._write(scratch, progress)
            with told(final):
                _remove(final)
                scratch.rename(final)
                sync(self._folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for old in self.rounds()[: -self._keep]:
            with told(self.path(old)):
                _remove(self.path(old))

    def _write(self, folder: Path, progress: Progress) -> None:
        plain: dict[str, State] = {}
        files: dict[str, str] = {}
        for name, part in self._parts.items():
            if not (state := part.state_dict()):
                continue
            tensors, nested = _tensors(name, state)
            if not tensors and _plain(state):
                plain[name] = state
                continue
            path = folder / f"{name}.safetensors"
            content = save(tensors, None if nested is None else {_NESTED: nested})
            files[path.name] = hashlib.sha256(content).hexdigest()
            write(path, content)
        said = {**asdict(progress), _STATES: plain, _FILES: files}
        write(folder / _STATE, json.dumps({**said, _SELF: _digest(said)}, indent=2) + "\n")

    def unsound(self) -> set[str]:
        """Return where what is registered holds arrays that are not finite, by name and place."""
        return {name + place for name, part in self._parts.items() for place in not_finite(part.state_dict())}

    def rewind(self, round: int, *names: str) -> None:
        """Give those that are named the state back that they had after a round whose checkpoint is there; to one that
        had none, an empty one. Raises RunError."""
        checkpoint = self.read(round)
        states = {name: checkpoint.states.get(name, {}) for name in names if name in self._parts}
        self.restore(replace(checkpoint, states=states))

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
        """Return the rounds after which a checkpoint was written, ascending: those that are still there. What else lies
        in the folder is none."""
        numbers = [path.name.removeprefix("round-") for path in self._folder.glob("round-*") if path.is_dir()]
        found = {int(number) for number in numbers if number.isdecimal()}
        return sorted(round for round in found if self.path(round).is_dir())

    def choose(self, round: int | None) -> tuple[int, dict[str, Tensor]]:
        """Read the model alone, under timm's names, the newest or that of a `round`, and return it behind its round.
        Raises RunError where there is none, or it is broken."""
        if not (rounds := self.rounds()):
            raise RunError(f"{self._folder.parent}: has no checkpoint yet; one is written after each round")
        if round is not None and round not in rounds:
            raise RunError(
                f"--round {round}: {self._folder.parent} holds the checkpoints of {', '.join(map(str, rounds))} alone; "
                "more stay with checkpoints.keep"
            )
        chosen = rounds[-1] if round is None else round
        return chosen, self.model(chosen)

    def model(self, round: int) -> dict[str, Tensor]:
        """Read the model alone of one of `rounds`, under timm's names. Raises RunError where it is broken."""
        folder = self.path(round)
        try:
            return _read(folder / _MODEL, _said(folder)[2].get(_MODEL, ""))
        except Damaged as error:
            raise RunError(f"{error}; name another --round, or run again") from error

    def read(self, round: int) -> Checkpoint:
        """Read the checkpoint of one of `rounds`. Raises Damaged where it is not what was written, and RunError for one
        that only an earlier version reads."""
        folder = self.path(round)
        if (folder / _UNREADABLE).exists():
            raise RunError(
                f"{folder}: splitfed 0.1 began this run, and what its clients hold of the weights is written otherwise "
                "now: go on with that version, or start a new run"
            )
        progress, states, files = _said(folder)
        if progress.round != round:
            raise Damaged(f"{folder / _STATE}: broken checkpoint (it is that of round {progress.round})")
        states |= {Path(name).stem: _read(folder / name, sha256) for name, sha256 in files.items()}
        return Checkpoint(folder, progress, states)


def _said(folder: Path) -> tuple[Progress, dict[str, State], dict[str, str]]:
    """Read a `state.json`: where the run stands, the plain states, and the SHA-256 of each file, empty where an earlier
    version wrote none. Raises Damaged."""
    path = folder / _STATE
    try:
        said = json.loads(path.read_bytes())
        digest = said.pop(_SELF, "") if isinstance(said.get(_FILES), dict) else None
        if digest is not None and digest != _digest(said):
            raise ValueError("it is not what was written")
        states, files = (said.pop(_STATES), said.pop(_FILES)) if _STATES in said else _of_0_1(said, folder)
        return Progress(**said), states, files if isinstance(files, dict) else dict.fromkeys(files, "")
    except _BROKEN as error:
        why = f"no {error}" if isinstance(error, KeyError) else reason(error)
        raise Damaged(f"{path}: broken checkpoint ({why})") from error


def _digest(said: dict[str, Any]) -> str:
    """Return the SHA-256 of what a `state.json` says, however it is spaced."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def _read(path: Path, sha256: str) -> State:
    """Read a file of tensors. Raises Damaged where it has another SHA-256 than this; an empty one is none."""
    try:
        with open(path, "rb") as whole:
            if sha256 and hashlib.file_digest(whole, "sha256").hexdigest() != sha256:
                raise ValueError("it is not what was written")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            nested = (file.metadata() or {}).get(_NESTED)
        return tensors if nested is None else unflatten(tensors, nested)
    except _BROKEN as error:
        raise Damaged(f"{path}: broken checkpoint ({reason(error)})") from error


def _of_0_1(said: dict[str, Any], folder: Path) -> tuple[dict[str, State], list[str]]:
    """Take the states out of a `state.json` as splitfed 0.1 wrote it, and name the files beside it."""
    examples = said.pop(_EXAMPLES)
    states = {
        "roster": {"examples": [[client, number] for client, number in enumerate(examples) if number]},
        "alignment": {"aligned": said.pop(_ALIGNED, [])},
    }
    optional = [name for name in ("strategy.safetensors",) if (folder / name).exists()]
    return states, ["model.safetensors", "optimiser.safetensors", *optional]
