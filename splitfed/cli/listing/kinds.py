"""What a scenario can name, told from the classes that read it: no second list to keep."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

import rich.console
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.table import Table
from rich.text import Text

from splitfed.compression.plugins import Plugin
from splitfed.config import did_you_mean
from splitfed.errors import SplitfedError
from splitfed.scenario.document import shown
from splitfed.scenario.problems import kind, sections

# By number, by author, or by title.
_PAPERS = tuple(map(re.compile, (r"arXiv \d{4}\.\d{4,5}", r"[A-Z][\w-]+ et al\.,? \d{4}", r'"[A-Z][^"]+", \d{4}')))


@dataclass(frozen=True, slots=True)
class Listed:
    """One thing that a scenario can name: its keys with their defaults, what it is, the paper that it comes from, the
    package if that is not splitfed, and what each key means (`told`)."""

    name: str
    keys: str
    text: str
    source: str = ""
    package: str = ""
    told: tuple[tuple[str, str], ...] = ()

    def line(self) -> str:
        """Return all but the name."""
        origin = [part for part in (self.source, self.package) if part and part not in self.text]
        shown = self.text + (f" ({'; '.join(origin)})" if origin else "")
        return shown.strip() + (f"  {self.keys}" if self.keys else "")


def entries(what: str, pattern: str = "*") -> list[Listed]:
    """Return all of one sort whose names match a pattern (`deit*`). Raises SplitfedError for another sort, and where
    nothing matches."""
    from fnmatch import fnmatchcase

    if what not in SORTS:
        raise SplitfedError(f"{what}: cannot be listed{did_you_mean(what, list(SORTS))}; known: {', '.join(SORTS)}")
    found = list(SORTS[what](pattern)) if what == "models" else [
        entry for entry in SORTS[what]("*") if fnmatchcase(entry.name, pattern)
    ]  # fmt: skip
    if not found:
        close = did_you_mean(pattern, list(_names(what)))
        raise SplitfedError(f"{what}: none is named {pattern!r}{close or ';'} see all: splitfed list {what}")
    return found


def _names(what: str) -> Iterator[str]:
    if what == "models":  # to ask timm which of them can be split takes half a minute
        import timm

        return iter(timm.list_models("*vit*") + timm.list_models("*deit*"))
    return (entry.name for entry in SORTS[what]("*"))


def sorts() -> list[Listed]:
    """Return what can be listed."""
    return [Listed(what, "", said) for what, (_, said) in _SORTS.items()]


def show(found: list[Listed], out: rich.console.Console | None = None, *, long: bool = False) -> None:
    """Print a line for each: its name, what it is with the source, its keys; below it, if `long`, an indented one for
    each key. A narrow terminal wraps them, a pipe gets them whole."""
    out = out or rich.console.Console()
    lines = list[tuple[str, str]]()
    for entry in found:
        lines.append((entry.name, entry.line()))
        lines += [(f"  {key}", said) for key, said in entry.told if long]
    width = max(len(name) for name, _ in lines)
    table = Table.grid(padding=(0, 2))
    for name, line in lines:
        if out.is_terminal:
            table.add_row(Text(name, no_wrap=True), Text(line))
        else:
            print(f"{name:<{width}}  {line}", file=out.file)
    if out.is_terminal:
        out.print(table)


def _kinds(section: type[BaseModel], key: str) -> Iterator[Listed]:
    """Yield the kinds that a key of a section can be of."""
    for config in sections(section.model_fields[key].annotation):
        fields = {name: field for name, field in config.model_fields.items() if name != "kind"}
        keys = " ".join(_key(name, field) for name, field in fields.items())
        told = tuple((name, one_line(field.description)) for name, field in fields.items() if field.description)
        yield Listed(str(kind(config)), keys, first_sentence(config.__doc__), _source(config), told=told)


def _key(name: str, field: FieldInfo) -> str:
    literal = field.annotation if get_origin(field.annotation) is Literal else None
    choices = "{" + ",".join(map(str, get_args(literal))) + "}" if literal else ""
    if field.is_required():
        return f"{name}={choices or '?'}"
    return f"{name}={_default(field.default)}{choices}"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        from splitfed.scenario.yaml import write_line

        return write_line(value.model_dump(mode="json"))
    return value if isinstance(value, str) else shown(value)


def one_line(text: str | None) -> str:
    """Return a docstring, or nothing where there is none, in one line."""
    return " ".join((text or "").split())


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring, or nothing where there is none."""
    return re.split(r"(?<=\.) (?=[A-Z`])", one_line(text), maxsplit=1)[0]


def _source(config: type[BaseModel]) -> str:
    """Return the first paper that a config, what it builds, or their module names."""
    module = sys.modules[config.__module__]
    built = getattr(config, "build", None)
    name = built.__annotations__.get("return") if built else None
    maker = getattr(module, name, None) if isinstance(name, str) else name
    texts = [one_line(one.__doc__) for one in (config, maker, module) if one is not None]
    return next((match.group() for paper in _PAPERS for text in texts if (match := paper.search(text))), "")


def _with_plugins(entries: Iterable[Listed], plugins: Iterable[Plugin[Any]]) -> Iterator[Listed]:
    """Yield the entries, those of plug-ins with their packages, and then the plug-ins that cannot be used."""
    packages = {plugin.kind: plugin.package for plugin in plugins if plugin.config is not None}
    for entry in entries:
        yield replace(entry, package=packages.get(entry.name, ""))
    for plugin in plugins:
        if plugin.config is None:
            yield Listed(plugin.kind, "", f"broken: {plugin.problem}")


