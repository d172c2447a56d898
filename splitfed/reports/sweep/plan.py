"""A sweep: a YAML file that varies a scenario, and the runs that it stands for."""

import itertools
import json
import os
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, ValidationError

from splitfed.config import Config
from splitfed.errors import ScenarioError
from splitfed.scenario import Scenario
from splitfed.scenario.document import Document, printable, read, shown
from splitfed.scenario.document import Path as Keys
from splitfed.scenario.engine import Deployment, Inline
from splitfed.scenario.overrides import Change
from splitfed.scenario.places import resolved
from splitfed.scenario.problems import note
from splitfed.scenario.scenario import Rule, folder_name

Changes = dict[str, Any]
Seeds = Annotated[list[NonNegativeInt], Field(min_length=1)]


class SweepFile(Config):
    """What a sweep varies. Paths of data and of weights are meant from the sweep's own folder, where something lies
    there, or else from the current one."""

    scenario: str
    """Path of a scenario, from the sweep's own folder, or the name of one that ships."""
    set: Changes = {}
    """What changes of the scenario for all points: a mapping of `section.key` to a value."""
    grid: dict[str, dict[str, Changes | None]] = {}
    """Axes, of each of which a point takes one entry. An axis is a mapping of labels to changes, or under a name that
    is a `section.key` a list of its values."""
    points: dict[str, Changes | None] = {}
    """More labels with changes, each a point by itself."""
    seeds: dict[str, Seeds] = {"*": [0]}
    """Seeds of all points, or for each pattern of labels (`adc-*`) its own."""


