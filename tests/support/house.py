"""The import graph of the code, read from the files, and the rules that it keeps.

Every folder is walked, every way to import is seen: absolute and relative, inside functions, for type checkers alone.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

# Each room imports its own modules and those of rooms before it.
ORDER = (
    "base", "compression", "model", "link", "federation", "data", "scenario", "run", "wire", "split", "inference",
    "engines", "sides", "service", "reports", "testing", "simulation", "cli",
)  # fmt: skip
_BASE = ("version", "config", "errors", "files", "seeds", "waiting")
_SIDES = ("clients", "server")
_AT_THE_ROOT = ("clients", "server", "compression")
# The composition roots, which know both sides, inside functions: one hands both apps to an engine, the other starts the
# side that a command names; a sweep's point is a process that simulates.
_ROOTS = ("splitfed.simulation", "splitfed.cli.deployment")
# What a side does after training, in rooms of `inference` that come after both sides.
_OF_A_SIDE = {"splitfed.inference.service": "server", "splitfed.inference.remote": "clients"}
_PROCESSES = ("splitfed.reports.sweep.point",)


@dataclass(frozen=True, slots=True)
class Import:
    """A module that names another: whether it does so inside a function, and by the name of a folder of the root."""

    by: str
    of: str
    deferred: bool
    by_folder: bool


class House:
    """The modules below a root folder, by the names under which they are imported."""

    def __init__(self, root: Path) -> None:
        self.files = dict(sorted(_modules(root)))
        self.imports = [found for name, path in self.files.items() for found in self._of(name, path)]

    def uphill(self) -> list[str]:
        """Return the imports of rooms that come later in the order."""
        return [
            f"{one.by} imports {one.of}"
            for one in self.imports
            if _rank(one.by) < _rank(one.of) and not (one.by in _PROCESSES and one.deferred) and not self._side(one)
        ]

    def across(self) -> list[str]:
        """Return the imports of one side by the other, or by what both share."""
        return [
            f"{one.by} imports {one.of}"
            for one in self.imports
            if (side := self._side(one)) and _own_side(one.by) != side and not (one.by in _ROOTS and one.deferred)
        ]

    def by_folder(self) -> list[str]:
        """Return the imports of a folder of the root under its own name."""
        return [f"{one.by} imports {one.of}" for one in self.imports if one.by_folder]

    def circles(self) -> list[str]:
        """Return the modules that reach themselves by imports, in functions and for types alone too."""
        below: dict[str, set[str]] = {name: set() for name in self.files}
        for one in self.imports:
            if one.of in below and one.of != one.by:
                below[one.by].add(one.of)
        return sorted(name for name in below if name in _reached(name, below))

    @staticmethod
    def _side(one: Import) -> str | None:
        return room if (room := _room(one.of)) in _SIDES else None

    def _of(self, name: str, path: Path) -> Iterator[Import]:
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node, deferred in _nodes(ast.parse(path.read_text()), False):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            else:
                base = "." * node.level + (node.module or "")
                base = resolve_name(base, package) if node.level else base
                named = [
                    f"{base}.{alias.name}" if f"{base}.{alias.name}" in self.files else base for alias in node.names
                ]
            for of in named:
                first = of.split(".")[0]
                if first in ("splitfed", *_AT_THE_ROOT):
                    short = first in _AT_THE_ROOT
                    yield Import(name, f"splitfed.{of}" if short else of, deferred, short)


def _reached(start: str, below: dict[str, set[str]]) -> set[str]:
    """Return the modules that one reaches by one import or more."""
    found, waiting = set[str](), list(below[start])
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += below[name]
    return found


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in ("splitfed", "clients", "server", "compression"):
        for path in (root / folder).rglob("*.py"):
            if not any(parent.is_symlink() for parent in path.parents):
                parts = path.relative_to(root).with_suffix("").parts
                dotted = ".".join(parts if folder == "splitfed" else ("splitfed", *parts))
                yield dotted.removesuffix(".__init__"), path


def _nodes(tree: ast.AST, deferred: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, deferred
        yield from _nodes(node, deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def _room(name: str) -> str:
    """Return the room of a module; the package itself, which loads names on first use, is above all."""
    parts = name.split(".")
    if len(parts) == 1 or parts[1] == "__main__":
        return "cli"
    return "base" if parts[1] in _BASE else parts[1]


def _own_side(name: str) -> str:
    """Return the side of a module, or its room where it is of none."""
    return _OF_A_SIDE.get(".".join(name.split(".")[:3]), _room(name))


def _rank(name: str) -> int:
    room = _room(name)
    if room != _own_side(name):
        return ORDER.index("service")
    return ORDER.index("sides" if room in _SIDES else room)
