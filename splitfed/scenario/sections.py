"""The sections of a scenario that belong to no single component: who trains, and how."""

import math
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from splitfed.compression.plugins import UNUSABLE
from splitfed.config import Config, kind_shorthand
from splitfed.federation.availability import Always, AvailabilityConfig
from splitfed.federation.control.settings import Target
from splitfed.federation.own_class import OWN, OwnClass, no_path
from splitfed.federation.profiles import Device, Name, Profile
from splitfed.federation.strategies import FedAvgConfig, StrategyConfig
from splitfed.link.settings import LinkSettings, ServerLink
from splitfed.model.optim_settings import ClientSide, SideConfig
from splitfed.scenario.compression import PartialCompression
from splitfed.scenario.presets import PRESETS, part_of

_PATIENCE_SECONDS = 60.0


class Terms(NamedTuple):
    """What decides how a client's tensors cross in a round: its profile and its operating point, by name; empty where
    it has none."""

    profile: str = ""
    point: str = ""


# Those of who has nothing of its own.
COMMON = Terms()


class ClientProfile(Profile):
    """A kind of client: what is not said here is as for all. In a deployment each client says which it is."""

    compression: PartialCompression | None = None
    """What is another for such clients of what makes bytes fewer; null is nothing. A receiver reads whatever comes, so
    what clients send one server may differ in all but what both ends keep from round to round."""


class Clip(Config):
    """How long that may be at most which a client sends, by its L2 norm: what is longer is shortened to that, whoever
    sends it, so no client weighs more than that in what all learn."""

    front_weights: PositiveFloat | None = None
    """Norm of a client's update: of all that its weights, the front's and whatever else it trains, differ by from those
    that it was sent. In Flower this is `clipping_norm`. Null does not bound it."""
    smashed: PositiveFloat | None = None
    """Norm of the activations of one sample at the cut. Null does not bound it."""
    tail_gradient: PositiveFloat | None = None
    """Norm of the gradient that comes up for one sample where labels are private. Null does not bound it."""


class Server(Config):
    """What a simulation assumes of the server."""

    link: ServerLink = ServerLink()
    """Its own link, which its clients share; without bounds it is as fast as they all are together."""
    device: Device = Device()
    """What it computes with, one mini-batch after another."""


