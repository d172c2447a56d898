"""What adaptation has come to, on disk: norms, teachers and momenta of all owners in one file of the service's folder,
with its SHA-256; and the wish to forget, which another process leaves there."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from splitfed.errors import RunError
from splitfed.files import reason, told, write
from splitfed.inference.service.adaptation.kept import Owner
from splitfed.run.folder import Held, locked

NAME, _WISH = "adapted.safetensors", "forget"
_ABOUT, _FORMAT = "splitfed", 1
EVERYBODY = "all"


@dataclass(frozen=True, slots=True)
class Adapted:
    """What was adapted: to the model whose weights have the SHA-256 `base`, which `norms`, with which `teacher`; by
    owner how many steps and images that took, and the state to go on from. `fronts` are the names under which fronts
    were served."""

    base: str
    norms: str
    teacher: str
    fronts: tuple[str, ...] = ()
    learnt: dict[str, tuple[int, int]] = field(default_factory=dict)
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def name_of(owner: Owner) -> str:
    """Return how an owner is called: a client's number, or `all`."""
    return EVERYBODY if owner is None else str(owner)


def owner_of(name: str) -> Owner:
    """Return whose name this is. Raises ValueError."""
    return None if name == EVERYBODY else int(name)


def store(found: Adapted, folder: Path) -> None:
    """Write what was adapted, in place of what was there. Raises WriteError."""
    tensors = {f"{owner}/{name}": t for owner, state in found.states.items() for name, t in state.items()}
    about = asdict(replace(found, states={}))
    del about["states"]
    about |= {"format": _FORMAT, "sha256": _digest(tensors)}
    write(folder / NAME, save(tensors, {_ABOUT: json.dumps(about, sort_keys=True)}))


def load(folder: Path) -> Adapted | None:
    """Read what was adapted; None where nothing was. Raises RunError for a file that is broken."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            about = json.loads((file.metadata() or {})[_ABOUT])
        if about.pop("format") != _FORMAT or about.pop("sha256") != _digest(tensors):
            raise ValueError("another format or another SHA-256")
        states: dict[str, dict[str, Tensor]] = {owner: {} for owner in about["learnt"]}
        for name, tensor in tensors.items():
            owner, _, rest = name.partition("/")
            states[owner][rest] = tensor
        learnt = {name: (int(steps), int(images)) for name, (steps, images) in about.pop("learnt").items()}
        for name in learnt:
            owner_of(name)
        return Adapted(**{**about, "fronts": tuple(about["fronts"]), "learnt": learnt, "states": states})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{path}: broken file of adapted norms ({reason(error)[:160]}): let go of it with: splitfed adapted RUN "
            "--forget"
        ) from error


def forget(folder: Path, client: Owner) -> bool:
    """Let go of what was adapted, or of a client's own: in the file, or where a service has the folder by asking that.
    Returns whether it is done; else the service does it in a moment. Raises RunError and WriteError."""
    try:
        with locked(folder):
            drop(folder, client)
            return True
    except Held:
        write(folder / _WISH, name_of(client))
        return False


def drop(folder: Path, client: Owner) -> None:
    """Let go of what the file has, or of what it has of a client; for the process that has the folder."""
    if client is None:
        with told(folder / NAME):
            (folder / NAME).unlink(missing_ok=True)
    elif (found := load(folder)) is not None:
        left = {name: value for name, value in found.learnt.items() if name != name_of(client)}
        states = {name: found.states[name] for name in left}
        store(replace(found, learnt=left, states=states), folder)


def wished(folder: Path) -> bool:
    """Tell whether a wish to forget has not been taken yet."""
    return (folder / _WISH).exists()


def wish(folder: Path) -> tuple[Owner] | None:
    """Take the wish to forget that was left for a service: everybody's norms, or those of a client; None is none."""
    try:
        text = (folder / _WISH).read_text()
        (folder / _WISH).unlink()
        return (owner_of(text.strip()),)
    except (OSError, ValueError):
        with suppress(OSError):
            (folder / _WISH).unlink()
        return None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