def _reducers(_: str) -> Iterator[Listed]:
    from splitfed.compression.reducers.registry import PLUGINS
    from splitfed.scenario.compression import Compression

    return _with_plugins(_kinds(Compression, "reducer"), PLUGINS)


def _codecs(_: str) -> Iterator[Listed]:
    from splitfed.compression.codecs.registry import PLUGINS
    from splitfed.scenario.compression import Packing

    return _with_plugins(_kinds(Packing, "codec"), PLUGINS)


def _lossless(_: str) -> Iterator[Listed]:
    from splitfed.scenario.compression import Packing

    return _kinds(Packing, "lossless")


def _presets(_: str) -> Iterator[Listed]:
    from splitfed.scenario.presets import PRESETS
    from splitfed.scenario.yaml import write_line

    for name, settings in PRESETS.items():
        yield Listed(name, "", write_line(settings))


def _of_scenario(key: str) -> Callable[[str], Iterator[Listed]]:
    def found(_: str) -> Iterator[Listed]:
        from splitfed.scenario import Scenario

        return _kinds(Scenario, key)

    return found


def _memory(_: str) -> Iterator[Listed]:
    from splitfed.federation.memory import Memory

    for name, field in Memory.model_fields.items():
        yield Listed(name, _key(name, field), one_line(field.description))


def _partitions(_: str) -> Iterator[Listed]:
    from splitfed.data.settings import DataConfig

    return _kinds(DataConfig, "partition")


def _modes(_: str) -> Iterator[Listed]:
    from splitfed.scenario.sections import Federation

    field = Federation.model_fields["mode"]
    told = one_line(f"{field.description or ''} {Federation.__doc__}")
    for mode in get_args(field.annotation):
        match = re.search(rf"`{mode}` ((?:gives|has|is|trains|hands)\b[^;.]*)", told)
        yield Listed(mode, "", match.group(1) if match else "")


def _strategies(_: str) -> Iterator[Listed]:
    from splitfed.federation.own_class import OWN
    from splitfed.scenario.sections import Federation

    for entry in _kinds(Federation, "strategy"):
        yield replace(entry, name=OWN) if entry.name == "None" else entry


def _controllers(_: str) -> Iterator[Listed]:
    from splitfed.federation.own_class import OWN
    from splitfed.scenario import Scenario

    for entry in _kinds(Scenario, "control"):
        yield replace(entry, name=OWN) if entry.name == "None" else entry


def _adapters(_: str) -> Iterator[Listed]:
    from splitfed.model.settings import ModelConfig

    return _kinds(ModelConfig, "adapter")


def _adaptive(_: str) -> Iterator[Listed]:
    from splitfed.model.settings import ModelConfig

    return _kinds(ModelConfig, "adaptive")


def _availability(_: str) -> Iterator[Listed]:
    from splitfed.scenario.sections import Federation

    return _kinds(Federation, "availability")


def _scenarios(_: str) -> Iterator[Listed]:
    from splitfed.scenario.scenario import shipped

    for name, path in shipped().items():
        heading = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        # The schema that editors look for is no description.
        comment = " ".join(line.strip("# \n") for line in heading if "yaml-language-server" not in line)
        yield Listed(name, "", first_sentence(comment.split("  ")[0]))


def _models(pattern: str) -> Iterator[Listed]:
    from splitfed.cli.listing.models import usable

    for model in usable(pattern):
        text = f"{model.image_size} px, patch {model.patch}, width {model.width}, {model.blocks} blocks"
        text += "" if model.readable else ", no CLS attention (which adc and discard_tokens need)"
        yield Listed(model.name, f"weights: {', '.join(model.weights)}" if model.weights else "", text)


# What can be listed, how, and what it is.
_SORTS: dict[str, tuple[Callable[[str], Iterator[Listed]], str]] = {
    "reducers": (_reducers, "What drops or merges samples, tokens or numbers before they are sent."),
    "codecs": (_codecs, "What turns numbers into bytes."),
    "lossless": (_lossless, "What makes bytes fewer and gives back every bit."),
    "presets": (_presets, "Names for settings of several sections: `preset: small` at the top of a scenario."),
    "partitions": (_partitions, "How images are dealt to clients."),
    "budgets": (_of_scenario("budget"), "When a run has sent enough."),
    "modes": (_modes, "Who holds which part of the model, and how it learns."),
    "phases": (_of_scenario("phases"), "What teaches the front, one phase after another."),
    "memory": (_memory, "What the server keeps of smashed data once the front is frozen, key by key."),
    "strategies": (_strategies, "What makes the round's front of those of the clients."),
    "availability": (_availability, "Which clients of a simulation are there, when, and how fast."),
    "controllers": (_controllers, "What chooses, round by round, at which operating point a client sends."),
    "links": (_of_scenario("link"), "What a simulation assumes of the way between a client and the server."),
    "engines": (_of_scenario("engine"), "Where clients run."),
    "scenarios": (_scenarios, "The scenarios that ship."),
    "models": (_models, "The models of timm that can be split."),
    "adapters": (_adapters, "What of the model is trained."),
    "adaptive": (_adaptive, "Which blocks train in a mini-batch, and on how many of its tokens."),
}
SORTS = {what: found for what, (found, _) in _SORTS.items()}
