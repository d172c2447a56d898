"""What a round asks for, and what it comes to."""

from dataclasses import dataclass, field
from typing import Any

from splitfed.run.client_scores import Score
from splitfed.server.cohort.align import AlignCall
from splitfed.server.cohort.evaluate import EvaluateCall
from splitfed.server.cohort.train import TrainCall
from splitfed.server.control.steering import Steers
from splitfed.server.memory.memory import Memory
from splitfed.server.model import Seen
from splitfed.server.records import StepProgress


@dataclass(frozen=True, slots=True)
class Calls:
    """What clients are asked for in a round, one after another; `progress` hears of each mini-batch, and `steering`
    says at which operating point each is. `memory` is where the last phase has one."""

    align: AlignCall
    train: TrainCall
    evaluate: EvaluateCall
    progress: StepProgress
    steering: Steers
    memory: Memory | None = None


@dataclass(slots=True)
class Outcome:
    """What a round came to: how many clients were drawn, its simulated seconds, how many of them were taken, on how
    many images, and their mean loss, and the loss of each; its phase; how the model does on the validation images; what
    clients found that were asked; what `metrics.csv` tells of blocks with budgets."""

    drawn: int
    seconds: float
    taken: int = 0
    seen: int = 0
    loss: float | None = None
    phase: str = "gradient"
    validated: Seen | None = None
    scores: list[Score] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    asked: bool = False
    adapted: dict[str, Any] = field(default_factory=dict)
