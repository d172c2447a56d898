"""What a run of a scenario trains on: how many images of which class each client holds, before anything runs."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from splitfed.data.corruptions import see
from splitfed.data.dataset import FederatedData, check_all, forget
from splitfed.data.partitions.evenly import View
from splitfed.data.settings import Counts
from splitfed.run.origin import load_data
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.waiting import waiting


@dataclass(frozen=True, slots=True)
class Description:
    """The data of a scenario: images of each split, class names, and how many training images of each class each
    client holds, `held` (int64 `[clients, classes]`), of the `trained` (`[classes]`) that there are. `owners` names the
    clients where a column of the data set does; `notes` say what else a user should know of it. `images_bytes` is what
    the images weigh that clients hold, as they are stored. `views` tell how each client sees its images, where that is
    not alike, and `examples` show one image, uint8 `[S, S, 3]`, in each of these ways."""

    scenario: Scenario
    counts: Counts
    classes: list[str]
    held: Tensor
    trained: Tensor
    owners: list[str] | None
    images_bytes: int
    notes: list[str] = field(default_factory=list)
    views: list[View] | None = None
    examples: dict[str, np.ndarray] = field(default_factory=dict)

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


def describe(scenario: Scenario, *, check: bool = False) -> Description:
    """Load, divide and deal the data as a run would; nothing is trained. No image is decoded, but for one where clients
    see them in ways of their own, unless `check`: then all of the data set are. Raises SplitfedError, with all images
    that cannot be decoded."""
    clients = scenario.federation.clients
    forget()
    if check:
        with waiting("decoding all images"):
            check_all(scenario.data)
    with waiting("loading the data"):
        data = load_data(scenario)
        weight = data.images_bytes
    count = len(data.classes)
    cells = torch.cat([data.train.labels[rows] + client * count for client, rows in enumerate(data.partitions)])
    held = cells.bincount(minlength=clients * count).view(clients, count)
    counts = Counts(len(data.train), len(data.validation), len(data.test))
    trained = data.train.labels.bincount(minlength=count)
    return Description(
        scenario, counts, data.classes, held, trained, data.owners, weight, data.notes, data.views, _examples(data)
    )


def _examples(data: FederatedData) -> dict[str, np.ndarray]:
    """Return an image that is nobody's as clients would see it, by view; with all views alike, nothing."""
    if not data.views:
        return {}
    image = data.validation.pixels(torch.tensor([0]))[0].permute(1, 2, 0).numpy()
    views = {str(view): view for view in (View(), *data.views)}
    return {name: see(image, view, Key(0).at("example").numpy()) for name, view in views.items()}
