"""The sections of a scenario that belong to no single component: who trains, and how."""

import math
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from splitfed.config import Config
from splitfed.federation.availability import Always, AvailabilityConfig
from splitfed.federation.strategies import FedAvgConfig, StrategyConfig
from splitfed.model.optim_settings import SideConfig

_PATIENCE_SECONDS = 60.0


class Federation(Config):
    """Who trains, how often and in which order.

    In each of `rounds`, `cohort` of the `clients` are sampled (all of them when null). A client trains for
    `local_epochs` passes over its images, or for `local_steps` mini-batches: one of the two, by default one epoch.
    `sfl-v1` gives each client a copy of the back and averages the copies at the end of the round; `sfl-v2` has one back
    that the clients update. In both, `strategy`, one of Flower's, makes the round's front of the clients' fronts. `sl`
    hands one front on from client to client, who train one after another with one back, and averages nothing. `fl`
    trains the whole model on the clients, without a cut, and `strategy` makes the round's model of theirs. In
    `sfl-v2`, `order: fixed` lets the clients train one after another in a seeded order, which is reproducible; with
    `arrival` all train at once and the back takes their mini-batches as they come, which is fast where clients are
    apart, and not reproducible.

    `psl` has one back that learns from the mini-batches of all clients together; they are one large batch to it, while
    each front learns from its own at the full rate, and `strategy` makes one of them at the end of the round. Such a
    joint step waits for those who are missing for `patience` seconds after its first mini-batch (60 when null; clients
    in one process are never missing); a late client joins the next one. Where clients train at once (not in `sl`, nor
    in `sfl-v2` with `order: fixed`), no more than `wave` of a round's do, the whole cohort when null; a larger cohort
    trains wave after wave.

    Labels go up with the activations unless `labels` is `private`: then a client holds the end of the model too
    (`model.tail`), and neither labels nor the loss leave it. Each mini-batch crosses two cuts, there and back. The tail
    is trained, aggregated and handed on with the front.

    `availability` is what a simulation assumes of its clients: who is there, when, how fast, and who vanishes. With
    `oversample`, `cohort` times as many clients are sampled, rounded up, and the round takes the `cohort` that finish
    first. `deadline` is how many seconds a round may last: who has not finished by then is given up. Both need
    `availability`, which tells the time, or a deployment, where it is the wall clock's. What a client had sent until it
    vanished or was given up stays counted.
    """

    clients: PositiveInt
    cohort: PositiveInt | None = None
    rounds: PositiveInt
    mode: Literal["sl", "sfl-v1", "sfl-v2", "psl", "fl"] = "sfl-v2"
    order: Literal["fixed", "arrival"] = "fixed"
    wave: PositiveInt | None = None
    patience: float | None = Field(None, gt=0, le=1e6)
    labels: Literal["shared", "private"] = "shared"
    local_epochs: PositiveInt | None = None
    local_steps: PositiveInt | None = None
    strategy: StrategyConfig = FedAvgConfig()
    availability: AvailabilityConfig = Always()
    oversample: float = Field(1.0, ge=1, le=1e6)
    deadline: float | None = Field(None, gt=0, le=1e9)

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("local_epochs") is None and data.get("local_steps") is None:
            return {**data, "local_epochs": 1}
        return data

    @property
    def cohort_size(self) -> int:
        """How many clients a round takes."""
        return self.cohort or self.clients

    @property
    def sampled(self) -> int:
        """How many clients are sampled for a round: the cohort, and those more that `oversample` stands for."""
        # As it is written: 10 times the float 1.1 is a little more than 11.
        return min(self.clients, math.ceil(Fraction(str(self.oversample)) * self.cohort_size))

    @property
    def private(self) -> bool:
        """Whether labels stay with the clients, who then hold the end of the model too."""
        return self.labels == "private"

    @property
    def splits(self) -> bool:
        """Whether the model is cut, so that mini-batches cross."""
        return self.mode != "fl"

    @property
    def one_by_one(self) -> bool:
        """Whether the clients of a round train one after another, in an order that is drawn."""
        return self.mode == "sl" or (self.mode == "sfl-v2" and self.order == "fixed")

    @property
    def at_once(self) -> int:
        """How many clients of a round train at the same time, at most."""
        return 1 if self.one_by_one else self.wave or self.sampled

    @property
    def patience_seconds(self) -> float:
        """How long a joint step waits for those who are missing."""
        return _PATIENCE_SECONDS if self.patience is None else self.patience


class Training(Config):
    """How the two sides train.

    `batch_size` and `eval_batch_size` count images. Each side has its own device, optimiser, schedule, weight decay and
    clipping. With `client_state: reset` a client starts each round with a fresh optimiser, with `keep` it goes on with
    its own. The validation images are looked at every `evaluate_every` rounds, and after the last.
    """

    batch_size: PositiveInt = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    client: SideConfig = SideConfig()
    server: SideConfig = SideConfig()
    client_state: Literal["reset", "keep"] = "reset"
    evaluate_every: PositiveInt = 1
    eval_batch_size: PositiveInt = 256


class Checkpoints(Config):
    """A checkpoint is written after each round; the last `keep` of them stay on disk."""

    keep: PositiveInt = 2
