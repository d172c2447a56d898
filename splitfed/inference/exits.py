"""Exits of a run: those that were trained with its model or fitted to it since, where they lie, and how they do.

They lie beside a run's checkpoints, in `exits.safetensors`, and belong to the weights that they were trained with or
fitted to. Those that were trained with the model are in its checkpoints as well.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from splitfed.data.batches import Batch, batches
from splitfed.data.images import Images
from splitfed.errors import DataError, RunError
from splitfed.files import reason, write
from splitfed.inference.asking import Asked, Asking
from splitfed.inference.deciding import Judged, Rule
from splitfed.inference.run_model import RunModel, Trunk
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.exits.heads import Exits as Exits
from splitfed.model.exits.heads import exits_of, joined
from splitfed.model.exits.settings import Heads
from splitfed.model.parts import whole_state
from splitfed.run.origin import load_data
from splitfed.seeds import Key
from splitfed.wire.header import MAX_META

NAME = "exits.safetensors"
HEADS: tuple[Heads, ...] = get_args(Heads)
_ABOUT, _JUDGED = "exits", "judged."
_SENT = 512  # images of the validation split whose bytes are counted


@dataclass(frozen=True, slots=True)
class About:
    """What a file of exits says of itself: after which blocks, of which kind, for the weights after which `round`
    (`model` is their SHA-256), for how many epochs they were fitted (0: they were trained with the model), and what
    share of the validation split each answers rightly."""

    blocks: tuple[int, ...]
    heads: Heads
    ensemble: bool
    round: int
    model: str
    epochs: int
    accuracy: tuple[float, ...]


def fingerprint(model: RunModel) -> str:
    """Return the SHA-256 of a model's weights, whatever device they are on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(whole_state(*model.parts).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def store(exits: Exits, said_of: About, judged: Judged, folder: Path) -> Path:
    """Write exits beside a run's checkpoints and return the file. Raises WriteError."""
    path = folder / NAME
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in exits.state_dict().items()}
    state |= {_JUDGED + name: getattr(judged, name).contiguous() for name in Judged.__slots__}
    said = {name: getattr(said_of, name) for name in About.__slots__}
    write(path, save(state, {_ABOUT: json.dumps(said)}))
    return path


def load(model: RunModel) -> tuple[Exits, About, Judged]:
    """Read the exits of a run, what they say of themselves, and how they do: those in its folder, or where these belong
    to other weights, those that were trained with the model, which its data then judge. Raises RunError where there are
    none, where they are broken, and where they belong to other weights."""
    stored = _stored(model)
    if stored is not None:
        return stored
    exits = _own(model)
    data = load_data(model.scenario)
    judged = judge(model, exits, data.validation)
    return exits, about(model, exits, judged), judged


def heads(model: RunModel) -> Exits:
    """Read the exits of a run alone, for which no data are needed. Raises RunError as `load` does."""
    stored = _stored(model)
    return _own(model) if stored is None else stored[0]


def has_exits(model: RunModel) -> bool:
    """Tell whether a run has exits, of whichever weights."""
    return (model.folder / NAME).exists() or bool(exits_of(*model.parts))


def trained_with(model: RunModel) -> Exits | None:
    """Return the exits that were trained with a run's model, which they share their heads with; None where there are
    none."""
    found, trunk = exits_of(*model.parts), model.trunk
    return joined(found, trunk.width, trunk.prefix).eval() if found else None


def keep(model: RunModel, images: Images) -> None:
    """Write the exits that were trained with a model beside its checkpoints, judged by images of the validation split;
    nothing where there are none. Raises WriteError."""
    exits = trained_with(model)
    if exits is not None:
        judged = judge(model, exits, images)
        store(exits, about(model, exits, judged), judged, model.folder)


def about(model: RunModel, exits: Exits, judged: Judged, epochs: int = 0) -> About:
    """Return what exits say of themselves that were fitted to a model for so many epochs, or trained with it (0)."""
    right = tuple(judged.right.float().mean(1).tolist())
    ensemble = exits.ensemble is not None
    return About(exits.blocks, exits.heads, ensemble, model.round, fingerprint(model), epochs, right)


def _own(model: RunModel) -> Exits:
    if (exits := trained_with(model)) is None:
        raise RunError(f"{model.folder}: has no exits: make some with: splitfed exits {model.folder} --blocks 1,2")
    return exits


