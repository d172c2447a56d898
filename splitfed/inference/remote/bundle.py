"""What a client computes with: the front, with private labels the tail too, the exits on the way, and class names.

It is a file of safetensors that goes by the SHA-256 of its bytes: who has it need not fetch it again, and requests name
what made them by it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from splitfed.errors import RunError, SplitfedError
from splitfed.files import reason
from splitfed.inference.exits import Exits, Judged, behind
from splitfed.inference.rates import Rate
from splitfed.inference.run_model import RunModel, Trunk
from splitfed.model.build import pixel_stats
from splitfed.model.forward import autocast, suit_attention
from splitfed.model.optim import pick_device
from splitfed.model.parts import Tail
from splitfed.scenario import Scenario
from splitfed.scenario.places import for_clients
from splitfed.seeds import Key
from splitfed.split.assembly import assemble

FORMAT = 1
_ABOUT = "splitfed"
_FRONT, _TAIL, _EXITS, _JUDGED = "front.", "tail.", "exits.", "judged."
_BEHIND = "behind."  # how exits of the server do


@dataclass(frozen=True)
class Bundle:
    """What a client has read: `name` is the SHA-256 of the file, `trunk` has no back that computes, `exits` are those
    of the front, and `behind` the blocks after which exits of the server answer. `judged` is how all these do, `rates`
    are those that the server takes, the best first, and `most` how many images a request may hold."""

    name: str
    scenario: Scenario
    trunk: Trunk
    exits: Exits | None
    behind: tuple[int, ...]
    judged: Judged | None
    classes: list[str]
    rates: list[Rate]
    most: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device


def name_of(content: bytes) -> str:
    """Return the name of a bundle: its SHA-256."""
    return hashlib.sha256(content).hexdigest()


def pack_bundle(
    model: RunModel, exits: Exits | None, judged: Judged | None, rates: Sequence[Rate], most: int
) -> bytes:  # fmt: skip
    """Write what clients of a run's model need: those exits of the front, after which blocks some of the server answer,
    and how all of them do if that is known; of the scenario no folder of this machine."""
    front, _, tail = model.parts
    scenario = for_clients(model.scenario)
    # What exits it was trained with go as the others do.
    tensors = {_FRONT + name: one for name, one in front.state_dict().items() if not name.startswith(_EXITS)}
    if isinstance(tail, Tail):
        tensors |= {_TAIL + name: tensor for name, tensor in tail.state_dict().items()}
    about = {
        "format": FORMAT, "scenario": scenario.to_yaml(), "classes": model.classes, "most": most,
        "rates": [
            {"name": rate.name, "compression": _plain(scenario, rate)} for rate in rates
        ],
    }  # fmt: skip
    kept = [block for block in exits.blocks if block <= model.trunk.cut] if exits is not None else []
    if exits is not None and kept:
        about["exits"] = {
            "blocks": kept, "heads": exits.heads, "ensemble": exits.ensemble is not None, "judged": judged is not None,
        }  # fmt: skip
        part = _first(exits, model.trunk, kept)
        tensors |= {_EXITS + name: tensor for name, tensor in part.state_dict().items()}
        if judged is not None:
            first = judged.part(range(len(kept)))
            tensors |= {_JUDGED + name: getattr(first, name) for name in Judged.__slots__}
    later, _ = behind(model.trunk, exits)
    if later is not None:
        about["behind"] = {"blocks": later.blocks, "judged": judged is not None}
        if judged is not None:
            rest = judged.part(range(len(kept), len(kept) + len(later.blocks)))
            tensors |= {_BEHIND + name: getattr(rest, name) for name in Judged.__slots__}
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return save(plain, {_ABOUT: json.dumps(about, sort_keys=True)})  # one entry: of more the order is by chance


def _plain(scenario: Scenario, rate: Rate) -> dict:
    return for_clients(scenario.model_copy(update={"compression": rate.compression})).compression.model_dump(
        mode="json"
    )


def _first(exits: Exits, trunk: Trunk, blocks: Sequence[int]) -> Exits:
    """Return the first of some exits, by themselves."""
    count, old = len(blocks), exits.state_dict()
    part = Exits(
        blocks, trunk.width, exits.classes, trunk.prefix, heads=exits.heads, ensemble=exits.ensemble is not None,
        key=Key(0),
    )  # fmt: skip
    if part.ensemble is not None:
        old["ensemble.weights"] = old["ensemble.weights"][:count, :count]
        old["ensemble.shifts"] = old["ensemble.shifts"][:count]
    part.load_state_dict({name: old[name] for name in part.state_dict()})
    return part


def read_bundle(path: Path, device: str | None = None) -> Bundle:
    """Read a bundle whose name was checked, for a `device`. Raises RunError where this version cannot read it, and a
    SplitfedError for a scenario that asks for what is not here."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            about = json.loads((file.metadata() or {})[_ABOUT])
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, where this version reads {FORMAT}")
        scenario, classes = Scenario.parse(about["scenario"]), [str(name) for name in about["classes"]]
        parts = assemble(scenario, len(classes), pretrained=False)
        missing, unknown = parts.front.load_state_dict(_below(tensors, _FRONT), strict=False)
        if unknown or any(not name.startswith(_EXITS) for name in missing):
            raise ValueError("its front is of another model")
        if isinstance(parts.tail, Tail):
            parts.tail.load_state_dict(_below(tensors, _TAIL))
        parts.back.to("meta")  # it computes elsewhere, and takes no memory here
        where = pick_device(device or scenario.training.client.device)
        for part in (parts.front, parts.tail):
            suit_attention(part, scenario.training.precision, where)
            part.to(where).eval().requires_grad_(False)
        trunk = Trunk(parts, lambda: autocast(scenario.training.precision, where))
        exits, judged = _exits(about.get("exits"), tensors, trunk, len(classes))
        later, judged = _behind(about.get("behind"), tensors, trunk, judged)
        compression = type(scenario.compression)
        rates = [Rate(str(rate["name"]), compression.model_validate(rate["compression"])) for rate in about["rates"]]
        mean, std = pixel_stats(scenario.model)
        return Bundle(
            name_of(path.read_bytes()), scenario, trunk, exits.to(where) if exits else None, later, judged, classes,
            rates, int(about["most"]), mean, std, where,
        )  # fmt: skip
    except SplitfedError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{path}: this front cannot be read ({reason(error)[:160]}): do server and client have the same splitfed?"
        ) from error


