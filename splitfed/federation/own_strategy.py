"""A strategy of the user's own, named by its import path: `kind: package.module:Class`, with its arguments beside it.

Reading a scenario imports nothing: clients read the server's scenario too, and must not run what it names. The server
alone calls `load`.
"""

import importlib
import inspect
import os
import re
import sys
from typing import Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from splitfed.config import Config, did_you_mean
from splitfed.errors import RunError

OWN = "package.module:Class"
_PATH = r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$"
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


class OwnStrategy(Config):
    """A strategy of your own: a subclass of Flower's Strategy, installed or in the current folder, with its arguments;
    only the server imports it."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(pattern=_PATH)
    """Import path of the class, `package.module:Class`; the keys beside it are its arguments."""

    def arguments(self) -> dict[str, Any]:
        """Return what the class is called with."""
        return dict(self.model_extra or {})

    def problem(self, clients: int) -> str | None:
        """Return None: what it needs is its own affair."""
        return None

    def load(self) -> type[Any]:
        """Import the class and check the arguments against its signature. Raises RunError."""
        from flwr.serverapp.strategy import Strategy

        found = self._imported()
        if not (isinstance(found, type) and issubclass(found, Strategy)):
            raise self._error("is not a subclass of flwr.serverapp.strategy.Strategy")
        if inspect.isabstract(found):
            raise self._error(f"lacks {', '.join(sorted(found.__abstractmethods__))}")
        if unfit := next((base.__name__ for base in found.__mro__ if base.__name__ in UNFIT), None):
            raise self._error(f"cannot be used: {unfit} {UNFIT[unfit]}")
        self._check_arguments(found)
        return found

    def _imported(self) -> Any:
        module, _, name = self.kind.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last, so that nothing that is installed is hidden
        try:
            return getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:  # another's code may raise anything
            raise self._error(f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}") from error

    def _check_arguments(self, found: type[Any]) -> None:
        parameters = inspect.signature(found).parameters
        names = [name for name, one in parameters.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
        open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        try:
            hints = get_type_hints(found.__init__)
        except Exception:  # names that exist for type checkers alone
            hints = {}
        for name, value in self.arguments().items():
            if name not in names and not open_ended:
                known = [n for n in names if n not in PLATFORM]
                hint = did_you_mean(name, known) or f", known: {', '.join(map(repr, known))}"
                raise self._error(f"{name}: unknown argument{hint if known else ', it has none'}", key=name)
            if name in hints and (why := _mismatch(value, hints[name])):
                raise self._error(f"{name}: {why}", key=name)
        given = {*self.arguments(), *PLATFORM}
        if missing := [n for n in names if parameters[n].default is inspect.Parameter.empty and n not in given]:
            raise self._error(f"{missing[0]}: is missing", key=missing[0])

    def _error(self, why: str, key: str = "") -> RunError:
        if key:
            return RunError(f"federation.strategy.{why} (of {self.kind})")
        return RunError(f"federation.strategy: {self.kind} {why}")


def wrong_path(named: str, section: dict[str, Any]) -> str | None:
    """Return why a section of this kind cannot be one of OwnStrategy, or None; imports nothing."""
    if not re.fullmatch(_PATH, named):
        return f"{named!r} is no import path: write it as package.module:Class"
    return next((f"{key} cannot be set: {PLATFORM[key]}" for key in section if key in PLATFORM), None)


def _mismatch(value: Any, hint: Any) -> str | None:
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError as error:
        return f"{error.errors()[0]['msg'].replace('Input should', 'must')}, not {value!r}"
    except Exception:  # an annotation that says nothing of values
        return None
    return None
