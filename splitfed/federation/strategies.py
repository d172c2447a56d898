"""The aggregation strategies that a scenario can name: Flower's, each with the arguments that are the user's to choose.

They are written out here, so that a scenario is read without Flower; tests hold them to the installed Flower. What they
aggregate is the front, with a reducer's encoder if that travels. The back belongs to the mode.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from splitfed.compression.plugins import UNUSABLE
from splitfed.config import Config, kind_shorthand
from splitfed.federation.own_class import OWN
from splitfed.federation.own_strategy import PLATFORM, UNFIT, OwnStrategy, wrong_path

_SUBCLASS = "subclass the strategy and name it by its import path, kind: package.module:Class"
_FUNCTION = f"is a function, which no scenario can hold: {_SUBCLASS}"
_FUNCTIONS = dict.fromkeys(("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn", "selection_rule"), _FUNCTION)


class StrategySettings(Config):
    """The base of what a scenario says of a strategy of Flower's; `kind` is the name of its class."""

    # Arguments that Flower has and a scenario must not set, and why.
    refused: ClassVar[dict[str, str]] = PLATFORM | _FUNCTIONS

    kind: str

    def arguments(self) -> dict[str, Any]:
        """Return what the class is called with."""
        return self.model_dump(exclude={"kind"})

    def problem(self, clients: int) -> str | None:
        """Return why the fronts of so many clients cannot be aggregated, or None."""
        return None


class FedAvgConfig(StrategySettings):
    """The mean of the clients' fronts by their numbers of images (arXiv 1602.05629)."""

    kind: Literal["FedAvg"] = "FedAvg"


class FedAvgMConfig(StrategySettings):
    """The server takes a step with momentum along the mean change of the fronts (arXiv 1909.06335)."""

    kind: Literal["FedAvgM"] = "FedAvgM"
    server_learning_rate: PositiveFloat = 1.0
    """Size of the server's step; 1 takes over the mean change as it is."""
    server_momentum: float = Field(0.0, ge=0, lt=1)
    """Share of the last step's direction that a step goes on with; 0 is none."""

    @model_validator(mode="after")
    def _does_something(self) -> "FedAvgMConfig":
        if self.server_momentum == 0 and self.server_learning_rate == 1:
            raise ValueError("without momentum, and at a learning rate of 1, FedAvgM is FedAvg: set server_momentum")
        return self


class _FedOptConfig(StrategySettings):
    refused: ClassVar[dict[str, str]] = StrategySettings.refused | {
        "eta_l": "nothing in Flower uses it: the clients' learning rate is training.client.optimiser.lr"
    }


class FedAdagradConfig(_FedOptConfig):
    """The server takes Adagrad's step along the mean change of the fronts (arXiv 2003.00295)."""

    kind: Literal["FedAdagrad"] = "FedAdagrad"
    eta: PositiveFloat = 0.1
    """Size of the server's step."""
    tau: PositiveFloat = 1e-3
    """Added to what the step is divided by: the larger, the less the step adapts to each number."""


class FedAdamConfig(_FedOptConfig):
    """The server takes Adam's step along the mean change of the fronts (arXiv 2003.00295)."""

    kind: Literal["FedAdam"] = "FedAdam"
    eta: PositiveFloat = 0.1
    """Size of the server's step."""
    beta_1: float = Field(0.9, ge=0, lt=1)
    """Decay of the mean change from one round to the next."""
    beta_2: float = Field(0.99, ge=0, lt=1)
    """Decay of its square."""
    tau: PositiveFloat = 1e-3
    """Added to what the step is divided by: the larger, the less the step adapts to each number."""


class FedYogiConfig(_FedOptConfig):
    """The server takes Yogi's step along the mean change of the fronts (arXiv 2003.00295)."""

    kind: Literal["FedYogi"] = "FedYogi"
    eta: PositiveFloat = 0.01
    """Size of the server's step."""
    beta_1: float = Field(0.9, ge=0, lt=1)
    """Decay of the mean change from one round to the next."""
    beta_2: float = Field(0.99, ge=0, lt=1)
    """Decay of its square."""
    tau: PositiveFloat = 1e-3
    """Added to what the step is divided by: the larger, the less the step adapts to each number."""


class FedProxConfig(StrategySettings):
    """FedAvg, and each client adds to its loss how far its front is from the round's first (arXiv 1812.06127)."""

    kind: Literal["FedProx"] = "FedProx"
    proximal_mu: NonNegativeFloat  # Flower's default, 0, would be FedAvg under another name
    """Twice what the squared distance is multiplied with in the loss; 0 is FedAvg."""


