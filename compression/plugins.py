"""Reducers and codecs that other installed packages bring, as entry points of the groups `splitfed.reducers` and
`splitfed.codecs`.

An entry point is named as the kind that a scenario writes, and points to the class that reads the section. One that
cannot be used is in nobody's way but of those who name it. docs/extending.md shows how to write one.
"""

import inspect
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from itertools import groupby
from typing import Annotated, Any, Generic, TypeVar, Union, get_args

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from splitfed.config import Config, kind_shorthand

REDUCERS, CODECS = "splitfed.reducers", "splitfed.codecs"
# The type of the validation error where a scenario names a plug-in that cannot be used.
UNUSABLE = "plugin_unusable"

C = TypeVar("C", bound=Config)


@dataclass(frozen=True, slots=True)
class Plugin(Generic[C]):
    """A kind that a `package` (name and version) brings: the class of its section or, where it cannot be used, None and
    the `problem`, a sentence that names package and entry point."""

    kind: str
    package: str
    config: type[C] | None
    problem: str = ""


class Unusable(Exception):
    """Why a plug-in cannot be used."""


@cache
def points() -> list[EntryPoint]:
    """Return the entry points of all installed packages that bring reducers or codecs."""
    found = entry_points()  # reads the metadata of every installed package: once is enough
    return [*found.select(group=REDUCERS), *found.select(group=CODECS)]


def installed(group: str) -> bool:
    """Tell whether any installed package brings something of a group."""
    return any(point.group == group for point in points())


def packages() -> list[str]:
    """Return the names of all installed packages that bring reducers or codecs."""
    return sorted({point.dist.name for point in points() if point.dist})


def load(
    group: str, base: type[Config], own: Iterable[type[C]], check: Callable[[type[C]], None] = lambda config: None
) -> list[Plugin[C]]:
    """Import the plug-ins of a group, in the order of their kinds.

    Each points to a subclass of `base` whose `kind` is the entry point's name, one that neither our `own` classes nor
    another plug-in has. `check` sees each class, and raises `Unusable` for what else is wrong with it. Raises nothing.
    """
    ours, plugins = {_kind(config) for config in own}, []
    ordered = sorted((p for p in points() if p.group == group), key=lambda point: (point.name, point.value))
    for kind, same in groupby(ordered, key=lambda point: point.name):
        point, *others = same
        try:
            if kind in ours:
                raise Unusable("splitfed has a kind of this name itself: rename it, or uninstall the package")
            if others:
                also = ", ".join(f"{_package(other)} ({other.value})" for other in others)
                raise Unusable(f"so is one of {also}: uninstall all but one")
            config: type[C] = _import(point, base)
            check(config)
            plugins.append(Plugin(kind, _package(point), config))
        except Unusable as why:
            problem = f"{kind!r} of {_package(point)} (entry point {point.value}) cannot be used: {why}"
            plugins.append(Plugin(kind, _package(point), None, problem))
    return plugins


def one_of(own: Iterable[type[C]], plugins: Iterable[Plugin[C]]) -> Any:
    """Return the type of a section that is one of our `own` or of the plug-ins', told apart by `kind`. It is made here,
    and not written out, because what is installed is not known before."""
    configs, problems = list(own), {}
    for plugin in plugins:
        if plugin.config is not None:
            configs.append(plugin.config)
        else:
            problems[plugin.kind] = plugin.problem

    def refuse(section: Any) -> Any:
        named = section.get("kind") if isinstance(section, dict) else None
        if isinstance(named, str) and named in problems:
            raise PydanticCustomError(UNUSABLE, "{why}", {"why": problems[named]})
        return section

    union: Any = Union[tuple(configs)]  # noqa: UP007
    return Annotated[union, Field(discriminator="kind"), BeforeValidator(refuse), kind_shorthand]


def _import(point: EntryPoint, base: type[Config]) -> Any:
    """Return the class that an entry point points to."""
    wanted = f"a subclass of {base.__module__}.{base.__name__}"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # another's code may raise anything
        raise Unusable(f"{type(error).__name__}: {' '.join(str(error).split())}{_place(error)}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise Unusable(f"it is not {wanted}")
    if inspect.isabstract(found):
        raise Unusable(f"it is {wanted} that lacks {', '.join(sorted(found.__abstractmethods__))}")
    if _kind(found) != point.name:
        raise Unusable(f"its kind must be Literal[{point.name!r}], as the entry point is named")
    return found


def _kind(config: type[Config]) -> str | None:
    field = config.model_fields.get("kind")
    values = get_args(field.annotation) if field else ()
    return values[0] if len(values) == 1 else None


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _place(error: BaseException) -> str:
    """Return where in the plug-in's code an error was raised, ` (file:line)`, if it was there."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    return f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames[1:] else ""
