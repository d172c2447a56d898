"""Mistakes of a scenario that only its model, its data and the files that it names can tell: rules for `Scenario.load`.

Each takes a scenario of which some parts may be missing, for they are wrong by themselves, and is silent about these.
Heavy imports are made when a rule runs, so that a file that cannot be read is told before them.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from splitfed.data.settings import DataConfig, looks_like_name
from splitfed.errors import DataError, ModelError, RunError, ScenarioError, SplitfedError
from splitfed.federation.phases import misfit
from splitfed.link.settings import LinkSettings
from splitfed.model.settings import ModelConfig
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.seeds import Key
from splitfed.waiting import waiting

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from splitfed.model.parts import Front

Found = Iterator[tuple[str, str]]


def of_the_model(scenario: Scenario) -> Found:
    """Yield what is wrong with a model, and with what is chosen for it, before it has any weights."""
    model = getattr(scenario, "model", None)
    if model is None or not all(hasattr(model, name) for name in ModelConfig.model_fields):
        return
    with waiting("loading torch and timm"):
        from splitfed.model.mistakes import blank, mistakes
        from splitfed.model.parts import Front
        from splitfed.split.assembly import adapter_misfit

    tail = None
    with suppress(AttributeError):
        tail = scenario.tail
    found = list(mistakes(model, tail))
    yield from found
    if all(key in ("model.pretrained", "model.weights") for key, _ in found):
        with suppress(AttributeError):
            yield from _of_the_cuts(scenario, blank(model), tail)
        front = Front(blank(model), model.cut)
        if problem := adapter_misfit(model, blank(model)):
            yield "model.adapter", problem
        with suppress(AttributeError):
            if problem := misfit(scenario.phases, len(blank(model).blocks) - model.cut):
                yield "phases", problem
        with suppress(AttributeError):
            yield from _of_the_reducer(scenario, front)


def _of_the_cuts(scenario: Scenario, vit: "VisionTransformer", tail: int | None) -> Found:
    """Yield which profiles' fronts leave the server no block, or are of more than there are."""
    from splitfed.model.parts import misfits

    for name, profile in scenario.federation.profiles.items():
        if profile.cut is not None and profile.cut != scenario.model.cut:
            found = misfits(vit, profile.cut, tail)
            yield from ((f"federation.profiles.{name}.cut", why) for key, why in found if key == "model.cut")


def _of_the_reducer(scenario: Scenario, front: "Front") -> Found:
    from splitfed.model.adaptive.attention import check_readable
    from splitfed.split.assembly import misfits

    for key, problem in misfits(scenario, front):
        yield key, f"{scenario.compression.reducer.kind}: {problem}" if key == "compression.reducer" else problem
    for terms in scenario.all_terms():
        reducer = scenario.compression_under(terms).reducer
        if reducer.build().needs_attention:
            try:
                check_readable(front)
            except ModelError as error:
                key = f"{scenario.place_of(terms)}.reducer"
                yield key, f"{reducer.kind}: {error}: set another reducer, or another model"


def of_the_federation(scenario: Scenario) -> Found:
    """Yield what is wrong with a strategy of the user's own, and with the files that say who is there, and how fast."""
    from splitfed.federation.own_strategy import OwnStrategy
    from splitfed.scenario.sections import OwnController

    owned = list[OwnStrategy | OwnController]()
    with suppress(AttributeError):
        if isinstance(strategy := scenario.federation.strategy, OwnStrategy):
            owned.append(strategy)
    with suppress(AttributeError):
        if isinstance(control := scenario.control, OwnController):
            owned.append(control)
    for own in owned:
        try:
            own.load()
        except RunError as error:
            yield told(error, own.place)
    with suppress(AttributeError):
        try:
            scenario.federation.availability.check(scenario.federation.clients)
        except ScenarioError as error:
            key = "federation.availability.file"
            yield from ((key, problem.removeprefix(f"{key}: ")) for problem in error.problems)
    links = list[tuple[str, LinkSettings]]()
    with suppress(AttributeError):
        links.append(("link", scenario.link))
    with suppress(AttributeError):
        profiles = scenario.federation.profiles.items()
        links += [(f"federation.profiles.{name}.link", one.link) for name, one in profiles if one.link]
    for key, link in links:
        try:
            link.check()
        except ScenarioError as error:
            for problem in error.problems:
                way, _, why = problem.partition(": ")
                yield f"{key}.{way}", why


def of_this_machine(scenario: Scenario) -> Found:
    """Yield where there is nothing here to compile blocks with, of the sides that are on this machine."""
    from splitfed.model.optim import pick_device
    from splitfed.split.computing.compiled import check_compiler

    with suppress(AttributeError):
        here = {"server": scenario.federation.splits, "client": not isinstance(scenario.engine, Deployment)}
        if here["client"] and scenario.federation.splits and scenario.cuts[0] == 1:
            # Of a front of one block none is compiled where attention is read.
            terms = scenario.all_terms()
            here["client"] = not any(scenario.compression_under(one).reducer.build().needs_attention for one in terms)
        for side in ("client", "server"):
            training = getattr(scenario.training, side)
            if here[side] and training.compile:
                try:
                    check_compiler(side, pick_device(training.device))
                except ModelError as error:
                    yield told(error, "training")
                except RunError:
                    pass  # there is no such device, which is told where one is taken


# What a run would refuse before it loads anything, whatever engine and machine it runs on, and what on this one.
BEFORE_A_RUN = (of_the_model, of_the_federation)
BEFORE_A_RUN_HERE = (*BEFORE_A_RUN, of_this_machine)


def of_the_data(scenario: Scenario) -> Found:
    """Yield what is wrong with the data set, which is opened for it and dealt to the clients; no image is decoded."""
    with waiting("loading torch and datasets"):
        from splitfed.data.dataset import load

    with suppress(AttributeError):
        clients, size, key = scenario.federation.clients, scenario.model.image_size, Key(scenario.seed)
        if all(hasattr(scenario.data, name) for name in DataConfig.model_fields):
            try:
                with waiting("loading the data"):
                    load(scenario.data, size, clients, key.at("data"))
            except DataError as error:
                yield told(error, "data")


def out_of_reach(scenario: Scenario) -> list[str]:
    """Return the keys that name what is on the Hugging Face Hub, where that does not answer: a run would find there
    what its cache holds, and no more."""
    from splitfed.model.hub import reachable

    path, model = scenario.data.path, scenario.model
    keys = ["data.path"] if path != "digits" and looks_like_name(path) and not Path(path).exists() else []
    keys += ["model.pretrained"] if model.pretrained and model.weights is None else []
    return keys if keys and not reachable() else []


def told(error: SplitfedError, section: str) -> tuple[str, str]:
    """Return the key that an error names at its beginning, or else the section, and the reason."""
    text = " ".join(str(error).split())
    named = re.match(r"([a-z_]+(?:\.\w+)+): (.*)", text)
    return (named[1], named[2]) if named else (section, text.removeprefix(f"{section}: "))