class Federation(Config):
    """Who trains, how often and in which order.

    A client trains for `local_epochs` or for `local_steps`, one of the two. What a client had sent until it vanished or
    was given up stays counted.
    """

    clients: PositiveInt
    """How many clients there are."""
    cohort: PositiveInt | None = None
    """Clients that are sampled for a round; null is all of them."""
    rounds: PositiveInt
    """Rounds of training."""
    mode: Literal["sl", "sfl-v1", "sfl-v2", "psl", "fl"] = "sfl-v2"
    """Who holds which part of the model, and how it learns. `sfl-v1` gives each client a copy of the back and averages
    the copies at the end of the round; `sfl-v2` has one back that the clients update. In both, `strategy` makes the
    round's front of the clients' fronts. `sl` hands one front on from client to client, who train one after another
    with one back, and averages nothing. `psl` has one back that learns from the mini-batches of all clients together;
    they are one large batch to it, while each front learns from its own at the full rate, and `strategy` makes one of
    them at the end of the round. `fl` trains the whole model on the clients, without a cut, and `strategy` makes the
    round's model of theirs."""
    order: Literal["fixed", "arrival"] = "fixed"
    """How the clients of `sfl-v2` take turns with the back: with `fixed` one after another in a seeded order, which is
    reproducible; with `arrival` all train at once and the back takes their mini-batches as they come, which is fast
    where clients are apart, and not reproducible. In one process they come as they would in simulated time, if there is
    one, by the sizes before any lossless stage, and that is reproducible; else they come one client after another."""
    wave: PositiveInt | None = None
    """Clients that train at the same time, at most, where clients train at once (not in `sl`, nor in `sfl-v2` with
    `order: fixed`): a larger cohort trains wave after wave. Null is the whole cohort."""
    patience: float | None = Field(None, gt=0, le=1e6)
    """Seconds that a joint step of `psl` waits after its first mini-batch for those who are missing, who join the next
    one when they come; null is 60. Clients in one process are never missing."""
    labels: Literal["shared", "private"] = "shared"
    """Whether labels go up with the activations. If they are `private`, a client holds the end of the model too
    (`model.tail`), and neither labels nor the loss leave it: each mini-batch crosses two cuts, there and back, and the
    tail is trained, aggregated and handed on with the front."""
    local_epochs: PositiveInt | None = None
    """Passes over its images that a client trains for in a round; null is 1, unless `local_steps` is set."""
    local_steps: PositiveInt | None = None
    """Mini-batches that a client trains for in a round, in the place of `local_epochs`; null is by epochs."""
    strategy: StrategyConfig = FedAvgConfig()
    """What makes the round's front of those of the clients: one of Flower's strategies, or your own."""
    local_norms: bool = False
    """Whether each client has LayerNorms of its own, of all that it holds of the model, that never come together (the
    idea of FedBN, arXiv 2102.07623): clients whose images look different have what is alike in common. They cross once,
    as the run begins with them, and so has the server's own model them to the end: `evaluation.held_out` tells how
    clients do with theirs."""
    clip: Clip = Clip()
    """How far one client may move what all learn."""
    availability: AvailabilityConfig = Always()
    """What a simulation assumes of its clients: who is there, when, how fast, and who vanishes."""
    profiles: dict[Name, ClientProfile] = {}
    """Which clients are alike in how they are connected, what they compute with and what they send, by names of your
    own, such as `{phone: {share: 0.6, link: lte}, hospital: {share: 0.4}}`. Without any all are."""
    server: Server = Server()
    """What a simulation assumes of the server, where clients have a `link`."""
    oversample: float = Field(1.0, ge=1, le=1e6)
    """How many times as many clients as the cohort are sampled, rounded up: the round takes those of them that finish
    first. 1 is no more. It needs something that tells the time: `availability`, a `link`, or a deployment, where it is
    the wall clock."""
    deadline: float | None = Field(None, gt=0, le=1e9)
    """Seconds that a round may last: who has not finished by then is given up. Null is no end. Like `oversample` it
    needs something that tells the time. In a deployment an evaluation and an alignment may each last as long again."""

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

    def timed(self, link: LinkSettings) -> bool:
        """Tell whether a simulation whose clients have such a link has a time of its own."""
        speeds = [self.server.device.flops, *(profile.device.flops for profile in self.profiles.values())]
        links = [link, *(profile.link for profile in self.profiles.values())]
        return self.availability.timed or any(speeds) or any(one is not None and one.timed for one in links)

    @property
    def decides_by_time(self) -> bool:
        """Whether it depends on the time who of those that are sampled is taken."""
        return self.deadline is not None or self.sampled > self.cohort_size

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
    """How the two sides train."""

    batch_size: PositiveInt = 32
    """Images of a mini-batch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the numbers in a forward pass of either side; weights and what is sent stay in float32."""
    client: ClientSide = ClientSide()
    """How a client trains what it holds, the front or with `fl` the whole model."""
    server: SideConfig = SideConfig()
    """How the server trains the back."""
    head_lr: PositiveFloat | None = None
    """Learning rate of the model's head and of heads of exits, wherever they are, which the schedule of that side
    multiplies too: they begin from nothing where all else is pretrained, and ten times its rate is a common choice.
    Null is that of the rest."""
    client_state: Literal["reset", "keep"] = "reset"
    """Whether a client starts each round with a fresh optimiser (`reset`) or goes on with its own (`keep`)."""
    ahead: int = Field(0, ge=0, le=64)
    """By how many mini-batches a client is ahead of the server's answer: it computes and sends so many more while the
    gradient of an earlier one is on its way, which hides what its link takes. That gradient is taken through the
    weights as they were when the mini-batch went out, and applied to those of today, which are so many updates further;
    what the optimiser adds, such as weight decay or FedProx's pull, goes by today's weights. A client holds its trained
    weights, the mini-batch's activations and its frame once more for each, the server its frame. It concerns the
    phases whose front learns from the gradient, and the round's last gradients are waited for. 0 waits for each
    answer."""
    evaluate_every: PositiveInt = 1
    """Rounds from one look at the validation images to the next; after the last round there always is one."""
    eval_batch_size: PositiveInt = 256
    """Images of a mini-batch where nothing is learned."""