def _exits(
    about: dict | None, tensors: dict[str, Tensor], trunk: Trunk, classes: int
) -> tuple[Exits | None, Judged | None]:
    if about is None:
        return None, None
    exits = Exits(
        [int(block) for block in about["blocks"]], trunk.width, classes, trunk.prefix, heads=about["heads"],
        ensemble=bool(about["ensemble"]), key=Key(0),
    )  # fmt: skip
    exits.load_state_dict(_below(tensors, _EXITS))
    judged = Judged(**_below(tensors, _JUDGED)) if about["judged"] else None
    if judged is not None and not judged.fits(len(exits.blocks)):
        raise ValueError("how its exits do has another shape than they")
    return exits.eval().requires_grad_(False), judged


def _behind(
    about: dict | None, tensors: dict[str, Tensor], trunk: Trunk, first: Judged | None
) -> tuple[tuple[int, ...], Judged | None]:
    """Return after which blocks exits of the server answer, and how the front's and these do."""
    if about is None:
        return (), first
    blocks = tuple(int(block) for block in about["blocks"])
    if list(blocks) != sorted({block for block in blocks if trunk.cut < block < len(trunk)}):
        raise ValueError("its server's exits follow blocks that are not the server's")
    if not about["judged"]:
        return blocks, None
    rest = Judged(**_below(tensors, _BEHIND))
    if not rest.fits(len(blocks)):
        raise ValueError("how its server's exits do has another shape than they")
    return blocks, rest if first is None else first.then(rest)


def pack_norms(norms: Mapping[str, Tensor]) -> bytes:
    """Write the norms of a bundle's front and tail, by their names in it."""
    return save({
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in norms.items()
        if name.startswith((_FRONT, _TAIL))
    })  # fmt: skip


def patched(bundle: bytes, norms: bytes) -> bytes:
    """Return a bundle with other norms, which is byte by byte what it was elsewhere. Raises ValueError unless these are
    tensors of its own."""
    try:
        start, places = _places(bundle)
        changed = bytearray(bundle)
        own, others = _places(norms)
        for name, (first, last, kind) in others.items():
            to, end, known = places[name]
            if known != kind or end - to != last - first:
                raise ValueError(f"{name} is another tensor")
            changed[start + to : start + end] = norms[own + first : own + last]
        return bytes(changed)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"norms that are not of this front ({reason(error)[:80]})") from None


def _places(file: bytes) -> tuple[int, dict[str, tuple[int, int, tuple]]]:
    """Return where the tensors of a file of safetensors begin, and by name where each begins and ends, from there on,
    with its type and shape. Raises ValueError, TypeError or KeyError for what is none."""
    start = 8 + int.from_bytes(file[:8], "little")
    if start > len(file):
        raise ValueError("a header longer than the file")
    found = {}
    for name, said in json.loads(file[8:start]).items():
        if name == "__metadata__":
            continue
        first, last = said["data_offsets"]
        if not 0 <= first <= last <= len(file) - start:
            raise ValueError(f"{name} lies outside")
        found[name] = first, last, (said["dtype"], *said["shape"])
    return start, found


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
