"""What a client's process holds: its own images, or the scenario's data set, of which each client has a share."""

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import torch
from torch import Tensor

from splitfed.clients.settings import Settings
from splitfed.data.dataset import load
from splitfed.data.images import Images
from splitfed.data.own import own_images
from splitfed.data.sources.hub import is_name
from splitfed.data.sources.labels import listed
from splitfed.data.stratify import divide
from splitfed.errors import DataError
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.seeds import Key

log = getLogger("splitfed")


@dataclass(frozen=True, slots=True)
class Holding:
    """Images and class names; `shares` are the rows of each client, None where all are one client's own. Each holds the
    share `out` of its rows out, drawn from `key`."""

    images: Images
    classes: list[str]
    shares: list[Tensor] | None
    out: float
    key: Key

    def rows(self, client: int) -> Tensor:
        """Return the rows of `images` that a client trains on. Raises DataError for one that the scenario lacks."""
        return self._divided(client)[0]

    def held_out(self, client: int) -> Tensor:
        """Return the rows of `images` that a client never trains on. Raises DataError as `rows` does."""
        return self._divided(client)[1]

    def stored_bytes(self, client: int) -> int:
        """Return what all images of a client weigh as they are stored, in bytes. Raises DataError as `rows` does."""
        return self.images.stored_bytes(torch.cat(self._divided(client)))

    def _divided(self, client: int) -> tuple[Tensor, Tensor]:
        if self.shares is not None and not client < len(self.shares):
            raise DataError(f"there is no share for client {client}: the scenario's are 0 to {len(self.shares) - 1}")
        rows = torch.arange(len(self.images)) if self.shares is None else self.shares[client]
        return divide(rows, self.images.labels, self.out, self.key, client)


def hold(scenario: Scenario, settings: Settings, classes: Sequence[str]) -> Holding:
    """Open what these settings say; `classes` are what the server calls them, which own images cannot do without.

    Raises DataError for what cannot be opened, or does not fit the classes.
    """
    config, size, key = scenario.data, scenario.model.image_size, Key(scenario.seed)
    out = scenario.evaluation.held_out
    if settings.data is not None:
        if not classes:
            raise DataError(f"{settings.data}: cannot be matched to classes, as the server has told none")
        return Holding(own_images(settings.data, config, size, classes), list(classes), None, out, key)
    if settings.data_path is not None:
        config = config.model_copy(update={"path": settings.data_path})
    elif isinstance(scenario.engine, Deployment) and config.path != "digits":
        # Which of this machine's folders are opened is not the server's to say.
        if not is_name(config.path):
            raise DataError(
                f"the scenario's images lie in a folder, {Path(config.path).name}, on the server's machine: say with "
                "--data where they lie here"
            )
        if Path(config.path).exists():
            raise DataError(
                f"the server names the data set {config.path}, and something is called so here: say with --data where "
                "it lies, or go to another folder"
            )
        log.warning(
            "the server names a data set of the Hugging Face Hub, %s: it is loaded from there, or from this machine's "
            "cache of it; --data names another copy", config.path,
        )  # fmt: skip
    data = load(config, size, scenario.federation.clients, key.at("data"))
    if classes and list(classes) != data.classes:
        raise DataError(
            f"{config.path}: is another data set than the server's: its classes are {listed(data.classes)}, not "
            f"{listed(classes)}"
        )
    return Holding(data.train, data.classes, data.partitions, out, key)
