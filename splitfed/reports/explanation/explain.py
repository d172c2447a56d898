"""What the reducer makes of one mini-batch of a run: which tokens it keeps and which samples it merges.

Done as a client does it: the front of a checkpoint goes out through its codec, runs on a client's first mini-batch of
the next round, and the reducer plans with that step's key. Nothing here knows one reducer from another: a plan tells.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from splitfed.data.augment import variants_of
from splitfed.data.batches import Batch, batches
from splitfed.data.dataset import FederatedData
from splitfed.data.stratify import divide
from splitfed.errors import ModelError, RunError
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.build import Front, pixel_stats
from splitfed.model.forward import autocast, draws, keyed_rng
from splitfed.model.optim import pick_device
from splitfed.run.checkpoint import Checkpoints
from splitfed.run.folder import stored_scenario
from splitfed.run.ledger import Sizes
from splitfed.run.origin import load_data
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.split.assembly import assemble
from splitfed.split.copies import Visit
from splitfed.split.cut import Cut
from splitfed.split.weights.wire import WeightWire
from splitfed.wire.frame import Place

Split = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A mini-batch of B images after so many rounds, and what becomes of it.

    `images` are what the front saw, from 0 to 1, float32 `[B, 3, S, S]`; `labels` number `classes`. `kept` `[B, n]` is
    the share of each token that travels, `groups` `[B]` the merged sample that each becomes part of, from 0 on, and
    `attention` `[B, n]` what the class token looks at, rows summing to 1 (None where the model does not tell). The
    first `prefix` tokens are no patches; the others are squares of `patch` pixels, row by row, `grid` of them. `values`
    are the numbers of a whole sample. `sent` is what the frame of this batch takes on its way up, in bytes.
    """

    scenario: Scenario
    round: int
    split: Split
    client: int | None
    images: Tensor
    labels: Tensor
    classes: list[str]
    kept: Tensor
    groups: Tensor
    attention: Tensor | None
    prefix: int
    patch: tuple[int, int]
    grid: tuple[int, int]
    values: int
    sent: Sizes

    @property
    def members(self) -> list[Tensor]:
        """The samples of each group, ascending, in the order of the groups' numbers."""
        return [(self.groups == number).nonzero().flatten() for number in range(int(self.groups.max()) + 1)]

    @property
    def in_part(self) -> bool:
        """Whether some token travels in part, not whole or not at all."""
        return bool(((self.kept > 0) & (self.kept < 1)).any())

    @property
    def attention_kept(self) -> float | None:
        """The share of the attention paid to patches that falls on what travels of them, the mean over the samples."""
        if self.attention is None:
            return None
        paid, kept = self.attention[:, self.prefix :].double(), self.kept[:, self.prefix :]
        return float(((paid * kept).sum(1) / paid.sum(1).clamp(min=1e-30)).mean())

    @property
    def mixed(self) -> int:
        """How many groups hold images of several classes."""
        return sum(len(self.labels[rows].unique()) > 1 for rows in self.members)

    @property
    def mixed_pairs(self) -> float | None:
        """The share of two different classes among all pairs of images that are merged; None without a pair."""
        pair = torch.ones(len(self.groups), len(self.groups), dtype=torch.bool).triu(1)
        pair &= self.groups[:, None] == self.groups
        return float((self.labels[:, None] != self.labels)[pair].float().mean()) if pair.any() else None


def explain(
    run: Path, *, round: int | None = None, split: Split = "train", client: int = 0, overrides: list[str] | None = None
) -> Explanation:
    """Read a run's checkpoint, the newest or that of a `round`, and explain a mini-batch of `client`, or of the
    validation split. `overrides` change the run's scenario, as `--set` does: where its data are now, or what another
    reducer would do.

    Raises a SplitfedError for a folder without a checkpoint, for data that are not there or not those of the run, and
    for a reducer that discards and merges nothing.
    """
    stored_scenario(run)
    scenario = Scenario.load(run / "scenario.yaml", overrides)
    round, state = Checkpoints(run).choose(round)
    key = Key(scenario.seed)
    data = load_data(scenario)
    front = _front(scenario, state, len(data.classes), run).to(pick_device(scenario.training.client.device))
    _through_its_codec(front, scenario, round + 1, key)
    if split == "train":
        batch = _of_client(scenario, data, client, round + 1, key)
        place = key.at("step", round + 1, client, 1)
    else:
        batch = _of_validation(scenario, data, round + 1, key)
        place = key.at("explain", round + 1)
    explanation = _explain(scenario, front, batch, place, (round, split, client if split == "train" else None), data)
    if bool((explanation.kept == 1).all()) and len(explanation.members) == len(explanation.groups):
        kind = scenario.compression.reducer.kind
        raise RunError(
            f"{run}: its reducer, {kind}, keeps every token of every sample and merges none: there is nothing to show; "
            "--set compression.reducer=... shows what another would do"
        )
    return explanation


