"""A scenario: one YAML file that says everything about an experiment, typed and checked before anything runs."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from difflib import get_close_matches
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from splitfed.config import Broken, Config, as_tuple
from splitfed.data.settings import DataConfig, Evaluation
from splitfed.errors import ScenarioError
from splitfed.federation.memory import Memory
from splitfed.federation.phases import Gradient, Phase, PhaseConfig, phase_of
from splitfed.federation.profiles import dealt
from splitfed.link.settings import IdealLink, LinkConfig
from splitfed.model.settings import ModelConfig
from splitfed.scenario.budget import BudgetConfig, Unlimited
from splitfed.scenario.compression import Compression
from splitfed.scenario.document import Document, Origin, printable, read, without_asides
from splitfed.scenario.engine import EngineConfig, Inline
from splitfed.scenario.overrides import named, override
from splitfed.scenario.presets import PRESETS, written_out
from splitfed.scenario.problems import note, valid_part
from splitfed.scenario.rules.registry import broken, broken_in_part
from splitfed.scenario.sections import (
    CheckpointConfig,
    ControlConfig,
    Federation,
    FixedControl,
    Point,
    Terms,
    Training,
)
from splitfed.scenario.yaml import write
from splitfed.seeds import Key

# Yields the keys that are wrong, as `section.key`, each with the reason and the way out.
Rule = Callable[["Scenario"], Iterator[tuple[str, str]]]
_UNFIT = re.compile(r'[/\\:*?"<>|]')
_MOST_BYTES = 100  # of a name that is made of a file's; a file system takes 255, and a run's name has more in it


class Scenario(Config):
    """One experiment: a model that is cut, data that is shared out, and how the two sides train."""

    name: str = "scenario"
    """Name of its run folders; where none is written, that of the file."""
    seed: int = Field(0, ge=0)
    """Decides every draw: weights, shares of the data, orders, noise."""
    preset: Literal[tuple(PRESETS)] | None = Field(None, exclude=True)  # type: ignore[valid-type]
    """Name of settings for several sections, of which keys beside it win; it is written out when it is read, and not
    kept. Null is none."""
    model: ModelConfig
    """Which model is trained, and where it is cut."""
    data: DataConfig
    """Which images there are, and how they are shared out."""
    federation: Federation
    """Who trains, how often and in which order."""
    control: ControlConfig = FixedControl()
    """What chooses, client by client and round by round, how strongly is compressed, so that a target holds in the long
    run."""
    link: LinkConfig = IdealLink()
    """What a simulation assumes of the way between each client and the server: with any but `ideal` a run has simulated
    time."""
    phases: Annotated[tuple[PhaseConfig, ...], BeforeValidator(as_tuple)] = ()
    """What teaches the front, one phase after another, such as `[{kind: gradient, rounds: 3}, frozen]`; without any it
    learns from the gradient throughout."""
    memory: Memory | None = None
    """What the server keeps of smashed data once the front is frozen; null is nothing."""
    training: Training = Training()
    """Batches, optimisers and learning rates of the two sides."""
    compression: Compression = Compression()
    """What makes the bytes fewer that are sent."""
    evaluation: Evaluation = Evaluation()
    """What clients hold out, and who of them tells how the model does on it."""
    budget: BudgetConfig = Unlimited()
    """When a run has sent enough."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """How many checkpoints stay on disk."""
    engine: EngineConfig = Inline()
    """Where the clients run."""

    @model_validator(mode="before")
    @classmethod
    def _preset_written_out(cls, data: Any) -> Any:
        return written_out(data)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if _UNFIT.search(name) or not name.isprintable() or name.strip(". ") != name or not 0 < len(name) < 101:
            raise ValueError(f"{name!r} cannot name a folder: use letters, digits, '-' and '_', 100 at most")
        return name

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Self:
        if problems := list(broken(self)):
            raise Broken(*problems)
        return self

    @property
    def tail(self) -> int | None:
        """How many blocks of the end of the model, with norm and head, a client holds; None where it holds no tail."""
        if not self.federation.private:
            return None
        return 1 if self.model.tail is None else self.model.tail

    def phase(self, round: int) -> Phase:
        """Return the phase that a round is in."""
        return phase_of(self.phases, round)

    def ahead(self, round: int) -> int:
        """Return by how many mini-batches clients are ahead of an answer in a round."""
        return self.training.ahead if isinstance(self.phase(round).settings, Gradient) else 0

    def compression_under(self, terms: Terms) -> Compression:
        """Return what makes the bytes fewer that a client sends and is sent. Raises KeyError for a name that is not
        here."""
        part = self.federation.profiles[terms.profile].compression if terms.profile else None
        found = self.compression if part is None else part.over(self.compression)
        return self.points[terms.point].compression.over(found) if terms.point else found

    def cut_of(self, profile: str) -> int:
        """Return how many blocks the front of a client of this profile has; the empty name is none. Raises KeyError for
        a name that is not here."""
        own = self.federation.profiles[profile].cut if profile else None
        return self.model.cut if own is None else own

    @property
    def fronts(self) -> list[int]:
        """How many blocks fronts have, each number once, ascending."""
        return sorted({self.cut_of(profile) for profile in self.federation.profiles or ("",)})

    @property
    def cuts(self) -> tuple[int, int]:
        """How many blocks a client's front has, at least and at most."""
        return self.fronts[0], self.fronts[-1]

    @property
    def uneven(self) -> bool:
        """Whether some fronts have more blocks than others."""
        return len(self.fronts) > 1

    @property
    def cut_in_words(self) -> str:
        """After which block the model is cut, of each profile where fronts have different numbers."""
        if not self.uneven:
            return str(self.model.cut)
        return ", ".join(f"{self.cut_of(name)} ({name})" for name in self.federation.profiles)

    def cut_as(self, profile: str) -> Self:
        """Return the scenario as a client of this profile has it, cut where its front ends."""
        if (cut := self.cut_of(profile)) == self.model.cut:
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"cut": cut})})

    def dealt_profiles(self) -> tuple[str, ...]:
        """Return the profile of each client of a simulation; without profiles all have the empty name."""
        return dealt(self.federation.profiles, self.federation.clients, Key(self.seed).at("profile"))

    def answer_every(self, phase: Phase, terms: Terms) -> int:
        """Return of how many mini-batches that cross one is answered with its gradient; 0 is none."""
        if phase.frozen or phase.local or not terms.point:
            return phase.answer_every
        return self.points[terms.point].gradient_every or 0

    @staticmethod
    def place_of(terms: Terms) -> str:
        """Return the key under which it stands what is another under these terms."""
        if terms.point:
            return f"control.points.{terms.point}.compression"
        return f"federation.profiles.{terms.profile}.compression" if terms.profile else "compression"

    def all_terms(self) -> list[Terms]:
        """Return all the terms under which clients may have to send, the common ones first."""
        return [Terms(*both) for both in product(("", *self.federation.profiles), ("", *self.points))]

    @property
    def points(self) -> dict[str, Point]:
        """The operating points that a controller chooses from; none where nothing is chosen."""
        return self.control.points

    @property
    def timed(self) -> bool:
        """Whether a simulation has a time of its own."""
        return self.federation.timed(self.link)

    @property
    def side_by_side(self) -> bool:
        """Whether clients in one process are under way together: for a joint step, or to train one back as they would
        come in simulated time."""
        by_time = self.federation.mode == "sfl-v2" and self.federation.order == "arrival" and self.timed
        return isinstance(self.engine, Inline) and (self.federation.mode == "psl" or by_time)

    def remembers(self, round: int) -> bool:
        """Tell whether a round is one in which memory is filled, or gone over."""
        return self.memory is not None and bool(self.phases) and self.phase(round).settings is self.phases[-1]

    @property
    def stored_variants(self) -> int:
        """How many variants of each image memory keeps."""
        return (self.memory and self.memory.variants) or self.data.variants or 1

    @classmethod
    def load(
        cls, path_or_name: str | os.PathLike[str], overrides: list[str] | None = None, *, preset: str | None = None,
        also: Sequence[Rule] = (),
    ) -> Self:  # fmt: skip
        """Load a YAML file, or by its name (`digits`) one that ships with splitfed; a file that exists wins.

        `overrides` are `section.key=value`, as `--set` takes them; `preset`, as `--preset` does, takes the file's place
        in all keys that any preset sets. `also` are rules beside those that every scenario keeps, such as
        `splitfed.split.mistakes.of_the_model`: each is given the scenario, or what is valid of it.
        Raises ScenarioError with every problem at once.
        """
        path = _find(os.fspath(path_or_name))
        source = printable(_relative(path))
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as e:
            raise ScenarioError([f"{source}: not UTF-8 text: byte {e.start} is 0x{e.object[e.start]:02x}"]) from None
        except (OSError, ValueError) as e:
            raise ScenarioError([f"{source}: cannot be read: {getattr(e, 'strerror', None) or e}"]) from None
        return cls.parse(text, source, overrides, name=folder_name(path.stem), preset=preset, also=also)

    @classmethod
    def parse(
        cls, text: str, source: str = "<text>", overrides: list[str] | None = None, *, name: str | None = None,
        preset: str | None = None, also: Sequence[Rule] = (),
    ) -> Self:  # fmt: skip
        """Check the text of a scenario; problems start with `source:line`, and `name` is for a text without one.
        `preset` and `also` are as in `load`.

        Raises ScenarioError with every problem at once.
        """
        changes = [*named(preset), *(overrides or [])]
        return cls._checked(read(text, source), changes, {"name": name} if name is not None else {}, also)

    @classmethod
    def from_dict(
        cls, sections: dict[str, Any], overrides: list[str] | None = None, *, preset: str | None = None
    ) -> Self:
        """Check a scenario that is written in Python, as nested dicts of what a file would say.

        `preset` is as in `load`.

        Raises ScenarioError with every problem at once.
        """
        document = Document(deepcopy(without_asides(sections)), {(): Origin(0, "scenario")})
        return cls._checked(document, [*named(preset), *(overrides or [])], {})

    @classmethod
    def _checked(
        cls, document: Document, overrides: list[str], given: dict[str, str], also: Sequence[Rule] = ()
    ) -> Self:
        override(document, overrides, cls)
        data = {**given, **document.data}
        try:
            valid = scenario = cls.model_validate(data)
        except ValidationError as e:
            valid = valid_part(cls, data)
            note(e, document, cls, broken_in_part(valid))
        for rule in also:
            for key, why in rule(valid):
                document.refuse(tuple(key.split(".")), why)
        document.raise_problems()
        return scenario

    def to_yaml(self) -> str:
        """Return the complete scenario, defaults written out; it loads back to an equal one."""
        return write(self.model_dump(mode="json"))

    def with_(self, overrides: list[str], *, preset: str | None = None) -> Self:
        """Return a copy with some values changed; `preset` is as in `load`. Raises ScenarioError."""
        return self.parse(self.to_yaml(), self.name, overrides, preset=preset)


def folder_name(stem: str) -> str:
    """Return the name of a scenario whose file is named so: the same, or what is closest to it that names a folder."""
    name = "".join(one if one.isprintable() else "-" for one in _UNFIT.sub("-", stem))
    return name.encode()[:_MOST_BYTES].decode(errors="ignore").strip(". ") or "scenario"


def shipped() -> dict[str, Path]:
    """Return the scenarios that come with splitfed, by name."""
    found = (Path(str(f)) for f in files("splitfed.scenarios").iterdir() if f.name.endswith(".yaml"))
    return {path.stem: path for path in sorted(found)}


def _find(given: str) -> Path:
    path = Path(given)
    if os.path.isfile(given) or path.suffix in (".yaml", ".yml") or len(path.parts) != 1:
        return path
    known = shipped()
    if given in known:
        return known[given]
    if os.path.exists(given):
        return path
    close = get_close_matches(given, list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"those that do: {', '.join(known)}"
    raise ScenarioError([f"{given}: no such file, and no scenario of this name ships with splitfed; {hint}"])


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)
