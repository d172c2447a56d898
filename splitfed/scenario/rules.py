"""Which sections of a scenario do not go together: settings that could not mean anything in the mode that is chosen.

Each function returns the problem, with the key that has it and the way out, or None.
"""

from typing import TYPE_CHECKING

from splitfed.compression.reducers.settings import NoneConfig
from splitfed.config import Misplaced
from splitfed.model.optim_settings import SideConfig
from splitfed.scenario.compression import Compression, Packing
from splitfed.scenario.sections import Federation, Training

if TYPE_CHECKING:
    from splitfed.scenario.budget import BudgetConfig

# Packings of what crosses the cut, and of the layers that a reducer brings.
_OF_THE_CUT = ("smashed", "targets", "cut_gradient", "parts")
_OF_THE_TAIL = ("tail_smashed", "tail_gradient")


def of_training(training: Training, federation: Federation) -> Misplaced | None:
    """Tell what `fl` leaves the server nothing to do with."""
    plain = SideConfig(device=training.server.device)
    if federation.splits or training.server == plain:
        return None
    key = next(name for name in type(plain).model_fields if getattr(training.server, name) != getattr(plain, name))
    return Misplaced(f"server.{key}", "with fl clients train the whole model, as training.client says: leave it out")


def of_compression(compression: Compression, federation: Federation) -> Misplaced | None:
    """Tell what could not make anything smaller, for it does not cross, or not from a round that others know."""
    if federation.mode == "sl" and compression.front_weights.delta:
        return Misplaced(
            "front_weights.delta",
            "with sl each client gets the front of the one before it, so there is no common round to measure from: set "
            "it to false, or set another federation.mode",
        )
    roles: tuple[str, ...] = _OF_THE_TAIL
    if not federation.splits:
        out = "with fl nothing crosses a cut, weights are packed by front_weights:"
        if not isinstance(compression.reducer, NoneConfig):
            return Misplaced("reducer", f"{out} set it to none, or set another federation.mode")
        roles, way = (*_OF_THE_CUT, *_OF_THE_TAIL), f"{out} leave it out, or set another federation.mode"
    elif not federation.private:
        way = "only with federation.labels: private is there a second cut: leave it out, or set that"
    else:
        if compression.targets.codec != Packing().codec:
            return Misplaced("targets.codec", "with federation.labels: private no targets cross: leave it out")
        return None
    return next((Misplaced(role, way) for role in roles if getattr(compression, role) != Packing()), None)


def of_budget(budget: "BudgetConfig", federation: Federation) -> Misplaced | None:
    """Tell why a budget in cut bytes would never be spent."""
    if federation.splits or budget.kind == "none":
        return None
    return Misplaced("kind", "with fl nothing crosses a cut to spend it: set it to none, rounds end the run")
