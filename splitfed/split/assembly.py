"""A scenario's model as it is trained: in parts, with the reducer's own layers where they belong, and cut as each
client has it."""

from collections.abc import Iterator

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.trained.layers import Halves
from splitfed.errors import ModelError
from splitfed.federation.phases import Frozen, misfit
from splitfed.model.adapters.subsets import Fixed, Head, Norms
from splitfed.model.adaptive.alast import Adaptive, Numbers
from splitfed.model.adaptive.attention import readable
from splitfed.model.build import build
from splitfed.model.exits.fraug import Generator
from splitfed.model.exits.heads import Exits
from splitfed.model.mistakes import blank, mistakes
from splitfed.model.parts import Back, Front, Later, Part, Parts, check, split, split_twice
from splitfed.model.settings import ModelConfig
from splitfed.scenario import Scenario
from splitfed.scenario.sections import COMMON, Terms
from splitfed.seeds import Key
from splitfed.split.cut import Cut


def assemble(
    scenario: Scenario, classes: int, *, pretrained: bool | None = None, cuts: tuple[int, int] | None = None
) -> Parts:  # fmt: skip
    """Build the parts for `classes`; whatever is not loaded is drawn from the scenario's seed. `pretrained=False`
    skips the weights that the scenario asks for, the reducer's too. With `cuts` other than one the back begins after
    the first of them and the front ends after the last, and they share the blocks between: `Parts.at` cuts them.
    Raises ModelError as `build` and, where these are loaded, as `check_fits` does."""
    key, (least, most) = Key(scenario.seed), cuts or (scenario.model.cut,) * 2
    vit = build(scenario.model, classes, pretrained=pretrained, key=key.at("model"))
    if problem := adapter_misfit(scenario.model, vit):
        raise ModelError(f"model.adapter: {problem}")
    if scenario.tail is None:
        parts = Parts(*split(vit, most), nn.Identity())
    else:
        parts = Parts(*split_twice(vit, most, scenario.tail))
    if least < most:
        parts = parts._replace(back=Back(vit, least, scenario.tail))
    front, back, _ = parts
    for part in parts:
        if isinstance(part, Part):
            scenario.model.adapter.apply(part, key.at("adapter"))
    _attach_adaptive(scenario, parts)
    geometry = front.geometry(scenario.training.batch_size, classes)
    _attach_exits(scenario, front, back, classes, least)
    _attach_own(scenario, parts, classes)
    reducer = scenario.compression.reducer
    if pretrained is not False:
        check_fits(scenario, front)
    for part in parts:
        if isinstance(part, Later):
            part.ragged = reducer.ragged
    halves = reducer.build().halves(geometry, key.at("halves"))
    if halves is not None:
        if pretrained is not False:
            reducer.load(halves)
        front.attach(halves)
        back.attach(halves)
    front.set_grad_checkpointing(scenario.training.client.checkpointing)
    return parts


def numbers_of(scenario: Scenario, parts: Parts) -> Numbers | None:
    """Return how many blocks of front and back train in each mini-batch; None where all do."""
    if (settings := scenario.model.adaptive) is None:
        return None
    return Numbers(settings, len(parts.front.blocks), len(parts.back.blocks), Key(scenario.seed).at("adaptive"))


def _attach_adaptive(scenario: Scenario, parts: Parts) -> None:
    """Give each side its blocks' budgets, and let an embedding that is never trained travel no more."""
    if (numbers := numbers_of(scenario, parts)) is None:
        return
    front, back, _ = parts
    front.adaptive = Adaptive(numbers, "front", len(front.blocks))
    back.adaptive = Adaptive(numbers, "back", len(back.blocks))
    for block in (*front.blocks, *back.blocks):
        readable(block)
    if numbers.settings.embedding == "never":
        for name, parameter in front.named_parameters():
            if not name.startswith("blocks."):
                parameter.requires_grad_(False)
        front.freeze()


def _attach_exits(scenario: Scenario, front: Front, back: Back, classes: int, cut: int) -> None:
    """Give each side the heads that learn with the model after its own blocks: up to the cut, and after it."""
    if (settings := scenario.model.exits) is None:
        return
    key = Key(scenario.seed).at("exits")
    sides = (front, [block for block in settings.blocks if block <= cut]), (
        back, [block for block in settings.blocks if block > cut]
    )  # fmt: skip
    for part, blocks in sides:
        if blocks:
            part.exits = Exits(
                blocks, front.embed_dim, classes, front.num_prefix_tokens, heads=settings.heads,
                key=key.at("trained", blocks[0]), settings=settings,
            )  # fmt: skip


def _attach_own(scenario: Scenario, parts: Parts, classes: int) -> None:
    """Give clients what makes up features, and the norms that are their own."""
    if scenario.training.client.fraug is not None:
        owner = _with_the_head(scenario, parts)
        owner.generator = Generator(owner.last_head.in_features, classes, Key(scenario.seed).at("generator"))
    if scenario.federation.local_norms:
        for part in (parts.front, parts.tail if scenario.federation.splits else parts.back):
            if isinstance(part, Part):
                part.keep_norms()


def _with_the_head(scenario: Scenario, parts: Parts) -> Front | Later:
    """Return the part of the model that a client holds and that ends with a head."""
    if not scenario.federation.splits:
        return parts.back
    return parts.tail if isinstance(parts.tail, Later) else parts.front


