"""Exits: small heads after chosen blocks, each of which answers from what that block made.

They lie beside a run's checkpoints, in `exits.safetensors`, and belong to the weights that they were fitted to.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from splitfed.errors import RunError
from splitfed.files import reason, write
from splitfed.inference.deciding import MEASURES, Rule, confidence, threshold_for
from splitfed.inference.run_model import RunModel
from splitfed.model.parts import whole_state
from splitfed.seeds import Key

NAME = "exits.safetensors"
Heads = Literal["linear", "cascade"]
HEADS: tuple[Heads, ...] = get_args(Heads)
_ABOUT, _JUDGED = "exits", "judged."


class Exits(nn.Module):
    """Heads after the blocks that `blocks` names, ascending, from 1 on. Each is a linear layer on the class token and
    the mean of the patches, both normalised. In a `cascade` each also sees what the head before says, without a
    gradient to it, and an `ensemble` answers by a weighted geometric mean of the heads so far (Zero Time Waste, arXiv
    2106.05409)."""

    def __init__(
        self, blocks: Sequence[int], width: int, classes: int, prefix: int, *, heads: Heads = "linear",
        ensemble: bool = False, key: Key,
    ) -> None:  # fmt: skip
        super().__init__()
        self.blocks, self.heads, self.classes = tuple(blocks), heads, classes
        self._prefix = prefix
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.integer())
            seen = [2 * width + (classes if heads == "cascade" and place else 0) for place in range(len(blocks))]
            self.outputs = nn.ModuleList(nn.Linear(inputs, classes) for inputs in seen)
        self.ensemble = Ensemble(len(blocks), classes) if ensemble else None

    def look(self, tokens: Tensor) -> Tensor:
        """Return what a head sees of a block's output `[B, k, D]`: `[B, 2 D]` float32."""
        tokens = tokens.float()
        means = tokens[:, self._prefix :].mean(1) if tokens.shape[1] > self._prefix else tokens[:, 0]
        parts = torch.stack([tokens[:, 0], means], 1)
        return nn.functional.layer_norm(parts, parts.shape[-1:]).flatten(1)

    def head(self, place: int, seen: Tensor, before: Tensor | None) -> Tensor:
        """Return the logits `[B, C]` of one head, from what it sees and, in a cascade, the logits of the one before."""
        if self.heads == "cascade" and place:
            assert before is not None
            seen = torch.cat([seen, nn.functional.layer_norm(before.detach(), before.shape[-1:])], 1)
        return self.outputs[place](seen)

    def forward(self, seen: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits `[B, C]` of all heads, from what each sees."""
        found: list[Tensor] = []
        for place, one in enumerate(seen):
            found.append(self.head(place, one, found[-1] if found else None))
        return found

    def answer(self, place: int, logits: Sequence[Tensor]) -> Tensor:
        """Return the probabilities `[B, C]` with which exit number `place` answers, from the logits of all heads up to
        it."""
        if self.ensemble is None:
            return logits[place].softmax(-1)
        return self.ensemble(place, [log_softmax(one, -1) for one in logits[: place + 1]]).softmax(-1)


class Ensemble(nn.Module):
    """Weighs what the heads say so far: u_m = (1 / m) sum_(j <= m) exp(a_mj) log p_j + c_m (Zero Time Waste, arXiv
    2106.05409)."""

    def __init__(self, exits: int, classes: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(exits, exits))
        self.shifts = nn.Parameter(torch.zeros(exits, classes))

    def forward(self, place: int, logs: Sequence[Tensor]) -> Tensor:
        """Return u of exit number `place`, `[B, C]`, from log probabilities of the heads up to it."""
        weighed = torch.stack(list(logs)) * self.weights[place, : place + 1].exp()[:, None, None]
        return weighed.sum(0) / (place + 1) + self.shifts[place]


@dataclass(frozen=True, slots=True)
class About:
    """What a file of exits says of itself: after which blocks, of which kind, for the weights after which `round`
    (`model` is their SHA-256), how they were trained, and what share of the validation split each answers rightly."""

    blocks: tuple[int, ...]
    heads: Heads
    ensemble: bool
    round: int
    model: str
    epochs: int
    accuracy: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """How exits do on the N images of the validation split: how sure each is, by each of `MEASURES`, `[M, E, N]`, which
    they answer rightly, bool `[E, N]`, and which the whole model does, bool `[N]`."""

    confidences: Tensor
    right: Tensor
    whole: Tensor

    @classmethod
    def of(cls, answers: Tensor, whole: Tensor, labels: Tensor) -> Self:
        """Judge probabilities `[E, N, C]`, and the classes `[N]` that the whole model names."""
        sure = torch.stack([confidence(answers.float(), measure) for measure in MEASURES])
        return cls(sure.cpu(), (answers.argmax(2) == labels).cpu(), (whole == labels).cpu())

    def threshold(self, accuracy: float, rule: Rule) -> float:
        """Return the lowest threshold with which so large a share is answered rightly, by what a rule says otherwise.
        Raises RunError where none is enough."""
        sure = self.confidences[MEASURES.index(rule.measure)]
        found = threshold_for(sure, self.right, self.whole, accuracy, rule)
        if found is None:
            best = float(self.whole.float().mean())
            raise RunError(
                f"an accuracy of {accuracy:g}: no threshold reaches it on the validation split, where the whole model "
                f"has {best:.1%}"
            )
        return found


def fingerprint(model: RunModel) -> str:
    """Return the SHA-256 of a model's weights, whatever device they are on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(whole_state(*model.parts).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def store(exits: Exits, about: About, judged: Judged, folder: Path) -> Path:
    """Write exits beside a run's checkpoints and return the file. Raises WriteError."""
    path = folder / NAME
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in exits.state_dict().items()}
    state |= {_JUDGED + name: getattr(judged, name).contiguous() for name in Judged.__slots__}
    said = {name: getattr(about, name) for name in About.__slots__}
    write(path, save(state, {_ABOUT: json.dumps(said)}))
    return path


def load(model: RunModel) -> tuple[Exits, About, Judged]:
    """Read the exits of a run, what they say of themselves, and how they do. Raises RunError where
    it has none, where they are broken, and where they belong to other weights."""
    path = model.folder / NAME
    if not path.exists():
        raise RunError(f"{model.folder}: has no exits: make some with: splitfed exits {model.folder} --blocks 1,2")
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            said = json.loads((file.metadata() or {})[_ABOUT])
        about = About(**{**said, "blocks": tuple(said["blocks"]), "accuracy": tuple(said["accuracy"])})
        exits = empty(model, about.blocks, about.heads, about.ensemble)
        judged = Judged(*(state.pop(_JUDGED + name) for name in Judged.__slots__))
        exits.load_state_dict(state)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{path}: broken file of exits ({reason(error)[:160]}); make it anew with: splitfed exits"
        ) from error
    if about.model != fingerprint(model):
        raise RunError(
            f"{path}: these exits belong to the weights after round {about.round}, and not to those after round "
            f"{model.round}: name that --round, or make them anew with: splitfed exits {model.folder}"
        )
    return exits.eval().requires_grad_(False).to(model.device), about, judged


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
