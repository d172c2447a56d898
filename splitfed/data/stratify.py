"""Federated evaluation: which of its images a client never trains on, and which clients are asked how the model does on
theirs."""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from splitfed.config import Config
from splitfed.seeds import Key


class Evaluation(Config):
    """Clients evaluate the model on images of their own, beside the server, which looks at the validation split.

    `held_out` is the share of each client's images that it never trains on, drawn by seed and by class: one at least,
    where a client has two or more. Who has a single image trains on it and is not asked. With 0, the default, nobody
    holds anything out, and the other keys say nothing.

    Every `every` rounds, and after the last, `cohort` of these clients, drawn among those who are there (all of them
    when null), get the round's new front, run it on what they hold out, and send activations and labels; the back
    answers with loss and number right. No reducer takes part, but for layers of its own, which belong to the model;
    codecs are those of `compression.smashed` and `targets`. These bytes have a role of their own, `evaluation`, raw as
    float32 activations and 8 bytes a label. They cross, so cut bytes and budgets have them in it. With private labels
    the back answers with activations, packed as `tail_smashed`, and tail and loss are the client's; with `fl` nothing
    crosses but weights.
    """

    held_out: float = Field(0.0, ge=0, lt=1)
    every: PositiveInt = 1
    cohort: PositiveInt | None = None

    def due(self, round: int, last: bool) -> bool:
        """Tell whether clients are asked after this round; `last`: no other comes after it."""
        return self.held_out > 0 and (last or round % self.every == 0)

    def most_asked(self, clients: int) -> int:
        """Return how many of so many clients are asked at once."""
        return min(self.cohort or clients, clients) if self.held_out else 0


def count_held_out(images: int, share: float) -> int:
    """Return how many of a client's images it holds out."""
    return min(images - 1, max(1, round(share * images))) if share and images > 1 else 0


def divide(rows: Tensor, labels: Tensor, share: float, key: Key, client: int) -> tuple[Tensor, Tensor]:
    """Divide a client's `rows` (int64 `[N]`) of images, whose labels are `labels[rows]`, into those that it trains on
    and those that it holds out; both ascending, and the same for the same run's key and client."""
    count = count_held_out(len(rows), share)
    if not count:
        return rows, rows[:0]
    order = spread(labels[rows], key.at("held_out", client))
    return rows[order[count:]].sort().values, rows[order[:count]].sort().values


def spread(labels: Tensor, key: Key) -> Tensor:
    """Return a random order of the rows of `labels` (int64 `[N]`, from 0 on): every stretch of it holds the classes in
    about their overall shares, so what is cut off anywhere is drawn at random and stratified by class."""
    random = key.numpy()
    order = torch.from_numpy(random.permutation(len(labels)))
    order = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    owner = labels[order]
    # Image i of a class with c images stands at (i + offset) / c; the offset keeps rare classes from coming together.
    offset = torch.from_numpy(random.random(len(counts)))
    place = (torch.arange(len(labels)) - starts[owner] + offset[owner]) / counts[owner]
    return order[place.argsort(stable=True)]