class CheckpointConfig(Config):
    """A checkpoint is written after each round."""

    keep: PositiveInt = 2
    """How many of the last checkpoints stay on disk."""


class Point(Config):
    """An operating point: what is another in a round at it of what a client sends, and how good it is."""

    preset: Literal[tuple(PRESETS)] | None = Field(None, exclude=True)  # type: ignore[valid-type]
    """Name of a preset, of whose `compression` this takes all but the weights; keys of `compression` below refine it.
    It is written out when it is read, and not kept. Null is none."""
    compression: PartialCompression = PartialCompression()
    """What is another of what makes bytes fewer; what is not written here is as for the client's other rounds."""
    gradient_every: PositiveInt | None = 1
    """Where the gradient teaches the front: of so many mini-batches one is answered with it, and the front learns from
    that one alone; the back learns from all. Null is none of them."""
    utility: FiniteFloat | None = None
    """How good a round at this point is, such as the accuracy that was measured with it; of all points or of none.
    Null leaves it to the controller, which goes by how the training loss falls."""

    @model_validator(mode="before")
    @classmethod
    def _preset_written_out(cls, data: Any) -> Any:
        return part_of(data)


class FixedControl(Config):
    """Nothing is chosen: all crosses as `compression` says, and as a client's profile does."""

    kind: Literal["fixed"] = "fixed"

    @property
    def points(self) -> dict[str, Point]:
        """The operating points: none."""
        return {}

    @property
    def target(self) -> None:
        """What holds in the long run: nothing."""
        return


class DriftPlusPenalty(Config):
    """The point with the most V x utility - queue x cost, where the queue is what was spent over the target (Neely,
    2010, "Stochastic Network Optimization with Application to Communication and Queueing Systems")."""

    kind: Literal["drift_plus_penalty"] = "drift_plus_penalty"
    target: Target
    """What holds in the long run, such as `{kind: seconds_per_round, seconds: 20s}`."""
    points: dict[Name, Point] = Field(min_length=2)
    """What is chosen from, by names of your own, such as `{fine: {}, coarse: {compression: {smashed: {codec:
    {kind: uniform, bits: 2}}}}}`; of equally good ones the first is taken."""
    v: PositiveFloat = 1.0
    """How much utility weighs: the more, the closer to the best mixture of points, and the more rounds until the target
    holds, about as many as `v` times what the utilities differ by."""


class OwnController(OwnClass):
    """A controller of your own: a subclass of splitfed.federation.control.base.Controller, installed or in the current
    folder, with its arguments; only the server imports it."""

    place: ClassVar[str] = "control"

    target: Target
    """What holds in the long run."""
    points: dict[Name, Point] = Field(min_length=2)
    """What is chosen from, by names of your own."""

    def load(self) -> type[Any]:
        """Import the class and check the arguments against its signature. Raises RunError."""
        from splitfed.federation.control.base import Controller

        found = self.imported()
        if not (isinstance(found, type) and issubclass(found, Controller)):
            raise self.error("is not a subclass of splitfed.federation.control.base.Controller")
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise self.error(f"lacks {', '.join(missing)}")
        self.check_arguments(found)
        return found


def _control_tag(section: Any) -> str | None:
    named = section.get("kind") if isinstance(section, dict) else getattr(section, "kind", None)
    return OWN if isinstance(named, str) and ":" in named else None if named is None else str(named)


def _refuse_no_path(section: Any) -> Any:
    named = section.get("kind") if isinstance(section, dict) else None
    if isinstance(named, str) and ":" in named and (why := no_path(named)):
        raise PydanticCustomError(UNUSABLE, "{why}", {"why": why})
    return section


ControlConfig = Annotated[
    Annotated[FixedControl, Tag("fixed")]
    | Annotated[DriftPlusPenalty, Tag("drift_plus_penalty")]
    | Annotated[OwnController, Tag(OWN)],
    Discriminator(_control_tag),
    BeforeValidator(_refuse_no_path),
    kind_shorthand,
]
