"""What a client keeps between rounds, on its own disk: with `client_state: keep`, its optimiser.

Each round's state is a file of its own. A round that is run again after an interruption finds the state from before it,
because only older files are read; the newest two are kept.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file

from splitfed.files import replace_with
from splitfed.optimiser_state import OptimiserState, flatten, unflatten


class ClientState:
    """The stored optimiser tensors of one client of one run, by round."""

    def __init__(self, folder: Path, client: int) -> None:
        self._folder = folder / f"{client:06d}"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.safetensors"))

    def _path(self, round: int) -> Path:
        return self._folder / f"{round:06d}.safetensors"

    def before(self, round: int) -> OptimiserState:
        """Return the newest state from before a round; empty where there is none."""
        older = [r for r in self._rounds() if r < round]
        if not older:
            return {}
        return unflatten(load_file(self._path(older[-1])))

    def save(self, round: int, state: OptimiserState) -> None:
        """Store the state that a round left, and delete all but the one before it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with replace_with(self._path(round)) as scratch:
            save_file({name: tensor.cpu().contiguous() for name, tensor in flatten(state).items()}, scratch)
        for old in [r for r in self._rounds() if r < round][:-1]:
            self._path(old).unlink()