def _stored(model: RunModel) -> tuple[Exits, About, Judged] | None:
    """Read what lies in a run's folder; None where that is nothing, or not of these weights, whose own exits were
    trained with them."""
    path = model.folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            said = json.loads((file.metadata() or {})[_ABOUT])
        said_of = About(**{**said, "blocks": tuple(said["blocks"]), "accuracy": tuple(said["accuracy"])})
        exits = empty(model, said_of.blocks, said_of.heads, said_of.ensemble)
        judged = Judged(*(state.pop(_JUDGED + name) for name in Judged.__slots__))
        exits.load_state_dict(state)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{path}: broken file of exits ({reason(error)[:160]}); make it anew with: splitfed exits"
        ) from error
    if said_of.model != fingerprint(model):
        if exits_of(*model.parts):
            return None
        raise RunError(
            f"{path}: these exits belong to the weights after round {said_of.round}, and not to those after round "
            f"{model.round}: name that --round, or make them anew with: splitfed exits {model.folder}"
        )
    return exits.eval().requires_grad_(False).to(model.device), said_of, judged


def judge(model: RunModel, exits: Exits, images: Images) -> Judged:
    """Find how exits do on images that they were not trained on, and what an answer by each costs. Raises DataError
    where there are none."""
    if not len(images):
        raise DataError("data: exits are judged on a validation split, and that is empty")
    seen, labels, whole = looked_at(model, exits, images, torch.arange(len(images)))
    with torch.no_grad():
        logits = exits(seen)
        answers = torch.stack([exits.answer(place, logits) for place in range(len(exits.blocks))])
    sent = sent_bytes(model, exits, images, min(len(images), _SENT))
    so_far = operations(model, exits, exits.blocks)
    costs = [so_far[block] for block in exits.blocks] + [so_far[-1]]
    return Judged.of(answers, whole, labels, sent, torch.tensor(costs, dtype=torch.float64))


@torch.no_grad()
def sent_bytes(model: RunModel, exits: Exits, images: Images, count: int) -> Tensor:
    """Return the bytes of the first `count` images where they are sent one by one as the run sends, requests and
    answers, for an answer by each exit and by the whole model, int64 `[E + 1, count]`; none, `[E + 1, 0]`, where its
    reducer merges samples."""
    trunk, ends = model.trunk, [*exits.blocks, None]
    if not model.scenario.compression.reducer.single:
        return torch.zeros(len(ends), 0, dtype=torch.int64)
    geometry, asked = trunk.front.geometry(1, len(model.classes)), behind(trunk, exits)[0]
    asking, down = Asking(model.scenario.compression, trunk, geometry, model.device), torch.zeros(0)
    rule = Rule(0.5) if asked is not None else None
    attention = ClsAttention(trunk.front, trunk.cut) if asking.needs_attention(trunk.cut) else None
    found: list[Tensor] = []
    for batch in plain(model, images, torch.arange(count)):
        tokens = trunk.begin(batch.images.to(model.device))
        for number in range(1, trunk.cut + 1):
            tokens = trunk.block(number, tokens)
        looked = None if attention is None else attention.read()
        for row in range(len(tokens)):
            one = slice(row, row + 1)
            packed = asking.pack(
                tokens[one], trunk.cut, Key(0).at("ask", len(found)), model="0" * 16,
                attention=None if looked is None else partial(looked.__getitem__, one), rule=rule,
            )  # fmt: skip
            if not len(down):  # logits in float32 are as many bytes for all images
                down = _answer_bytes(asking, asking.unpack(packed.buffer), ends, asked)
            found.append(packed.total + down)
    sent = torch.tensor([end is None or end > trunk.cut for end in ends])
    return sent[:, None] * torch.stack(found, 1)


def _answer_bytes(asking: Asking, one: Asked, ends: Sequence[int | None], asked: Exits | None) -> Tensor:
    """Return the bytes of the answer to an image by each of these exits, int64 `[E]`; None is the whole model, as are
    exits that have no part in it."""
    whole = asking.answer(one)
    logits = torch.zeros(1, asked.classes) if asked is not None else torch.zeros(0)
    return torch.tensor([
        asking.pack_answer(one.number, logits, [end]).total if asked is not None and end in asked.blocks
        else whole.total for end in ends
    ], dtype=torch.int64)  # fmt: skip


def operations(model: RunModel, exits: Exits | None, blocks: Sequence[int]) -> list[float]:
    """Return the operations of a forward pass for an image up to each block, with those of the exits after `blocks` so
    far, the first being what comes before block 1, and the last one those of all; a multiplication and an addition are
    two."""
    trunk, size = model.trunk, model.scenario.model.image_size
    image = torch.zeros(1, 3, size, size, device=model.device)
    before = torch.zeros(1, len(model.classes), device=model.device)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tokens = trunk.begin(image)
        so_far = [float(counter.get_total_flops())]
        for number in range(1, len(trunk) + 1):
            tokens = trunk.block(number, tokens)
            if exits is not None and number in blocks:
                exits.head(exits.blocks.index(number), exits.look(tokens), before)
            so_far.append(float(counter.get_total_flops()))
            if number == trunk.cut:
                tokens = trunk.cross(tokens)
        trunk.end(tokens)
        return [*so_far, float(counter.get_total_flops())]


