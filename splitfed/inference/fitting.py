"""Fits exits to a finished run, whose model stays as it is (the regime "disjoint" of arXiv 2407.14320), and ensembles
to exits, whose heads stay as they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from splitfed.data.augment import variants_of
from splitfed.data.batches import batches, count_batches
from splitfed.data.dataset import FederatedData
from splitfed.data.stratify import divide
from splitfed.errors import DataError, RunError
from splitfed.inference.exits import (
    About,
    about,
    check_blocks,
    empty,
    features,
    judge,
    looked_at,
    store,
    trained_with,
)
from splitfed.inference.run_model import RunModel
from splitfed.model.exits.heads import Ensemble, Exits
from splitfed.model.exits.settings import Heads
from splitfed.run.origin import load_data
from splitfed.seeds import Key

Step = Callable[[int, int], None]
_ENSEMBLE_STEPS, _ENSEMBLE_LR = 200, 0.05


@dataclass(frozen=True, slots=True)
class Fitted:
    """Exits that were fitted: the file, what it says of itself, how many images they saw and how many they are judged
    by, and what share of these the whole model answers rightly."""

    path: Path
    about: About
    images: int
    validation: int
    whole: float


def fit(
    run: str | Path, blocks: Sequence[int] | None = None, *, heads: Heads = "linear", ensemble: bool = False,
    epochs: int = 10, lr: float = 5e-3, round: int | None = None, device: str | None = None,
    overrides: list[str] | None = None, on_epoch: Step | None = None,
) -> Fitted:  # fmt: skip
    """Train exits after `blocks` of a run's model on the images that its clients train on, by Adam with a cosine that
    ends at 0, and write them into its folder; all other weights stay as they are, bit for bit. Without `blocks` they
    are those that were trained with the model, as they are. An `ensemble` is fitted to either.

    Augmentation, batch size and precision are the scenario's. `overrides` change it, as `--set` does: where its data
    are now. Raises a SplitfedError as `RunModel.read` does, for blocks that the model has not, for data that are not
    here or not those of the run.
    """
    model = RunModel.read(run, round=round, device=device, overrides=overrides)
    exits = _new(model, blocks, heads, ensemble)
    data = load_data(model.scenario)
    rows = _trained_on(model, data)
    if not len(rows) or not len(data.validation):
        raise DataError("data: exits are trained on images and judged on a validation split, and one of both is empty")
    if blocks is None:
        epochs = 0
    else:
        _train(model, exits, data, rows, epochs, lr, on_epoch)
    if exits.ensemble is not None:
        _weigh(exits, *looked_at(model, exits, data.train, rows)[:2])
    judged = judge(model, exits, data.validation)
    said = about(model, exits, judged, epochs)
    path = store(exits, said, judged, model.folder)
    return Fitted(path, said, len(rows), len(data.validation), float(judged.whole.float().mean()))


def _new(model: RunModel, blocks: Sequence[int] | None, heads: Heads, ensemble: bool) -> Exits:
    """Return exits that are to be fitted, or those that were trained with a model, with an ensemble to be fitted."""
    if blocks is not None:
        return empty(model, check_blocks(model, blocks), heads, ensemble).to(model.device)
    exits = trained_with(model)
    if exits is None:
        raise RunError(
            f"{model.folder}: no exits were trained with its model: name blocks after which some are to be trained "
            "now, such as --blocks 1,2"
        )
    if ensemble:
        exits.ensemble = Ensemble(len(exits.blocks), exits.classes).to(model.device)
    return exits


def _trained_on(model: RunModel, data: FederatedData) -> Tensor:
    """Return the rows that clients train on: what they hold, without what they hold out."""
    key, share = Key(model.scenario.seed), model.scenario.evaluation.held_out
    dealt = enumerate(data.partitions)
    return torch.cat([divide(rows, data.train.labels, share, key, client)[0] for client, rows in dealt])


def _train(
    model: RunModel, exits: Exits, data: FederatedData, rows: Tensor, epochs: int, lr: float, on_epoch: Step | None
) -> None:
    scenario, key = model.scenario, Key(model.scenario.seed)
    size = scenario.training.batch_size
    heads = list(exits.outputs.parameters())
    optimiser = torch.optim.Adam(heads, lr=lr)
    steps = count_batches(len(rows), size, None, epochs)
    if not steps:
        return
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for number, batch in enumerate(batches(
        data.train, rows, size, key.at("exits", "batches"), augment=scenario.data.augment,
        variants=variants_of(scenario.data, key), workers=scenario.data.workers, epochs=epochs, mean=model.mean,
        std=model.std,
    )):  # fmt: skip
        images, labels = batch.images.to(model.device), batch.labels.to(model.device)
        seen, _ = features(model, exits, images)
        loss = torch.stack([cross_entropy(logits, labels) for logits in exits(seen)]).sum()
        if not bool(loss.isfinite()):
            raise RunError(f"{model.folder}: the exits' loss is NaN or infinite: lower --lr")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        each = -(-len(rows) // size)
        if on_epoch and (number + 1) % each == 0:
            on_epoch((number + 1) // each, epochs)


def _weigh(exits: Exits, seen: list[Tensor], labels: Tensor) -> None:
    """Fit the ensemble's weights, the heads staying as they are."""
    assert exits.ensemble is not None
    with torch.no_grad():
        logits = exits(seen)
    optimiser = torch.optim.Adam(exits.ensemble.parameters(), lr=_ENSEMBLE_LR)
    for _ in range(_ENSEMBLE_STEPS):
        said = [exits.answer(place, logits).clamp(min=1e-30).log() for place in range(len(exits.blocks))]
        loss = torch.stack([torch.nn.functional.nll_loss(one, labels) for one in said]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
