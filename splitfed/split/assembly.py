"""A scenario's model as it is trained: in parts, with the reducer's own layers where they belong."""

from torch import nn

from splitfed.errors import ModelError
from splitfed.federation.phases import misfit
from splitfed.model.build import build
from splitfed.model.mistakes import blank, mistakes
from splitfed.model.parts import Front, Parts, split, split_twice
from splitfed.scenario import Scenario
from splitfed.seeds import Key


def assemble(scenario: Scenario, classes: int, *, pretrained: bool | None = None) -> Parts:
    """Build the parts for `classes`; whatever is not loaded is drawn from the scenario's seed. `pretrained=False`
    skips the weights that the scenario asks for, the reducer's too. Raises ModelError as `build` and, where these are
    loaded, as `check_fits` does."""
    key = Key(scenario.seed)
    vit = build(scenario.model, classes, pretrained=pretrained, key=key.at("model"))
    if scenario.tail is None:
        parts = Parts(*split(vit, scenario.model.cut), nn.Identity())
    else:
        parts = Parts(*split_twice(vit, scenario.model.cut, scenario.tail))
    front, back, _ = parts
    scenario.model.adapter.apply(front, key.at("adapter"))
    geometry = front.geometry(scenario.training.batch_size, classes)
    reducer = scenario.compression.reducer
    if pretrained is not False:
        check_fits(scenario, front)
    for part in parts[1:]:
        part.ragged = reducer.ragged
    halves = reducer.build().halves(geometry, key.at("halves"))
    if halves is not None:
        if pretrained is not False:
            reducer.load(halves)
        front.attach(halves)
        back.attach(halves)
    return parts


def check_fits(scenario: Scenario, front: Front) -> None:
    """Raise ModelError, with the key and the way out, where the reducer does not go with the model."""
    reducer = scenario.compression.reducer
    if problem := reducer.misfit(scenario.model, front.geometry(scenario.training.batch_size, 2)):
        raise ModelError(f"compression.reducer ({reducer.kind}): {problem}")


def check_model(scenario: Scenario) -> None:
    """Check a scenario's model and its reducer without weights or data. Raises ModelError, with the key and the reason,
    where a run could not begin."""
    for key, why in mistakes(scenario.model, scenario.tail):
        raise ModelError(f"{key}: {why}")
    vit = blank(scenario.model)
    front = Front(vit, scenario.model.cut)
    if problem := misfit(scenario.phases, len(vit.blocks) - scenario.model.cut):
        raise ModelError(f"phases: {problem}")
    if problem := scenario.model.adapter.misfit(front):
        raise ModelError(f"model.adapter: {problem}")
    check_fits(scenario, front)
