"""What a client keeps between rounds, on its own disk: with `client_state: keep`, its optimiser; with a reducer that
it has fitted to its images, its encoder; with weights that cross as differences, those that it was sent and what its
own lacked; with an adapter, what is never trained; with images of its own, the scenario's class names.

Each round's optimiser is a file of its own, and so are its weights. A round that is run again after an interruption
finds the state from before it, because only older files are read; the newest two are kept.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitfed.errors import RunError
from splitfed.files import replace_with, sync
from splitfed.model.optim import OptimiserState, flatten, unflatten


class ClientState:
    """What one client of one run has stored: optimiser tensors by round, its encoder, and class names."""

    def __init__(self, folder: Path, client: int) -> None:
        self._folder, self._shared = folder / f"{client:06d}", folder / "frozen.safetensors"

    def _rounds(self, kind: str = "") -> list[int]:
        stems = [path.stem.removeprefix(kind) for path in self._folder.glob(f"{kind}*.safetensors")]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _path(self, round: int, kind: str = "") -> Path:
        return self._folder / f"{kind}{round:06d}.safetensors"

    def _save(self, round: int, tensors: dict[str, Tensor], kind: str = "") -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with replace_with(self._path(round, kind)) as scratch:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch)
        for old in [r for r in self._rounds(kind) if r < round][:-1]:
            self._path(old, kind).unlink()

    def before(self, round: int, optimiser: torch.optim.Optimizer) -> OptimiserState:
        """Return the newest state from before a round; empty where there is none.

        Raises RunError for one that cannot be read, or is not this optimiser's.
        """
        older = [r for r in self._rounds() if r < round]
        if not older:
            return {}
        path = self._path(older[-1])
        try:
            state = unflatten(load_file(path))
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(f"{path}: this client's optimiser cannot be read ({error}); {_OUT}") from None
        if not _fits(state, optimiser):
            raise RunError(f"{path}: this client's optimiser is that of another model; {_OUT}")
        return state

    def save(self, round: int, state: OptimiserState) -> None:
        """Store the state that a round left, and delete all but the one before it. Raises RunError."""
        try:
            self._save(round, flatten(state))
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._folder}: this client's optimiser cannot be kept there ({error})") from None

    def known(self, round: int) -> dict[str, Tensor] | None:
        """Return the weights that this client was sent in a round; None where they are not kept. Raises RunError for a
        file that cannot be read."""
        return _under(_KNOWN, self._weights(round)) if round in self._rounds(_WEIGHTS) else None

    def residual(self, round: int) -> dict[str, Tensor]:
        """Return what this client's weights lacked that it returned in its last round before this one; nothing before
        the first. Raises RunError for a file that cannot be read."""
        older = [r for r in self._rounds(_WEIGHTS) if r < round]
        return _under(_RESIDUAL, self._weights(older[-1])) if older else {}

    def save_weights(self, round: int, known: dict[str, Tensor], residual: dict[str, Tensor]) -> None:
        """Store the weights that came in a round and what those that went back lack, and delete all but those of the
        round before it. Raises RunError."""
        tensors = {_KNOWN + name: tensor for name, tensor in known.items()}
        tensors |= {_RESIDUAL + name: tensor for name, tensor in residual.items()}
        try:
            self._save(round, tensors, _WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._folder}: this client's weights cannot be kept there ({error})") from None

    def _weights(self, round: int) -> dict[str, Tensor]:
        path = self._path(round, _WEIGHTS)
        try:
            return load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(
                f"{path}: the weights that this client was sent cannot be read ({error}); delete this file, and the "
                "server sends them again"
            ) from None

    def frozen(self) -> dict[str, Tensor] | None:
        """Return the weights that are never trained; None where they are not kept, or not readable: the server sends
        them again."""
        try:
            return load_file(self._shared)
        except (OSError, ValueError, SafetensorError):
            return None

    def save_frozen(self, weights: dict[str, Tensor]) -> None:
        """Store what is never trained, in one file for all of the run's clients that share this folder. Raises
        RunError."""
        kept = self.frozen()
        if kept is not None and kept.keys() == weights.keys() and all(kept[n].equal(t) for n, t in weights.items()):
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            scratch = self._folder / ".frozen.new"  # another client may be at it too
            save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, scratch)
            sync(scratch)
            os.replace(scratch, self._shared)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._shared}: this client's weights cannot be kept there ({error})") from None

    def encoder(self) -> dict[str, Tensor]:
        """Return the encoder that this client has fitted to its images. Raises RunError where it has none any more."""
        path = self._folder / "encoder.safetensors"
        try:
            return load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            reason = "it is not there" if isinstance(error, FileNotFoundError) else error
            raise RunError(
                f"{path}: the encoder that this client fitted to its images is lost ({reason}): bring the file back, "
                "or start a new run"
            ) from None

    def save_encoder(self, encoder: dict[str, Tensor]) -> None:
        """Store the encoder; an interrupted round that is run again fits it again. Raises RunError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replace_with(self._folder / "encoder.safetensors") as scratch:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in encoder.items()}, scratch)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._folder}: this client's encoder cannot be kept there ({error})") from None

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
        """Store the class names; they are told once, and this process may be started again. Raises RunError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replace_with(self._folder / "classes.json") as scratch:
                scratch.write_text(json.dumps(list(classes)))
        except OSError as error:
            raise RunError(f"{self._folder}: nothing can be kept there ({error.strerror})") from None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


_WEIGHTS, _KNOWN, _RESIDUAL = "weights-", "held/", "residual/"
_OUT = "delete this file, and the client goes on from the one before it, or anew"


def _fits(state: OptimiserState, optimiser: torch.optim.Optimizer) -> bool:
    """Return whether each moment is shaped as its parameter; step counts are single numbers."""
    shapes = [parameter.shape for group in optimiser.param_groups for parameter in group["params"]]
    return all(
        0 <= number < len(shapes) and all(tensor.shape in (shapes[number], torch.Size()) for tensor in moments.values())
        for number, moments in state.items()
    )
