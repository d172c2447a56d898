"""Fits an autoencoder to what a front makes of images, the front as it is: what AE-PSL calls alignment."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from splitfed.batches import Batch
from splitfed.models import Front
from splitfed.precision import autocast


class Aligner:
    """Trains an encoder, and with `both` the decoder, to reconstruct the activations of `front` with Adam at `lr`.

    The front is in evaluation mode and takes no gradient while this works.
    """

    def __init__(
        self, front: Front, encoder: nn.Module, decoder: nn.Module, lr: float, precision: str, *, both: bool = True
    ) -> None:
        self.front, self.encoder, self.decoder, self.precision = front, encoder, decoder, precision
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
            activations = self.front(batch.images.to(self.device))
        self.front.train(training)
        return activations.float()
