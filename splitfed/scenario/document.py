"""A scenario as plain values that remember the line they are written in, so that each problem is shown where it is."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from splitfed.errors import ScenarioError
from splitfed.scenario.yaml import CORE, MOST_DEPTH, SCALARS, TOO_DEEP, Unreadable, compose

Path = tuple[str | int, ...]

# Far above any real scenario; what it stops is a few lines of nested aliases that stand for billions of values.
_MOST_VALUES = 20_000
ASIDE = "x-"


class Origin(NamedTuple):
    """Where a value comes from: `file:line` or `--set key=value`, and its place in the order of problems; and the
    preset that is named there, if it is that which sets the value."""

    order: int
    place: str
    preset: str | None = None


class Problem(NamedTuple):
    """One mistake: where, in which key, and why."""

    origin: Origin
    path: Path
    why: str

    def __str__(self) -> str:
        said = ": ".join(part for part in (self.origin.place, dotted(self.path), self.why) if part)
        return said if self.origin.preset is None else f"{said} (preset {self.origin.preset!r} sets it)"


@dataclass
class Document:
    """A scenario as plain values, the origin of every key, and the problems found so far."""

    data: dict[str, Any]
    origins: dict[Path, Origin]
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: Path) -> Origin:
        """Return where a key is written, or else the closest section around it."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def refuse(self, path: Path, why: str, origin: Origin | None = None) -> None:
        """Note a problem at a key."""
        self.problems.append(Problem(origin or self.origin(path), path, why))

    def raise_problems(self) -> None:
        """Raise ScenarioError with all problems in the order of the file, overrides last; return if there are none."""
        if self.problems:
            lines = [str(p) for p in sorted(self.problems, key=lambda p: p.origin.order)]
            raise ScenarioError(list(dict.fromkeys(lines)))


def dotted(path: Path) -> str:
    """Write a path as `a.b.0`; keys that are not plain words are quoted."""
    return ".".join(str(p) if isinstance(p, int) or re.fullmatch(r"[\w-]+", p) else repr(p) for p in path)


def shown(value: Any) -> str:
    """Write a value the way a scenario would, shortened, for a problem's text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


class Reader:
    """Turns nodes into values and notes the origin of every key in a document. All values of an override share the
    origin `fixed`; those of a file have their lines."""

    def __init__(self, document: Document, source: str, fixed: Origin | None = None) -> None:
        self.document, self.source, self.fixed = document, source, fixed
        self.values, self.open = 0, set[int]()

    def read(self, node: Node, path: Path) -> Any:
        """Return the value of a node that stands at this path; problems are noted in the document, not raised."""
        self.values += 1
        if self.values > _MOST_VALUES:
            raise ScenarioError([f"{self._at(node).place}: more than {_MOST_VALUES} values, aliases written out"])
        if len(self.open) > MOST_DEPTH:
            raise ScenarioError([f"{self._at(node).place}: {TOO_DEEP}, aliases written out"])
        if id(node) in self.open:
            return self._refuse(node, path, "an alias stands inside the value that it names")
        self.open.add(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == CORE + "map":
                return self._mapping(node, path)
            if isinstance(node, SequenceNode) and node.tag == CORE + "seq":
                return [self._at_key(item, item, (*path, i)) for i, item in enumerate(node.value)]
            if isinstance(node, ScalarNode) and node.tag in SCALARS:
                return self._scalar(node, path)
            return self._refuse(node, path, f"the YAML tag {node.tag.replace(CORE, '!!')!r} is not supported")
        finally:
            self.open.discard(id(node))

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        try:
            return SCALARS[node.tag](node.value)
        except (ValueError, KeyError):
            kind = {"int": "whole number", "float": "number", "bool": "boolean"}[node.tag.removeprefix(CORE)]
            return self._refuse(node, path, f"{node.value[:40]!r} is not a {kind} that can be used")

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if key.tag == CORE + "merge":
                merged |= self._merge(value, path)
            elif not isinstance(key, ScalarNode):
                self._refuse(key, path, "a key must be plain text")
            elif key.value in own:
                first = own[key.value][0].start_mark.line + 1
                self._refuse(key, (*path, key.value), f"written twice, first in line {first}")
            else:
                own[key.value] = key, value
        return merged | {name: self._at_key(key, value, (*path, name)) for name, (key, value) in own.items()}

    def _merge(self, node: Node, path: Path) -> dict[str, Any]:
        # The first of several merged mappings wins, and a key that is written out wins over all.
        found: dict[str, Any] = {}
        for one in reversed(node.value if isinstance(node, SequenceNode) else [node]):
            value = self.read(one, path) if isinstance(one, MappingNode) else None
            if value is None:
                self._refuse(one, path, "'<<' merges sections only")
            else:
                found |= value
        return found

    def _at_key(self, where: Node, node: Node, path: Path) -> Any:
        self.document.origins[path] = self._at(where)
        return self.read(node, path)

    def _at(self, node: Node) -> Origin:
        line = node.start_mark.line + 1
        return self.fixed or Origin(line, f"{self.source}:{line}")

    def _refuse(self, node: Node, path: Path, why: str) -> None:
        self.document.refuse(path, why, self._at(node))


def read(text: str, source: str) -> Document:
    """Read the text of a scenario. Raises ScenarioError when it is not YAML or not a section; problems of single keys
    are noted in the document."""
    try:
        node = compose(text)
    except Unreadable as e:
        raise ScenarioError([f"{source}:{e.line}: {e.why}"]) from None
    if node is None:
        raise ScenarioError([f"{source}:1: the file is empty"])
    line = node.start_mark.line + 1
    if not isinstance(node, MappingNode):
        raise ScenarioError([f"{source}:{line}: a scenario is a section of keys and values, such as 'seed: 0'"])
    document = Document({}, {(): Origin(line, f"{source}:{line}")})
    document.data = without_asides(Reader(document, source).read(node, ()) or {})
    return document


def without_asides(data: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a file's top that are read: `x-...` is the user's own, such as for anchors to merge."""
    return {key: value for key, value in data.items() if not (isinstance(key, str) and key.startswith(ASIDE))}


def printable(text: str) -> str:
    """Return text in one line that every stream takes: what is no letter or sign is written with escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
