"""What a client keeps between rounds, on its own disk: with `client_state: keep`, its optimiser; with a reducer that
it has fitted to its images, its encoder; with weights that cross as differences, those that it was sent and what its
own lacked; where both ends keep copies of samples, these; with an adapter, what is never trained; norms of its own;
where blocks have budgets, these; with images of its own, the scenario's class names and what these images are.

Each round's optimiser is a file of its own, and so are its weights, its copies and its budgets. A round that is run
again finds the state from before it, because only older files are read; as many are kept as the server keeps
checkpoints to go back to. A file tells the SHA-256 of what is in it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from splitfed.data.settings import Fingerprint
from splitfed.data.sources.fingerprint import differences
from splitfed.errors import DataError, Lacking, RunError
from splitfed.files import told, write
from splitfed.model.optim import OptimiserState, flatten, unflatten
from splitfed.split.copies import Entry, flat, unflat
from splitfed.split.weights.initial import digest


class ClientState:
    """What one client of one run has stored: optimiser tensors by round, its encoder, and class names. `keep` is how
    many checkpoints the server has: from each of them the run may go on."""

    def __init__(self, folder: Path, client: int, keep: int = 1) -> None:
        self._folder, self._shared = folder / f"{client:06d}", folder / "frozen.safetensors"
        self._keep = keep

    def _rounds(self, kind: str = "") -> list[int]:
        stems = [path.stem.removeprefix(kind) for path in self._folder.glob(f"{kind}*.safetensors")]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _path(self, round: int, kind: str = "") -> Path:
        return self._folder / f"{kind}{round:06d}.safetensors"

    def _newest(self, round: int, trained: int | None, kind: str = "") -> Path | None:
        """Return the newest file from before a round; None where there is none, nor should be. Raises Lacking where
        that of the round in which this client was last `trained` is gone."""
        older = [r for r in self._rounds(kind) if r < round]
        if trained is not None and (not older or older[-1] < trained):
            raise Lacking(f"{self._path(trained, kind)}: what this client kept of round {trained} is gone")
        return self._path(older[-1], kind) if older else None

    def _save(self, round: int, tensors: dict[str, Tensor], kind: str = "", spared: int | None = None) -> None:
        with told(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            save_tensors(self._path(round, kind), tensors)
            # In this round there are checkpoints of so many before it, and from each the newest older file is read.
            needed = max(0, round - self._keep)
            for old in [r for r in self._rounds(kind) if r <= needed][:-1]:
                if old != spared:  # a reply may have been lost, and the server knows of an older one
                    self._path(old, kind).unlink()

    def before(
        self, round: int, optimiser: torch.optim.Optimizer, trained: int | None = None, first: int = 0,
        lasting: int | None = None,
    ) -> OptimiserState:  # fmt: skip
        """Return the newest state from before a round; empty where there is none. Of one from before the round `first`,
        in which a phase begins, the `lasting` first parameters alone are the same (None: all).

        Raises RunError for one that cannot be read, or is not this optimiser's, and Lacking where that of the round in
        which this client was last `trained` is gone.
        """
        path = self._newest(round, trained)
        if path is None:
            return {}
        try:
            state = unflatten(load_tensors(path))
        except _BROKEN as error:
            raise RunError(f"{path}: this client's optimiser cannot be read ({error}); {_OUT}") from None
        if lasting is not None and int(path.stem) < first:
            state = {number: moments for number, moments in state.items() if number < lasting}
        if not _fits(state, optimiser):
            raise RunError(f"{path}: this client's optimiser is that of another model; {_OUT}")
        return state

    def save(self, round: int, state: OptimiserState) -> None:
        """Store the state that a round left, and delete those that no checkpoint needs. Raises WriteError."""
        self._save(round, flatten(state))

    def known(self, round: int) -> dict[str, Tensor] | None:
        """Return the weights that this client was sent in a round; None where they are not kept. Raises RunError for a
        file that cannot be read."""
        return _under(_KNOWN, _weights(self._path(round, _WEIGHTS))) if round in self._rounds(_WEIGHTS) else None

    def residual(self, round: int, trained: int | None = None) -> dict[str, Tensor]:
        """Return what this client's weights lacked that it returned in its last round before this one; nothing before
        the first. Raises RunError for a file that cannot be read, and Lacking where that of the round in which it was
        last `trained` is gone."""
        path = self._newest(round, trained, _WEIGHTS)
        return _under(_RESIDUAL, _weights(path)) if path else {}

    def save_weights(
        self, round: int, known: dict[str, Tensor], residual: dict[str, Tensor], spared: int | None = None
    ) -> None:  # fmt: skip
        """Store the weights that came in a round and what those that went back lack, and delete those that no
        checkpoint needs, nor whoever counts from the round that is `spared`. Raises WriteError."""
        tensors = {_KNOWN + name: tensor for name, tensor in known.items()}
        self._save(round, tensors | {_RESIDUAL + name: tensor for name, tensor in residual.items()}, _WEIGHTS, spared)

    def own(self, before: int, trained: int | None = None) -> dict[str, Tensor]:
        """Return the weights that are this client's own, as its last round before that one has left them; nothing
        before its first. Raises RunError and Lacking as `residual` does."""
        path = self._newest(before, trained, _OWN)
        return _weights(path) if path else {}

    def save_own(self, round: int, weights: dict[str, Tensor]) -> None:
        """Store the weights that are this client's own, as a round has left them, and delete those that no checkpoint
        needs. Raises WriteError."""
        self._save(round, weights, _OWN)

    def copies(self, trained: int) -> dict[int, Entry]:
        """Return the copies of this client's samples as the round left them in which it was last `trained`. Raises
        Lacking where they are gone, or not what was written."""
        path = self._path(trained, _COPIES)
        try:
            return unflat(load_tensors(path))
        except (*_BROKEN, KeyError) as error:
            raise Lacking(f"{path}: the copies of this client's samples are gone ({type(error).__name__})") from None

    def save_copies(self, round: int, kept: Mapping[int, Entry], trained: int | None) -> None:
        """Store what a round has made of the copies of this client's samples, beside those from when it was last
        `trained`, and delete those that no checkpoint needs. Raises WriteError."""
        self._save(round, flat(kept), _COPIES, spared=trained)

    def drop_copies(self, round: int, settled: int) -> None:
        """Delete, in a round after the front has `settled`, what there is of copies, unless the server has a checkpoint
        of before from which the run may go on. Raises WriteError."""
        if round - self._keep + 1 >= settled:
            with told(self._folder):
                for old in self._rounds(_COPIES):
                    self._path(old, _COPIES).unlink()

    def budgets(self, round: int, trained: int | None) -> dict[str, Tensor]:
        """Return the budgets of this client's blocks as its last round before this one has left them; nothing before
        the first. Raises RunError for a file that cannot be read, and Lacking where that of the round in which it was
        last `trained` is gone."""
        path = self._newest(round, trained, _BUDGETS)
        try:
            return load_tensors(path) if path else {}
        except _BROKEN as error:
            raise RunError(f"{path}: the budgets of this client's blocks cannot be read ({error}); {_OUT}") from None

    def save_budgets(self, round: int, budgets: dict[str, Tensor]) -> None:
        """Store the budgets that a round has left, and delete those that no checkpoint needs. Raises WriteError."""
        self._save(round, budgets, _BUDGETS)

    def frozen(self) -> dict[str, Tensor] | None:
        """Return the weights that are never trained; None where they are not kept, or not readable: the server sends
        them again."""
        try:
            return load_tensors(self._shared)
        except _BROKEN:
            return None

    def save_frozen(self, weights: dict[str, Tensor]) -> None:
        """Store what is never trained, in one file for all of the run's clients that share this folder. Raises
        WriteError."""
        kept = self.frozen()
        if kept is not None and kept.keys() == weights.keys() and all(kept[n].equal(t) for n, t in weights.items()):
            return
        with told(self._shared):
            self._folder.mkdir(parents=True, exist_ok=True)
            scratch = self._folder / ".frozen.new"  # another client may be at it too
            save_tensors(scratch, weights)
            os.replace(scratch, self._shared)

    def settled(self, since: int) -> dict[str, Tensor] | None:
        """Return the weights that this client keeps of the frozen phase that began in that round; None where they are
        not kept, or not readable: the server sends them again."""
        try:
            name = json.loads((self._folder / f"{_SETTLED}{since:06d}.json").read_bytes())
            return load_tensors(self._shared.with_name(str(name)))
        except _BROKEN:
            return None

    def save_settled(self, since: int, weights: dict[str, Tensor]) -> None:
        """Keep the weights of the frozen phase that began in that round; those of clients that share this folder and
        have the same lie there once. Raises WriteError."""
        path = self._shared.with_name(f"{_SETTLED}{digest(weights)[:32]}.safetensors")
        with told(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                scratch = self._folder / f".{_SETTLED}.new"  # another client may be at it too
                save_tensors(scratch, weights)
                os.replace(scratch, path)
            write(self._folder / f"{_SETTLED}{since:06d}.json", json.dumps(path.name))

    def encoder(self) -> dict[str, Tensor]:
        """Return the encoder that this client has fitted to its images. Raises RunError where it has none any more."""
        path = self._folder / "encoder.safetensors"
        try:
            return load_tensors(path)
        except _BROKEN as error:
            why = "it is not there" if isinstance(error, FileNotFoundError) else error
            raise RunError(
                f"{path}: the encoder that this client fitted to its images is lost ({why}): bring the file back, "
                "or start a new run"
            ) from None

    def save_encoder(self, encoder: dict[str, Tensor]) -> None:
        """Store the encoder; an interrupted round that is run again fits it again. Raises WriteError."""
        path = self._folder / "encoder.safetensors"
        with told(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            save_tensors(path, encoder)

    def classes(self) -> list[str]:
        """Return the class names that the server told this client. Raises RunError where it has not."""
        path = self._folder / "classes.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path}: cannot be read ({error}), and the scenario's class names with it; the server tells them anew "
                "when it is started again with --resume"
            ) from None

    def save_classes(self, classes: Sequence[str]) -> None:
        """Store the class names; they are told once, and this process may be started again. Raises WriteError."""
        path = self._folder / "classes.json"
        with told(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            write(path, json.dumps(list(classes)))

    def hold_to(self, mark: Fingerprint) -> None:
        """Note what this client's own images are, or compare them with those that it began the run with. Raises
        DataError where they are others, and WriteError."""
        path = self._folder / "images.json"
        try:
            known = Fingerprint.model_validate_json(path.read_bytes())
        except (OSError, ValueError):  # it has just come, or the file is damaged
            with told(path):
                self._folder.mkdir(parents=True, exist_ok=True)
                write(path, mark.model_dump_json())
            return
        if difference := differences(mark, known):
            raise DataError(
                f"this client's images are others than those that it began the run with: {difference}; bring them "
                "back, or take part with an empty --state"
            )


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, replaced atomically, with the SHA-256 of what is in them. Raises WriteError."""
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write(path, save(found, {_SHA256: digest(found)}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote. Raises OSError, SafetensorError, and ValueError for something else."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        told = (file.metadata() or {}).get(_SHA256)  # earlier versions did not
    if told is not None and told != digest(tensors):
        raise ValueError("it is not what was written")
    return tensors


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path)
    except _BROKEN as error:
        raise RunError(f"{path}: weights that this client keeps cannot be read ({error}); {_OUT}") from None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


_WEIGHTS, _COPIES, _BUDGETS, _SETTLED, _OWN = "weights-", "copies-", "budgets-", "settled-", "own-"
_KNOWN, _RESIDUAL = "held/", "residual/"
_SHA256 = "sha256"
_BROKEN = (OSError, ValueError, SafetensorError)
_OUT = "bring back the one that was there; without it a client of a deployment begins anew, and a simulation ends"


def _fits(state: OptimiserState, optimiser: torch.optim.Optimizer) -> bool:
    """Return whether each moment is shaped as its parameter; step counts are single numbers."""
    shapes = [parameter.shape for group in optimiser.param_groups for parameter in group["params"]]
    return all(
        0 <= number < len(shapes) and all(tensor.shape in (shapes[number], torch.Size()) for tensor in moments.values())
        for number, moments in state.items()
    )