class QFedAvgConfig(StrategySettings):
    """Weighs clients by the power `q` of their training loss, so that all fare alike (arXiv 1905.10497); numbers of
    images do not count."""

    kind: Literal["QFedAvg"] = "QFedAvg"
    client_learning_rate: PositiveFloat
    """One over the estimate of the Lipschitz constant."""
    q: NonNegativeFloat = 0.1
    """Power of the training loss: the larger, the more those count who fare badly; with 0 all count the same."""


class FedMedianConfig(StrategySettings):
    """The median of the fronts, number by number (arXiv 1803.01498); numbers of images do not count."""

    kind: Literal["FedMedian"] = "FedMedian"


class FedTrimmedAvgConfig(StrategySettings):
    """The mean of the fronts, number by number, without those at either end (arXiv 1803.01498); numbers of images do
    not count."""

    kind: Literal["FedTrimmedAvg"] = "FedTrimmedAvg"
    beta: float = Field(0.2, ge=0, lt=0.5)
    """Share of the fronts that is left out at either end, in [0, 0.5)."""

    def problem(self, clients: int) -> str | None:
        """Return why nothing would be trimmed, or None."""
        if self.beta == 0 or int(self.beta * clients) > 0:
            return None
        return f"beta {self.beta:g} of {clients} clients is less than one, so nothing would be trimmed"


class KrumConfig(StrategySettings):
    """The one front that is nearest to its neighbours, where some of the clients may lie (arXiv 1703.02757)."""

    kind: Literal["Krum"] = "Krum"
    num_malicious_nodes: NonNegativeInt = 0
    """Clients of a round that may lie."""

    def problem(self, clients: int) -> str | None:
        """Return how many clients are missing, or None."""
        return _too_few(clients, 2, self.num_malicious_nodes)


class MultiKrumConfig(StrategySettings):
    """The mean of the fronts that are nearest to their neighbours, where some of the clients may lie (arXiv
    1703.02757)."""

    kind: Literal["MultiKrum"] = "MultiKrum"
    num_malicious_nodes: NonNegativeInt = 0
    """Clients of a round that may lie."""
    num_nodes_to_select: PositiveInt = 1
    """Fronts that are taken."""

    def problem(self, clients: int) -> str | None:
        """Return how many clients are missing, or None."""
        honest = clients - self.num_malicious_nodes
        if self.num_nodes_to_select > honest:
            return f"num_nodes_to_select is {self.num_nodes_to_select}, where {honest} of {clients} clients are honest"
        return _too_few(clients, 2, self.num_malicious_nodes)


class BulyanConfig(StrategySettings):
    """The mean, number by number, of what is nearest to the median of those fronts that Multi-Krum selects, where some
    of the clients may lie (arXiv 1802.07927)."""

    kind: Literal["Bulyan"] = "Bulyan"
    num_malicious_nodes: NonNegativeInt = 0
    """Clients of a round that may lie."""

    def problem(self, clients: int) -> str | None:
        """Return how many clients are missing, or None."""
        return _too_few(clients, 4, self.num_malicious_nodes)


def _too_few(clients: int, times: int, liars: int) -> str | None:
    needed = times * liars + 3
    if clients >= needed:
        return None
    return (
        f"against {liars} malicious of the clients it needs {needed} in a round ({times} x {liars} + 3), not {clients}"
    )


def _tag(section: Any) -> str | None:
    named = section.get("kind") if isinstance(section, dict) else getattr(section, "kind", None)
    return OWN if isinstance(named, str) and ":" in named else None if named is None else str(named)


def _refuse_unfit(section: Any) -> Any:
    """Say of a kind that cannot be used why."""
    named = section.get("kind") if isinstance(section, dict) else None
    why = None
    if isinstance(named, str):
        why = f"{named!r} {UNFIT[named]}" if named in UNFIT else wrong_path(named, section) if ":" in named else None
    if why:
        raise PydanticCustomError(UNUSABLE, "{why}", {"why": why})
    return section


StrategyConfig = Annotated[
    Annotated[FedAvgConfig, Tag("FedAvg")]
    | Annotated[FedAvgMConfig, Tag("FedAvgM")]
    | Annotated[FedAdagradConfig, Tag("FedAdagrad")]
    | Annotated[FedAdamConfig, Tag("FedAdam")]
    | Annotated[FedYogiConfig, Tag("FedYogi")]
    | Annotated[FedProxConfig, Tag("FedProx")]
    | Annotated[QFedAvgConfig, Tag("QFedAvg")]
    | Annotated[FedMedianConfig, Tag("FedMedian")]
    | Annotated[FedTrimmedAvgConfig, Tag("FedTrimmedAvg")]
    | Annotated[KrumConfig, Tag("Krum")]
    | Annotated[MultiKrumConfig, Tag("MultiKrum")]
    | Annotated[BulyanConfig, Tag("Bulyan")]
    | Annotated[OwnStrategy, Tag(OWN)],
    Discriminator(_tag),
    BeforeValidator(_refuse_unfit),
    kind_shorthand,
]