def check_fits(scenario: Scenario, front: Front) -> None:
    """Raise ModelError, with the key and the way out, where a reducer does not go with the model."""
    for key, why in misfits(scenario, front):
        kind = f" ({scenario.compression.reducer.kind})" if key == "compression.reducer" else ""
        raise ModelError(f"{key}{kind}: {why}")


def misfits(scenario: Scenario, front: Front) -> Iterator[tuple[str, str]]:
    """Yield the keys of reducers that do not go with the model, or not beside that of all, each with the reason; that
    of an adapter which leaves clients nothing to learn, of norms that are not there, and of chunks through which gates
    do not see."""
    geometry = front.geometry(scenario.training.batch_size, 2)
    common = scenario.compression.reducer
    if scenario.training.client.chunk:
        halves = common.build().halves(geometry, Key(0))
        if halves is not None and halves.gates is not None:
            yield (
                "training.client.chunk",
                f"the gates of the reducer {common.kind} open by all tokens of a mini-batch together: leave one of "
                "them out, or lower training.batch_size",
            )
    if isinstance(scenario.model.adapter, Fixed) and scenario.federation.splits and not scenario.federation.private:
        halves = common.build().halves(geometry, Key(0))
        if halves is None or not halves.encoder_travels:
            yield (
                "model.adapter",
                f"frozen: then nothing learns at the clients, for the reducer {common.kind} has no layers that do: set "
                "one that has, such as jscc, or leave it out for phases: [frozen]",
            )
    if scenario.federation.local_norms and Norms().misfit(front):
        yield "federation.local_norms", "the front has no LayerNorm that could stay with a client: leave it out"
    if isinstance(scenario.model.adapter, Head) and scenario.federation.splits:
        if scenario.federation.private:
            yield (
                "model.adapter",
                "head: with federation.labels: private the head is the clients', and nothing of the server's would "
                "learn: set norms, or labels: shared",
            )
        elif not scenario.phases or not all(isinstance(phase, Frozen) for phase in scenario.phases):
            yield (
                "model.adapter",
                "head: then nothing learns at the clients: set phases: [frozen], or another adapter with on: back",
            )
    for terms in scenario.all_terms():
        reducer = scenario.compression_under(terms).reducer
        if terms != COMMON and reducer == common:
            continue
        key = f"{scenario.place_of(terms)}.reducer"
        if scenario.uneven and reducer.build().halves(geometry, Key(0)) is not None:
            yield (
                key,
                f"its layers learn what one cut makes, and fronts have {scenario.cuts[0]} to {scenario.cuts[1]} "
                "blocks: set another, or the same cut for all",
            )
            continue
        if problem := reducer.misfit(scenario.model, geometry):
            yield key, problem
        elif terms != COMMON and not common.misfit(scenario.model, geometry):
            draw = Key(scenario.seed).at("halves")
            ones = [one.build().halves(geometry, draw) for one in (common, reducer)]
            loaded = [getattr(one, "weights", None) for one in (common, reducer)]
            if _layers(ones[0]) != _layers(ones[1]) or loaded[0] != loaded[1]:
                yield (
                    key,
                    f"{reducer.kind} has not the layers of {common.kind}, and all clients train the same: set other "
                    "keys of the reducer alone, or one without layers of its own in both places",
                )


def _layers(halves: Halves | None) -> dict[str, torch.Size] | None:
    return None if halves is None else {name: tensor.shape for name, tensor in halves.state().items()}


def adapter_misfit(model: ModelConfig, vit: VisionTransformer) -> str | None:
    """Return why a model cannot be trained by its adapter, or None."""
    adapter = model.adapter
    sides = (Front(vit, model.cut), Back(vit, model.cut))
    return next((problem for one in sides if one.side in adapter.sides and (problem := adapter.misfit(one))), None)


class Cuts:
    """The cut of a scenario's model under all terms, each made when it is first asked for. A frame says its codecs and
    not its reducer, so both ends go by the terms; `most_bytes` is what no frame of any exceeds."""

    def __init__(self, scenario: Scenario, geometry: Geometry, device: torch.device, *, once: bool = False) -> None:
        self._make = lambda one: Cut.of(one, geometry, device, once=once)
        self._scenario = scenario
        self.plain = self._make(scenario)
        self._made: dict[Terms, Cut] = {COMMON: self.plain}
        self.most_bytes = max(self.under(terms).most_bytes for terms in scenario.all_terms())

    def under(self, terms: Terms) -> Cut:
        """Return the cut under these terms; that of all where they say nothing of what is sent."""
        if terms not in self._made:
            compression = self._scenario.compression_under(terms)
            same = compression == self._scenario.compression
            self._made[terms] = self.plain if same else self._make(
                self._scenario.model_copy(update={"compression": compression})
            )  # fmt: skip
        return self._made[terms]


def check_model(scenario: Scenario) -> None:
    """Check a scenario's model and its reducer without weights or data. Raises ModelError, with the key and the reason,
    where a run could not begin."""
    for key, why in mistakes(scenario.model, scenario.tail):
        raise ModelError(f"{key}: {why}")
    vit = blank(scenario.model)
    for cut in scenario.fronts:
        check(vit, cut, scenario.tail)
    front = Front(vit, scenario.model.cut)
    if problem := misfit(scenario.phases, len(vit.blocks) - scenario.model.cut):
        raise ModelError(f"phases: {problem}")
    if problem := adapter_misfit(scenario.model, vit):
        raise ModelError(f"model.adapter: {problem}")
    check_fits(scenario, front)
