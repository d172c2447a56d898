"""A run's model as one timm checkpoint: front and back together, with a card that says where it comes from.

What a reducer's own layers have learnt is no part of a timm model, and neither is what an adapter has added that cannot
be folded in. They are written beside it. Exits are left out: they lie in the run's folder.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from splitfed.compression.reducers.trained.layers import DECODER, ENCODER, GATES
from splitfed.data.dataset import FederatedData, load
from splitfed.errors import RunError
from splitfed.files import replace_with
from splitfed.model.adapters.layers import split_name
from splitfed.model.build import build
from splitfed.model.exits.fraug import GENERATOR
from splitfed.model.exits.heads import EXITS
from splitfed.model.mistakes import blank
from splitfed.reports.export.model_card import Provenance, card
from splitfed.reports.export.recipe import create_line, hub_config
from splitfed.run.checkpoint import Checkpoints
from splitfed.run.folder import stored_scenario
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.version import __version__


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the weights, their card, their config as timm has it on the Hub, the reducer's own layers, if
    it has some, and what the adapter has added, if that is no part of the weights; after which round, and the line of
    Python (`create`) by which timm loads the weights. `sha256` is that of the weights' file, in hex."""

    weights: Path
    card: Path
    config: Path
    halves: Path | None
    added: Path | None
    round: int
    create: str
    sha256: str


def export(
    run: str | Path, out: str | Path, *, round: int | None = None, overrides: list[str] | None = None,
    force: bool = False,
) -> Exported:  # fmt: skip
    """Write the model of a run's newest checkpoint, or of that after a `round`, to `out` (`*.safetensors`), with a card
    (`*.md`) and a config (`*.json`) beside it; `force` replaces files that are there. `overrides` change the run's
    scenario, as `--set` does: where its data, which name the classes, are now.

    Raises a SplitfedError where there is no run or no checkpoint, for data that are not those of the run, and for files
    that exist or cannot be written.
    """
    run, out = Path(run), Path(out)
    if out.suffix != ".safetensors":
        raise RunError(f"{out}: timm tells the format by the ending: name a file *.safetensors")
    stored_scenario(run)
    scenario = Scenario.load(run / "scenario.yaml", overrides)
    round, state = Checkpoints(run).choose(round)
    halves = {name: tensor for name, tensor in state.items() if name.startswith((ENCODER, DECODER, GATES))}
    adapter, vit = scenario.model.adapter, blank(scenario.model)
    folds = adapter.folds(vit)
    added = {} if folds else {name: tensor for name, tensor in state.items() if split_name(name)}
    aside = [
        (out.with_suffix(f".{kind}.safetensors") if tensors else None, tensors)
        for kind, tensors in (("halves", halves), ("added", added))
    ]
    of_halves, of_added = (path for path, _ in aside)
    files = (out, out.with_suffix(".md"), out.with_suffix(".json"), of_halves, of_added)
    if not force and (there := [path for path in files if path is not None and path.exists()]):
        raise RunError(f"{there[0]}: exists; name another file, or replace it with --force")
    classes = _data(scenario, state, run).classes
    others = (EXITS, GENERATOR)
    plain = {name: tensor for name, tensor in state.items() if name not in halves and not name.startswith(others)}
    model = adapter.merged(plain) if folds else {name: t for name, t in plain.items() if name not in added}
    left = _left(scenario, adapter.args(vit) if folds else {})
    _check(left, model, len(classes), run)
    about = {
        "format": "pt", "splitfed_version": __version__, "scenario": scenario.name, "round": str(round),
        "model": scenario.model.name, "classes": json.dumps(classes),
    }  # fmt: skip
    weights = packed(model, about)
    made = Exported(
        out, out.with_suffix(".md"), out.with_suffix(".json"), of_halves, of_added, round,
        create_line(left, len(classes), out.name), hashlib.sha256(weights).hexdigest(),
    )  # fmt: skip
    parameters = sum(tensor.numel() for tensor in model.values())
    text = card(
        Provenance.read(run, scenario, round), classes, made.create, out.name, parameters, made.sha256,
        *(path.name if path else None for path in (of_halves, of_added)),
    )  # fmt: skip
    for path, tensors in aside:
        if path is not None:
            _write(path, packed(tensors, about))
    _write(made.card, text.encode())
    _write(made.config, (json.dumps(hub_config(left, classes), indent=2) + "\n").encode())
    _write(out, weights)
    return made


def _left(scenario: Scenario, args: Mapping[str, float]) -> Scenario:
    """Return a scenario whose model has other arguments of timm's, as is left once an adapter is folded in."""
    model = scenario.model.model_copy(update={"args": {**scenario.model.args, **args}})
    return scenario.model_copy(update={"model": model})


def packed(tensors: dict[str, Tensor], about: dict[str, str]) -> bytes:
    """Return the bytes of a safetensors file; the same tensors and metadata give the same bytes."""
    written = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=about)
    length = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + length])
    # safetensors writes several entries of metadata in random order.
    header["__metadata__"] = about
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # the tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + written[8 + length :]


def _data(scenario: Scenario, state: dict[str, Tensor], run: Path) -> FederatedData:
    key = Key(scenario.seed).at("data")
    data = load(scenario.data, scenario.model.image_size, scenario.federation.clients, key)
    head = state.get("head.weight")
    if head is not None and len(head) != len(data.classes):
        raise RunError(
            f"{run}: was trained on {len(head)} classes, and data.path: {scenario.data.path} has {len(data.classes)}; "
            "name the run's own data with --set data.path=..."
        )
    return data


def _check(scenario: Scenario, model: dict[str, Tensor], classes: int, run: Path) -> None:
    """Raise RunError unless timm's own model takes these weights, all of them and no others."""
    vit = build(scenario.model, classes, pretrained=False, key=Key(0))
    try:
        vit.load_state_dict(model)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RunError(f"{run}: its checkpoint does not fit the scenario's model: {reason}") from None


def _write(path: Path, content: bytes) -> None:
    try:
        with replace_with(path) as scratch:
            scratch.write_bytes(content)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None
