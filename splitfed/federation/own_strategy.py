"""A strategy of the user's own, named by its import path: `kind: package.module:Class`, with its arguments beside it.

Reading a scenario imports nothing: clients read the server's scenario too, and must not run what it names. The server
alone calls `load`.
"""

import inspect
from typing import Any, ClassVar

from splitfed.federation.own_class import OwnClass, no_path

_SAMPLING = "sampling is the platform's, by number and from the seed: set federation.cohort"
_EVALUATION = "evaluation is the server's, on the validation split: set training.evaluate_every"
_KEYS = "it names a part of the messages, which the platform makes"

# Arguments of Flower's strategies that the platform sets itself, and why.
PLATFORM = {
    "fraction_train": _SAMPLING,
    "min_train_nodes": _SAMPLING,
    "min_available_nodes": _SAMPLING,
    "fraction_evaluate": _EVALUATION,
    "min_evaluate_nodes": _EVALUATION,
    "weighted_by_key": _KEYS,
    "arrayrecord_key": _KEYS,
    "configrecord_key": _KEYS,
    "train_loss_key": _KEYS,
}


_NOISE = (
    "clips and blurs fronts alone, but activations and labels leave each client too: it would promise what is not so"
)
_TREES = "aggregates decision trees, not weights"

# Flower's strategies that cannot work here, and why.
UNFIT = {
    "DifferentialPrivacyClientSideAdaptiveClipping": _NOISE,
    "DifferentialPrivacyClientSideFixedClipping": _NOISE,
    "DifferentialPrivacyServerSideAdaptiveClipping": _NOISE,
    "DifferentialPrivacyServerSideFixedClipping": _NOISE,
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
}


class OwnStrategy(OwnClass):
    """A strategy of your own: a subclass of Flower's Strategy, installed or in the current folder, with its arguments;
    only the server imports it."""

    place: ClassVar[str] = "federation.strategy"
    platform: ClassVar[dict[str, str]] = PLATFORM

    def problem(self, clients: int) -> str | None:
        """Return None: what it needs is its own affair."""
        return None

    def load(self) -> type[Any]:
        """Import the class and check the arguments against its signature. Raises RunError."""
        from flwr.serverapp.strategy import Strategy

        found = self.imported()
        if not (isinstance(found, type) and issubclass(found, Strategy)):
            raise self.error("is not a subclass of flwr.serverapp.strategy.Strategy")
        if inspect.isabstract(found):
            raise self.error(f"lacks {', '.join(sorted(found.__abstractmethods__))}")
        if unfit := next((base.__name__ for base in found.__mro__ if base.__name__ in UNFIT), None):
            raise self.error(f"cannot be used: {unfit} {UNFIT[unfit]}")
        self.check_arguments(found)
        return found


def wrong_path(named: str, section: dict[str, Any]) -> str | None:
    """Return why a section of this kind cannot be one of OwnStrategy, or None; imports nothing."""
    return no_path(named) or next((f"{key} cannot be set: {PLATFORM[key]}" for key in section if key in PLATFORM), None)
