"""What a client keeps between rounds, on its own disk: with `client_state: keep`, its optimiser; with a reducer that
it has fitted to its images, its encoder; with images of its own, the scenario's class names.

Each round's optimiser is a file of its own. A round that is run again after an interruption finds the state from before
it, because only older files are read; the newest two are kept.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitfed.errors import RunError
from splitfed.files import replace_with
from splitfed.optimiser_state import OptimiserState, flatten, unflatten


class ClientState:
    """What one client of one run has stored: optimiser tensors by round, its encoder, and class names."""

    def __init__(self, folder: Path, client: int) -> None:
        self._folder = folder / f"{client:06d}"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.safetensors") if path.stem.isdecimal())

    def _path(self, round: int) -> Path:
        return self._folder / f"{round:06d}.safetensors"

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
            self._folder.mkdir(parents=True, exist_ok=True)
            with replace_with(self._path(round)) as scratch:
                save_file({name: tensor.cpu().contiguous() for name, tensor in flatten(state).items()}, scratch)
            for old in [r for r in self._rounds() if r < round][:-1]:
                self._path(old).unlink()
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._folder}: this client's optimiser cannot be kept there ({error})") from None

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


_OUT = "delete this file, and the client goes on from the one before it, or anew"


def _fits(state: OptimiserState, optimiser: torch.optim.Optimizer) -> bool:
    """Return whether each moment is shaped as its parameter; step counts are single numbers."""
    shapes = [parameter.shape for group in optimiser.param_groups for parameter in group["params"]]
    return all(
        0 <= number < len(shapes) and all(tensor.shape in (shapes[number], torch.Size()) for tensor in moments.values())
        for number, moments in state.items()
    )