def behind(trunk: Trunk, exits: Exits | None) -> tuple[Exits | None, str]:
    """Return those exits of a run that can answer at a server, as they follow its blocks, by themselves, or None; and
    why not, where there are some that cannot, or nothing."""
    later = [block for block in exits.blocks if block > trunk.cut] if exits is not None else []
    if exits is None or not later:
        return None, ""
    if trunk.tail is not None:
        return None, "labels are private, and what the server answers with has to go through the tail"
    if len(later) > MAX_META:
        return None, f"there are {len(later)} of them, and an answer can name {MAX_META}"
    if len(later) == len(exits.blocks):
        return exits, ""
    if exits.ensemble is not None or exits.heads == "cascade":
        kind = "an ensemble" if exits.ensemble is not None else "a cascade"
        return None, f"in {kind} they go by what exits before the cut say, and no logits cross"
    made = Exits(later, trunk.width, exits.classes, trunk.prefix, key=Key(0)).eval().requires_grad_(False)
    made.outputs = torch.nn.ModuleDict({str(block): exits.outputs[str(block)] for block in later})
    return made, ""


def features(model: RunModel, exits: Exits, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return what each exit sees of images on the model's device, `[B, 2 D]` each, and what the last of their blocks
    made, `[B, n, D]`."""
    trunk, seen = model.trunk, []
    with torch.no_grad():
        tokens = trunk.begin(images)
        for number in range(1, exits.blocks[-1] + 1):
            if number == trunk.cut + 1:
                tokens = trunk.cross(tokens)
            tokens = trunk.block(number, tokens)
            if number in exits.blocks:
                seen.append(exits.look(tokens))
    return seen, tokens


def rest(trunk: Trunk, after: int, tokens: Tensor) -> Tensor:
    """Turn what block `after` made, `[B, n, D]`, into logits `[B, C]`, by all that follows."""
    return trunk.end(trunk.go_on(after, trunk.cross(tokens) if after == trunk.cut else tokens))


def looked_at(model: RunModel, exits: Exits, images: Images, rows: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return what the exits see of images as they are, the labels, and what the whole model takes these for."""
    parts: list[list[Tensor]] = [[] for _ in exits.blocks]
    labels, whole = [], []
    for batch in plain(model, images, rows):
        seen, tokens = features(model, exits, batch.images.to(model.device))
        with torch.no_grad():
            whole.append(rest(model.trunk, exits.blocks[-1], tokens).argmax(1))
        labels.append(batch.labels.to(model.device))
        for part, one in zip(parts, seen, strict=True):
            part.append(one)
    return [torch.cat(part) for part in parts], torch.cat(labels), torch.cat(whole)


def plain(model: RunModel, images: Images, rows: Tensor) -> Iterator[Batch]:
    """Give these rows of images as they are, in mini-batches."""
    training = model.scenario.training
    return batches(
        images, rows, training.eval_batch_size, Key(0), workers=model.scenario.data.workers, epochs=1, mean=model.mean,
        std=model.std, shuffle=False,
    )  # fmt: skip


def empty(model: RunModel, blocks: Sequence[int], heads: Heads, ensemble: bool) -> Exits:
    """Return new exits for a model, drawn from its run's seed."""
    trunk = model.trunk
    key = Key(model.scenario.seed).at("exits")
    return Exits(blocks, trunk.width, len(model.classes), trunk.prefix, heads=heads, ensemble=ensemble, key=key)


def check_blocks(model: RunModel, blocks: Sequence[int]) -> tuple[int, ...]:
    """Return blocks ascending. Raises RunError unless they are some of the model's, each once, and not its last."""
    last, cut = len(model.trunk), model.trunk.cut
    for block in blocks:
        if not 1 <= block < last:
            raise RunError(
                f"--blocks {','.join(map(str, blocks))}: exits follow blocks 1 to {last - 1}: the model has {last}, "
                "and its own head follows the last"
            )
    if model.trunk.gated and any(block < cut for block in blocks):
        raise RunError(
            f"--blocks {','.join(map(str, blocks))}: the gates of compression.reducer: "
            f"{model.scenario.compression.reducer.kind} run the front as a whole: exits follow block {cut} and later"
        )
    if len(set(blocks)) < len(blocks) or not blocks:
        raise RunError(f"--blocks {','.join(map(str, blocks))}: name each block once, and one at least")
    return tuple(sorted(blocks))
