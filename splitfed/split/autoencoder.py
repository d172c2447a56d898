"""General alignment (AE-PSL): an autoencoder learns, on public images, to reconstruct what a scenario's front makes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from splitfed.compression.reducers.settings import AeConfig
from splitfed.compression.reducers.trained.autoencoder import Ae, Kept, write
from splitfed.data.augment import variants_of
from splitfed.data.batches import Batch, batches
from splitfed.data.dataset import load
from splitfed.data.images import Images
from splitfed.data.settings import DataConfig
from splitfed.data.sources.base import Source, open_digits
from splitfed.data.sources.opening import open_unlabelled
from splitfed.errors import DataError, RunError
from splitfed.model.build import Front, build, pixel_stats, split
from splitfed.model.forward import autocast, in_chunks, join_chunks
from splitfed.model.optim import pick_device
from splitfed.scenario import Scenario
from splitfed.seeds import Key

# What a mistake in the data is called here, where the public images are named on the command line.
_OPTIONS = {"data.train_split": "--split", "data.image_column": "--image-column", "data.path": "--public"}


@dataclass(frozen=True, slots=True)
class Public:
    """Images that nobody minds showing: what `data.path` takes, of which one split is used, `limit` images at most."""

    path: str
    split: str = "train"
    image_column: str = "image"
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Aligned:
    """What came of it: relative reconstruction errors on images that were held out, before and after, and counts."""

    before: float
    after: float
    images: int
    held_out: int
    steps: int


def align(
    scenario: Scenario, public: Public, out: Path, *, steps: int | None = None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> Aligned:  # fmt: skip
    """Fit the autoencoder of the scenario's reducer `ae` for `steps` mini-batches (None: ten passes) and write it to
    `out`. A tenth of the images is held out, on which the errors are measured. `on_step` is called after each step with
    its number and how many there are. Raises a SplitfedError for mistakes of the user's.
    """
    reducer, training, key = scenario.compression.reducer, scenario.training, Key(scenario.seed).at("alignment")
    if not isinstance(reducer, AeConfig):
        raise RunError(
            f"compression.reducer is {reducer.kind}, which needs no alignment: choose the reducer ae, for instance "
            "with --set 'compression.reducer={kind: ae, width: 24}'"
        )
    if out.suffix != ".safetensors":
        raise RunError(f"--out {out}: must end in .safetensors")
    if not out.parent.is_dir():
        raise RunError(f"--out {out}: there is no folder {out.parent}")
    images = _open(public, scenario, key)
    front = _front(scenario).to(pick_device(training.server.device))
    geometry = front.geometry(training.batch_size, 2)
    if reducer.width >= geometry.width:
        raise RunError(f"compression.reducer (ae): {reducer.misfit(scenario.model, geometry)}")
    halves = Ae(reducer.width).halves(geometry, key.at("halves"))
    halves.encoder.to(next(front.parameters()).device)
    halves.decoder.to(next(front.parameters()).device)
    mean, std = pixel_stats(scenario.model)
    order = torch.randperm(len(images), generator=key.at("held out").generator())
    held_out, rows = order[: max(1, len(order) // 10)], order[max(1, len(order) // 10) :]
    count = steps if steps is not None else 10 * -(-len(rows) // training.batch_size)

    def given(chosen: torch.Tensor, **how):
        return batches(images, chosen, training.batch_size, key.at("batches"), mean=mean, std=std, **how)

    aligner = Aligner(front, halves.encoder, halves.decoder, reducer.lr, training.precision)
    before = aligner.error(given(held_out, epochs=1, shuffle=False))
    data = scenario.data
    how = {"workers": data.workers, "augment": data.augment, "variants": variants_of(data, key)}
    aligner.fit(given(rows, steps=count, **how), lambda step: on_step(step, count))
    after = aligner.error(given(held_out, epochs=1, shuffle=False))
    write(out, halves, Kept.of(scenario.model, geometry, reducer.width))
    return Aligned(before, after, len(rows), len(held_out), count)


def _open(public: Public, scenario: Scenario, key: Key) -> Images:
    config = DataConfig(path=public.path, train_split=public.split, image_column=public.image_column)
    source: Source
    try:
        source = open_digits()[0] if public.path == "digits" else open_unlabelled(config)
    except DataError as error:
        text = str(error)
        for name, option in _OPTIONS.items():
            text = text.replace(name, option)
        raise DataError(text) from None
    rows = torch.randperm(len(source), generator=key.at("limit").generator())[: public.limit]
    if len(rows) < 2:
        raise DataError(f"--public {public.path}: {len(rows)} images, where at least 2 are needed: one is held out")
    images = Images(source, rows.sort().values, scenario.model.image_size)
    if scenario.data.cache and images.nbytes <= scenario.data.cache:
        images.keep()
    return images


def _front(scenario: Scenario) -> Front:
    """Build the front as a run begins with it: the same whatever the classes are, unless it is drawn from the seed."""
    config, classes = scenario.model, 2
    if not config.pretrained and config.weights is None:
        expect, key = scenario.data.expect, Key(scenario.seed)
        clients = scenario.federation.clients
        classes = (
            expect.classes if expect else len(load(scenario.data, config.image_size, clients, key.at("data")).classes)
        )
    return split(build(config, classes, key=Key(scenario.seed).at("model")), config.cut)[0]


class Aligner:
    """Trains an encoder, and with `both` the decoder, to reconstruct the activations of `front` with Adam at `lr`.

    The front is in evaluation mode, takes no gradient while this works, and sees a `chunk` of images at a time.
    """

    def __init__(
        self, front: Front, encoder: nn.Module, decoder: nn.Module, lr: float, precision: str, *, both: bool = True,
        chunk: int | None = None,
    ) -> None:  # fmt: skip
        self.front, self.encoder, self.decoder, self.precision = front, encoder, decoder, precision
        self._chunk = chunk
        self.device = next(front.parameters()).device
        self._learning = [*encoder.parameters(), *(decoder.parameters() if both else ())]
        self._optimiser = torch.optim.Adam(self._learning, lr=lr, fused=True)

    def fit(self, batches: Iterable[Batch], on_step: Callable[[int], None] = lambda step: None) -> None:
        """Take a step for each batch; the mean squared error over all numbers goes down."""
        frozen = [parameter for parameter in self._learning if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            for step, batch in enumerate(batches, 1):
                activations = self._activations(batch)
                nn.functional.mse_loss(self.decoder(self.encoder(activations)), activations).backward()
                self._optimiser.step()
                self._optimiser.zero_grad(set_to_none=True)
                on_step(step)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def error(self, batches: Iterable[Batch]) -> float:
        """Return the relative reconstruction error: the sum of squared errors over that of squared activations, prefix
        tokens, which cross as they are, left out."""
        missed = total = 0.0
        with torch.no_grad():
            for batch in batches:
                activations = self._activations(batch)
                restored = self.decoder(self.encoder(activations))
                prefix = self.front.num_prefix_tokens
                missed += float((restored - activations)[:, prefix:].double().square().sum())
                total += float(activations[:, prefix:].double().square().sum())
        return missed / total if total else 0.0

    @torch.no_grad()
    def _activations(self, batch: Batch) -> Tensor:
        training = self.front.training
        self.front.eval()
        with autocast(self.precision, self.device):
            activations = join_chunks([*in_chunks(self.front, self._chunk, batch.images.to(self.device))])
        self.front.train(training)
        return activations.float()