def _front(scenario: Scenario, state: dict[str, Tensor], classes: int, run: Path) -> Front:
    """Return the front with its weights. Raises RunError where these are another model's, or of other classes."""
    head = state.get("head.weight")
    if head is not None and len(head) != classes:
        raise RunError(
            f"{run}: was trained on {len(head)} classes, and data.path: {scenario.data.path} has {classes}; name the "
            "run's own data with --set data.path=..."
        )
    front = assemble(scenario, classes, pretrained=False)[0].train()
    try:
        front.load_state_dict({name: state[name] for name in front.state_dict()})
    except (KeyError, RuntimeError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error).splitlines()[-1].strip()
        raise RunError(f"{run}: its checkpoint does not fit the scenario's model: {reason}") from error
    return front


def _through_its_codec(front: Front, scenario: Scenario, round: int, key: Key) -> None:
    """Give the front the weights that clients get of it in a round: as its codec leaves them. As differences they come
    near what they are, by an error that depends on all rounds before, and is left out."""
    wire = WeightWire(front.travelling(), scenario.compression)
    if wire.delta and round > 1 and scenario.federation.mode != "sl":
        return
    packed = wire.pack(front.travelling(), key.at("front_weights", "down", round), round, -1)
    front.load_travelling(wire.unpack(packed.buffer)[0])


def _of_client(scenario: Scenario, data: FederatedData, client: int, round: int, key: Key) -> Batch:
    if not 0 <= client < len(data.partitions):
        raise RunError(f"--client {client}: there are clients 0 to {len(data.partitions) - 1}")
    share = scenario.evaluation.held_out
    rows, _ = divide(data.partitions[client], data.train.labels, share, key, client)
    if not len(rows):
        raise RunError(f"--client {client}: holds no images")
    mean, std = pixel_stats(scenario.model)
    return next(batches(
        data.train, rows, scenario.training.batch_size, key.at("batches", round, client), augment=scenario.data.augment,
        variants=variants_of(scenario.data, key), steps=1, mean=mean, std=std,
    ))  # fmt: skip


def _of_validation(scenario: Scenario, data: FederatedData, round: int, key: Key) -> Batch:
    mean, std = pixel_stats(scenario.model)
    rows = torch.arange(len(data.validation))
    place = key.at("explain", "batches", round)
    return next(batches(data.validation, rows, scenario.training.batch_size, place, steps=1, mean=mean, std=std))


@torch.no_grad()
def _explain(
    scenario: Scenario, front: Front, batch: Batch, key: Key, where: tuple[int, Split, int | None], data: FederatedData
) -> Explanation:
    device = next(front.parameters()).device
    geometry = front.geometry(scenario.training.batch_size, len(data.classes))
    cut = Cut.of(scenario, geometry, device)
    try:
        attention = ClsAttention(front)
    except ModelError:
        if cut.reducer.needs_attention:
            raise
        attention = None
    images, labels = batch.images.to(device), batch.labels.to(device)
    with keyed_rng(key.at("dropout"), device, draws(front)), autocast(scenario.training.precision, device):
        activations = front(images, cut.reducer.budget(key.at("budget")))
    # What a reducer has put behind the tokens, for the front alone, is none of them.
    looked_at = attention.read()[:, : activations.shape[1]] if attention else None
    read = None if looked_at is None else lambda: looked_at  # a reducer that needs it would not have come so far
    plan, targets = cut.plan(activations, labels, key.at("plan"), read, front.encoder)
    smashed = plan.reduce(activations)
    round, split, client = where
    # Where copies of samples are kept, these are shown as on their first visit.
    visit = Visit(batch.rows, copies) if (copies := cut.copies()) else None
    at = Place(round + 1, client or 0, 1)
    packed = cut.pack_step(plan, smashed, targets, len(labels), key.at("rounding"), at, visit)
    samples, tokens, width = activations.shape
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in pixel_stats(scenario.model))
    return Explanation(
        scenario, round, split, client,
        images=(batch.images * std + mean).clamp(0, 1), labels=batch.labels, classes=data.classes,
        kept=plan.kept(samples, tokens).float().cpu(), groups=plan.groups(samples).unique(return_inverse=True)[1].cpu(),
        attention=looked_at.cpu() if looked_at is not None else None,
        prefix=geometry.prefix, patch=front.patch_embed.patch_size, grid=front.patch_embed.grid_size,
        values=tokens * width, sent=sum(cut.sizes(packed, samples).values(), Sizes()),
    )  # fmt: skip