@dataclass(frozen=True, eq=False, slots=True)  # each is itself, and may be a key
class Point:
    """One run of a sweep. Its scenario is named by the label."""

    label: str
    seed: int
    scenario: Scenario

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.label}-seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Sweep:
    """The points of a sweep in the order of its file, labels before seeds."""

    name: str
    points: list[Point]

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], overrides: list[str] | None = None, *, also: Sequence[Rule] = ()
    ) -> "Sweep":
        """Read a sweep and the scenarios of all its points; `overrides` (`--set`) come last in each. `also` are rules
        that each of them must keep too, as `Scenario.load` takes them.

        Raises ScenarioError with every problem at once, each with the line that it comes from.
        """
        source = Path(path)
        name = printable(str(source))
        try:
            text = source.read_bytes().decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise ScenarioError([f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
        document = read(text, name)
        if "model" in document.data and "scenario" not in document.data:
            raise ScenarioError([f"{name}: is a scenario, not a sweep: run it with splitfed simulate"])
        _write_out(document)
        file = _valid(document)
        if file is None:
            document.raise_problems()
        assert file is not None
        return cls(folder_name(source.stem), _Reader(document, file, source, overrides or [], also).points())


def is_sweep(path: Path) -> bool:
    """Return whether a file is meant as a sweep; not where it cannot be read."""
    try:
        keys = read(path.read_bytes().decode("utf-8-sig"), str(path)).data.keys()
    except (OSError, ValueError, ScenarioError):
        return False
    return "model" not in keys and bool(keys & {"scenario", "points", "grid"})


def _valid(document: Document) -> SweepFile | None:
    """Return what is valid of a sweep file, and note the problems of what is not; None where too little is left."""
    data = deepcopy(document.data)
    try:
        return SweepFile.model_validate(data)
    except ValidationError as error:
        note(error, document, SweepFile)
        wrong = error
    # What is wrong in one place must not hide what is wrong in a point of another.
    for _ in range(len(document.problems)):
        for details in wrong.errors():
            _drop(data, details["loc"])
        try:
            return SweepFile.model_validate(data)
        except ValidationError as error:
            wrong = error
    return None


def _drop(data: Any, place: Keys) -> None:
    """Drop the innermost value that a place leads to; of seeds all, as a pattern without them means nothing."""
    around, key = None, None
    for part in place[:1] if place[:1] == ("seeds",) else place:
        if not (isinstance(data, dict) and part in data):
            break
        around, key, data = data, part, data[part]
    if around is not None:
        around.pop(key, None)


def _write_out(document: Document) -> None:
    """Turn lists that stand for mappings into these: values of an axis, and seeds of all points."""
    grid: Any = document.data.get("grid")
    for name, values in grid.items() if isinstance(grid, dict) else ():
        if not isinstance(values, list):
            continue
        grid[name] = {}
        for i, value in enumerate(values):
            if isinstance(value, dict | list):
                document.refuse(("grid", name, i), "is no single value: write a mapping of labels to changes")
                continue
            label = name.rsplit(".", 1)[-1] + (value if isinstance(value, str) else shown(value))
            grid[name][label] = {name: value}
            document.origins["grid", name, label] = document.origin(("grid", name, i))
    if isinstance(seeds := document.data.get("seeds"), list):
        document.data["seeds"] = {"*": seeds}


class _Reader:
    """Makes the points of a sweep file, and notes every problem of it in its document."""

    def __init__(
        self, document: Document, file: SweepFile, source: Path, overrides: list[str], also: Sequence[Rule]
    ) -> None:
        self.also = also
        self.whole = not document.problems
        self.document, self.file, self.source, self.overrides = document, file, source, overrides
        self.folder = source.parent
        near = self.folder / file.scenario
        path = near.suffix in (".yaml", ".yml") or near.is_file()
        self.scenario = os.path.normpath(near) if path else file.scenario
        self.common = self._changes(("set",), file.set)

    def points(self) -> list[Point]:
        labelled = self._labelled()
        seeds = {label: self._seeds(label) for label in labelled}
        if self.whole:
            for pattern in self.file.seeds:
                if not any(fnmatchcase(label, pattern) for label in labelled):
                    self.document.refuse(("seeds", pattern), f"no point is named so; points: {', '.join(labelled)}")
        found, problems = [], list[str]()
        for label, (changes, place) in labelled.items():
            for seed in seeds[label] or [0]:
                named = [Change(f"name={json.dumps(label)}", place), Change(f"seed={seed}", place)]
                try:
                    changed = [*self.common, *changes, *named, *self.overrides]
                    scenario = Scenario.load(self.scenario, changed, also=self.also)
                    found.append(Point(label, seed, resolved(_threads(scenario), self.folder)))
                except ScenarioError as error:
                    problems += error.problems
        if problems or self.document.problems:
            own = [str(problem) for problem in self.document.problems]
            raise ScenarioError(sorted(dict.fromkeys([*own, *problems]), key=self._place))
        self._check(found, labelled)
        return found

    def _place(self, problem: str) -> tuple[int, int]:
        """Return where a problem comes in the list of all: those of the sweep's file by line, then those of others, and
        last those of overrides."""
        start = f"{printable(str(self.source))}:"
        if problem.startswith(start):
            return 0, int(problem.removeprefix(start).partition(":")[0])
        line = re.match(r".*?:(\d+): ", problem)
        return (2, 0) if problem.startswith("--set ") else (1, int(line[1]) if line else 0)

    def _labelled(self) -> dict[str, tuple[list[Change], str]]:
        """Return the changes of every label, and where the label is written."""
        found: dict[str, tuple[list[Change], str]] = {}
        axes = [self._axis(name, axis) for name, axis in self.file.grid.items()]
        own = [(label, self._changes(("points", label), changes or {}), ("points", label))
               for label, changes in self.file.points.items()]  # fmt: skip
        crossed = [
            ("-".join(label for label, _ in entries), [c for _, changes in entries for c in changes], ("grid",))
            for entries in (itertools.product(*axes) if axes else [])
        ]
        for label, changes, path in [*crossed, *own] or [(folder_name(Path(self.scenario).stem), [], ("scenario",))]:
            if label in found:
                self.document.refuse(path, f"two points are named {label!r}")
            found[label] = changes, self.document.origin(path).place
        return found

    def _axis(self, name: str, axis: dict[str, Changes | None]) -> list[tuple[str, list[Change]]]:
        if not axis:
            self.document.refuse(("grid", name), "is empty, so there would be no point")
        return [(label, self._changes(("grid", name, label), changes or {})) for label, changes in axis.items()]

    def _changes(self, path: Keys, changes: Changes) -> list[Change]:
        found = []
        for key, value in changes.items():
            if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
                self.document.refuse((*path, key), "write the key of a scenario, such as compression.reducer.ratio")
            elif key in ("name", "seed"):
                other = "its label names a point" if key == "name" else "the sweep's own 'seeds' says which"
                self.document.refuse((*path, key), f"cannot be set here: {other}")
            else:
                found.append(Change(f"{key}={json.dumps(value)}", self.document.origin((*path, key)).place))
        return found

    def _seeds(self, label: str) -> list[int]:
        patterns = [seeds for pattern, seeds in self.file.seeds.items() if fnmatchcase(label, pattern)]
        if not patterns:
            self.document.refuse(("seeds",), f"none for {label!r}: add a pattern for it, or '*' for all")
        return sorted({seed for seeds in patterns for seed in seeds})

    def _check(self, points: list[Point], labelled: dict[str, tuple[list[Change], str]]) -> None:
        """Refuse what no sweep can run, and two points that are the same."""
        problems, seen = list[str](), dict[str, str]()
        for point in points:
            place = labelled[point.label][1]
            if isinstance(point.scenario.engine, Deployment):
                problems.append(f"{place}: engine: deployment has clients on other machines: use splitfed serve")
            same = seen.setdefault(point.scenario.model_copy(update={"name": ""}).to_yaml(), point.label)
            if same != point.label:
                problems.append(f"{place}: {same!r} and {point.label!r} are the same settings")
        if problems:
            raise ScenarioError(list(dict.fromkeys(problems)))


def _threads(scenario: Scenario) -> Scenario:
    """Return a scenario with a number of threads: figures depend on it, and must not depend on how many points run at
    once."""
    if not isinstance(scenario.engine, Inline) or scenario.engine.threads:
        return scenario
    return scenario.model_copy(update={"engine": scenario.engine.model_copy(update={"threads": 1})})
