"""A class of the user's own that a scenario names by its import path, with its arguments beside it."""

import importlib
import inspect
import os
import re
import sys
from typing import Any, ClassVar, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from splitfed.config import Config, did_you_mean
from splitfed.errors import RunError

OWN = "package.module:Class"
_PATH = r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$"


class OwnClass(Config):
    """The section of such a class; what is not declared of it are arguments."""

    model_config = ConfigDict(extra="allow")

    place: ClassVar[str]
    """The key under which the section stands."""
    platform: ClassVar[dict[str, str]] = {}
    """Arguments that the platform sets itself, and why."""

    kind: str = Field(pattern=_PATH)
    """Import path of the class, `package.module:Class`; the keys beside it are its arguments."""

    def arguments(self) -> dict[str, Any]:
        """Return what the class is called with."""
        return dict(self.model_extra or {})

    def imported(self) -> Any:
        """Return what stands under the import path. Raises RunError."""
        module, _, name = self.kind.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last, so that nothing that is installed is hidden
        try:
            return getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:  # another's code may raise anything
            raise self.error(f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}") from error

    def check_arguments(self, found: type[Any]) -> None:
        """Check the arguments against a class's signature and annotations. Raises RunError."""
        parameters = inspect.signature(found).parameters
        names = [name for name, one in parameters.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
        open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        try:
            hints = get_type_hints(found.__init__)
        except Exception:  # names that exist for type checkers alone
            hints = {}
        for name, value in self.arguments().items():
            if name not in names and not open_ended:
                known = [n for n in names if n not in self.platform]
                hint = did_you_mean(name, known) or f", known: {', '.join(map(repr, known))}"
                raise self.error(f"{name}: unknown argument{hint if known else ', it has none'}", key=name)
            if name in hints and (why := _mismatch(value, hints[name])):
                raise self.error(f"{name}: {why}", key=name)
        given = {*self.arguments(), *self.platform}
        if missing := [n for n in names if parameters[n].default is inspect.Parameter.empty and n not in given]:
            raise self.error(f"{missing[0]}: is missing", key=missing[0])

    def error(self, why: str, key: str = "") -> RunError:
        """Return what is wrong with the class, or with one of its keys."""
        if key:
            return RunError(f"{self.place}.{why} (of {self.kind})")
        return RunError(f"{self.place}: {self.kind} {why}")


def no_path(named: str) -> str | None:
    """Return why a kind is no import path, or None."""
    return None if re.fullmatch(_PATH, named) else f"{named!r} is no import path: write it as package.module:Class"


def _mismatch(value: Any, hint: Any) -> str | None:
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError as error:
        return f"{error.errors()[0]['msg'].replace('Input should', 'must')}, not {value!r}"
    except Exception:  # an annotation that says nothing of values
        return None
    return None
