"""What a run of a scenario trains on: how many images of which class each client holds, before anything runs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from splitfed.data.dataset import load
from splitfed.data.settings import Counts
from splitfed.run.waiting import waiting
from splitfed.scenario import Scenario
from splitfed.seeds import Key


@dataclass(frozen=True, slots=True)
class Description:
    """The data of a scenario: images of each split, class names, and how many training images of each class each
    client holds, `held` (int64 `[clients, classes]`), of the `trained` (`[classes]`) that there are. `owners` names the
    clients where a column of the data set does."""

    scenario: Scenario
    counts: Counts
    classes: list[str]
    held: Tensor
    trained: Tensor
    owners: list[str] | None

    @property
    def images(self) -> Tensor:
        """Images of each client, int64 `[clients]`."""
        return self.held.sum(1)

    @property
    def kinds(self) -> Tensor:
        """Classes of which each client holds an image, int64 `[clients]`."""
        return (self.held > 0).sum(1)

    @property
    def distances(self) -> Tensor:
        """How far each client's shares of the classes are from those of all training images, float64 `[clients]`: half
        the sum of their differences (total variation), from 0 for equal to 1; NaN for a client without images."""
        shares = self.held.double() / self.images.unsqueeze(1)
        return (shares - self.trained.double() / self.trained.sum()).abs().sum(1) / 2

    @property
    def left_out(self) -> int:
        """Training images that no client holds."""
        return int(self.trained.sum() - self.held.sum())


def describe(scenario: Scenario) -> Description:
    """Load, divide and deal the data as a run would; nothing is trained, and no image decoded. Raises SplitfedError."""
    clients = scenario.federation.clients
    with waiting("loading the data"):
        data = load(scenario.data, scenario.model.image_size, clients, Key(scenario.seed).at("data"))
    count = len(data.classes)
    cells = torch.cat([data.train.labels[rows] + client * count for client, rows in enumerate(data.partitions)])
    held = cells.bincount(minlength=clients * count).view(clients, count)
    counts = Counts(len(data.train), len(data.validation), len(data.test))
    return Description(scenario, counts, data.classes, held, data.train.labels.bincount(minlength=count), data.owners)
