"""The rules between keys and sections of a scenario: what each of them may be alone, but not together.

Each rule takes, by their names, the sections that it reads, whose keys are valid one by one. It yields the keys that do
not go with others, each with the reason and the way out. All rules run after validation, whatever the order of fields.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from inspect import signature

from pydantic import BaseModel

from splitfed.compression.reducers.settings import NoneConfig
from splitfed.data.settings import DataConfig, Evaluation
from splitfed.federation.memory import Memory
from splitfed.federation.phases import Frozen, Gradient, Local, Settings
from splitfed.federation.strategies import FedAvgConfig
from splitfed.model.optim_settings import SideConfig
from splitfed.model.settings import ModelConfig
from splitfed.scenario.budget import BudgetConfig
from splitfed.scenario.compression import CacheConfig, Compression, Packing
from splitfed.scenario.engine import Deployment, EngineConfig, Remote
from splitfed.scenario.sections import Federation, Training

Found = Iterator[tuple[str, str]]
Phases = Sequence[Settings]
Rule = Callable[..., Found]

# Packings of what crosses the cut, and of the layers that a reducer brings.
_OF_THE_CUT = ("smashed", "targets", "cut_gradient", "parts")
_OF_THE_TAIL = ("tail_smashed", "tail_gradient")


def cohort_is_of_the_clients(federation: Federation) -> Found:
    """No more clients are sampled than there are."""
    cohort, clients = federation.cohort, federation.clients
    if cohort is not None and cohort > clients:
        yield (
            "federation.cohort",
            f"{cohort} of {clients} clients cannot be sampled: lower it, or leave it out for all",
        )


def order_is_of_a_shared_back(federation: Federation) -> Found:
    """Clients can come as they arrive only where all of them update one back."""
    mode = federation.mode
    how = {"sl": "one after another, or there is no front to hand on", "psl": "in joint steps"}
    how |= dict.fromkeys(("sfl-v1", "fl"), "at once and in no order")
    if federation.order == "arrival" and mode in how:
        yield "federation.order", f"with {mode} clients train {how[mode]}: leave it out, or set mode: sfl-v2"


def wave_is_of_those_at_once(federation: Federation) -> Found:
    """A wave is a part of a cohort that trains at once."""
    if (wave := federation.wave) is None:
        return
    if federation.one_by_one:
        way = ", or set order: arrival" if federation.mode == "sfl-v2" else ""
        yield "federation.wave", f"with {federation.mode} clients train one after another: leave it out{way}"
    elif wave > (size := federation.cohort_size):
        yield "federation.wave", f"{wave} at once of {size} clients a round: lower it, or leave it out for all"


def patience_is_of_joint_steps(federation: Federation) -> Found:
    """Only a joint step waits for those who are missing."""
    mode = federation.mode
    if federation.patience is not None and mode != "psl":
        yield "federation.patience", f"with {mode} no client waits for another: leave it out, or set mode: psl"


def private_labels_need_whole_mini_batches(federation: Federation) -> Found:
    """With private labels a mini-batch takes two turns with the server, and nothing may come between them."""
    if not federation.private:
        return
    if federation.mode == "fl":
        yield "federation.labels", "with fl no labels leave a client anyway: leave it out, or set another mode"
    if federation.mode == "psl":
        yield (
            "federation.labels",
            "with psl the back takes a step for all clients at once, and each would have to wait for it twice: set "
            "another mode, or labels: shared",
        )
    if federation.mode == "sfl-v2" and federation.order == "arrival":
        yield (
            "federation.labels",
            "with order: arrival another client's update would come between the halves of a mini-batch: set order: "
            "fixed, or mode: sfl-v1",
        )


def steps_or_epochs(federation: Federation) -> Found:
    """A client trains for a number of steps or of epochs, not both."""
    if federation.local_steps is not None and federation.local_epochs is not None:
        yield "federation.local_steps", "local_epochs is set too: keep one of them and set the other to null"


def strategy_has_something_to_aggregate(federation: Federation) -> Found:
    """A strategy gets as many fronts as it needs."""
    strategy = federation.strategy
    if problem := strategy.problem(federation.cohort_size):
        yield "federation.strategy", f"{strategy.kind}: {problem}"
    elif federation.mode == "sl" and strategy != FedAvgConfig():
        yield (
            "federation.strategy",
            f"{strategy.kind}: with sl nothing is aggregated: leave it out, or set another mode",
        )


def clip_is_of_what_crosses(federation: Federation) -> Found:
    """Only what a client sends can be shortened."""
    clip = federation.clip
    if clip.smashed is not None and not federation.splits:
        yield "federation.clip.smashed", "with fl no activations leave a client: leave it out"
    if clip.tail_gradient is not None and not (federation.splits and federation.private):
        yield (
            "federation.clip.tail_gradient",
            "only with labels: private does a gradient come up: leave it out, or set labels: private",
        )


def oversample_takes_more_than_the_cohort(federation: Federation, engine: EngineConfig) -> Found:
    """More than the cohort can be sampled only where there are more, and something tells who finishes first."""
    if federation.oversample == 1:
        return
    if federation.cohort_size == federation.clients:
        yield (
            "federation.oversample",
            f"all {federation.clients} clients are sampled already: set a smaller cohort, or leave it out",
        )
    elif why := _no_clock(federation, engine):
        yield "federation.oversample", why


def deadline_is_on_a_clock(federation: Federation, engine: EngineConfig) -> Found:
    """A round can be over at a time only where something tells the time."""
    if federation.deadline is not None and (why := _no_clock(federation, engine)):
        yield "federation.deadline", why


def _no_clock(federation: Federation, engine: EngineConfig) -> str | None:
    if isinstance(engine, Deployment) or federation.availability.timed:
        return None
    return (
        "nothing tells the time of a simulation: set federation.availability, or for splitfed serve engine: deployment"
    )


def availability_is_of_a_simulation(federation: Federation, engine: EngineConfig) -> Found:
    """Who is there is assumed of simulated clients only."""
    if isinstance(engine, Deployment) and federation.availability.kind != "none":
        yield "federation.availability", "a deployment's clients have their own: set it to none"


def phases_fill_the_rounds(phases: Phases, federation: Federation) -> Found:
    """Each phase but the last says how many rounds it lasts, and some are left for the last."""
    before = [phase.rounds for phase in phases[:-1]]
    for place, rounds in enumerate(before, 1):
        if rounds is None:
            yield "phases", f"phase {place} says no rounds, but the last phase alone takes those that are left"
    if not phases or None in before:
        return
    left = federation.rounds - sum(rounds or 0 for rounds in before)
    if left < 1:
        yield (
            "phases",
            f"those before the last one take {federation.rounds - left} rounds, and federation.rounds is "
            f"{federation.rounds}: raise that, or shorten them",
        )
    elif phases[-1].rounds not in (None, left):
        yield (
            "phases",
            f"the last one is of {phases[-1].rounds} rounds, where {left} of federation.rounds are left: leave its "
            "rounds out",
        )


def phases_are_of_a_front(phases: Phases, federation: Federation) -> Found:
    """Only a front that is apart from the rest of the model can learn otherwise, or rest."""
    if all(isinstance(phase, Gradient) for phase in phases):
        return
    if not federation.splits:
        yield "phases", "with fl there is no front apart from the rest: leave it out, or set another federation.mode"
    elif federation.private:
        yield (
            "phases",
            "with federation.labels: private the tail learns beside the front and crosses with it: leave it out, or "
            "set labels: shared",
        )


def phases_teach_the_back(phases: Phases) -> Found:
    """In some phase something goes up."""
    if phases and all(isinstance(phase, Local) and phase.upload_every is None for phase in phases):
        yield (
            "phases",
            "with upload_every: null throughout nothing goes up, and the back learns nothing: set upload_every, or "
            "add a phase in which it learns, such as frozen",
        )


def memory_is_of_a_frozen_front(memory: Memory | None, phases: Phases) -> Found:
    """What is kept is of use only as long as the front stays as it is."""
    if memory is not None and not (phases and isinstance(phases[-1], Frozen)):
        yield "memory", "is of a front that stays as it is to the end: let the last of phases be frozen"


def memory_is_of_fixed_images(memory: Memory | None, data: DataConfig) -> Found:
    """Each image crosses once, so it cannot look another way each time."""
    if memory is not None and data.augment != "none" and data.variants is None:
        yield "memory", f"with data.augment: {data.augment} images never look the same twice: set data.variants"
    if memory is not None and (memory.variants or 1) > (data.variants or 1):
        yield (
            "memory.variants",
            f"is {memory.variants}, and data.variants gives an image {data.variants or 1}: lower it",
        )


def memory_takes_whole_samples(memory: Memory | None, compression: Compression) -> Found:
    """What is kept must be read without what came before it."""
    if memory is not None and (keys := compression.remembers):
        yield (
            f"compression.{keys[0]}",
            "memory takes samples that cross once, and differences are of such as come again: leave one of them out",
        )


def memory_is_gone_over(memory: Memory | None, phases: Phases, federation: Federation) -> Found:
    """The last phase has rounds for all to send their images, and for the passes over them."""
    if memory is None or not phases or any(phase.rounds is None for phase in phases[:-1]):
        return
    left = federation.rounds - sum(phase.rounds or 0 for phase in phases[:-1])
    sending, passes = -(-federation.clients // federation.cohort_size), memory.passes or 1
    if 0 < left < sending + passes:
        yield (
            "memory",
            f"all clients send their images in {sending} rounds of the last phase, then come {passes} passes, and it "
            f"has {left} rounds: raise federation.rounds",
        )


def tail_is_of_private_labels(model: ModelConfig, federation: Federation) -> Found:
    """A client holds the end of the model only where labels stay with it."""
    tail = model.tail
    if tail is not None and not federation.private:
        yield (
            "federation",
            f"model.tail is {tail}, but only with labels: private does a client hold a tail: leave it out, or set "
            "labels: private",
        )


def server_trains_what_it_holds(training: Training, federation: Federation) -> Found:
    """With `fl` the server holds nothing that it could train."""
    if federation.splits:
        return
    server = training.server
    plain = SideConfig(device=server.device)
    keys = [name for name in SideConfig.model_fields if getattr(server, name) != getattr(plain, name)]
    yield from _leave_out("training.server", keys, "with fl clients train the whole model, as training.client says")


def reducer_takes_the_batches(compression: Compression, training: Training) -> Found:
    """A reducer can work on mini-batches of this size."""
    reducer = compression.reducer
    if problem := reducer.problem(training.batch_size):
        yield "compression.reducer", f"{reducer.kind}: {problem}"


def loaded_weights_are_in_a_file(compression: Compression, model: ModelConfig) -> Found:
    """Clients can load only what lies somewhere, and where they are."""
    key = "compression.front_weights.initial"
    if compression.front_weights.initial == "send":
        return
    if not model.pretrained and model.weights is None:
        yield key, "the model's weights are drawn, so there are none to load: set it to send, or model.pretrained"
    if getattr(compression.reducer, "weights", None) is not None:
        yield key, "the reducer's layers come from a file of the server's, compression.reducer.weights: set it to send"


def copies_are_of_single_samples(compression: Compression, data: DataConfig, federation: Federation) -> Found:
    """Both ends can keep a copy of a sample only where what crosses is of one sample, and that comes again."""
    reducer, keys = compression.reducer, [f"compression.{key}" for key in compression.remembers]
    if not keys:
        if compression.cache != CacheConfig():
            yield "compression.cache", "nothing is kept without delta or skip: leave it out, or set smashed.delta"
        return
    if not federation.splits:
        return  # as `what_is_packed_crosses` says
    if not reducer.single:
        yield (
            keys[0],
            f"the reducer {reducer.kind} makes samples of several images, of which none comes again: leave it out, or "
            "set a reducer that merges none, such as discard_tokens",
        )
    if data.augment != "none" and data.variants is None:
        yield (
            keys[0],
            f"with augment: {data.augment} an image is another at each visit: set data.variants, such as 2, or "
            "data.augment: none",
        )


def what_is_packed_crosses(compression: Compression, federation: Federation) -> Found:
    """What does not cross in a mode cannot be made smaller."""
    if federation.splits and federation.private:
        if compression.targets.codec != Packing().codec:
            yield "compression.targets.codec", "with federation.labels: private no targets cross: leave it out"
        return
    roles = _OF_THE_TAIL if federation.splits else (*_OF_THE_CUT, *_OF_THE_TAIL)
    keys = [role for role in roles if getattr(compression, role) != Compression.model_fields[role].default]
    if federation.splits:
        why, way = "only with federation.labels: private is there a second cut", "set that"
    else:
        why, way = "with fl nothing crosses a cut, weights are packed by front_weights", "set another federation.mode"
        keys = [*([] if isinstance(compression.reducer, NoneConfig) else ["reducer"]), *keys]
    yield from _leave_out("compression", keys, why, f", or {way}")


def _leave_out(section: str, keys: list[str], why: str, or_else: str = "") -> Found:
    """Yield the keys of a section that one cause makes idle: as one problem, of the section where they are several."""
    if len(keys) == 1:
        yield f"{section}.{keys[0]}", f"{why}: leave it out{or_else}"
    elif keys:
        yield section, f"{why}: leave out {', '.join(keys[:-1])} and {keys[-1]}{or_else}"


def evaluation_asks_of_the_clients(evaluation: Evaluation, federation: Federation) -> Found:
    """No more clients are asked than there are."""
    asked, clients = evaluation.cohort, federation.clients
    if asked is not None and asked > clients:
        yield "evaluation.cohort", f"{asked} of {clients} clients cannot be asked: lower it, or leave it out"


def budget_can_be_spent(budget: BudgetConfig, federation: Federation) -> Found:
    """Cut bytes are spent only where there is a cut."""
    if not federation.splits and budget.of == "cut":
        yield (
            "budget.kind",
            "with fl nothing crosses a cut to spend it: set it to none, rounds end the run, or to total_bytes or "
            "images",
        )


def engine_waits_longer_than_a_joint_step(engine: EngineConfig, federation: Federation) -> Found:
    """Nobody is given up while a joint step of `psl` waits for another."""
    if federation.mode == "psl" and isinstance(engine, Remote):
        waits = federation.patience_seconds
        if engine.deadline <= waits:
            yield (
                "engine.deadline",
                f"after {engine.deadline:g} s a joint step of psl may still wait for a client: raise it above "
                f"federation.patience ({waits:g} s), or lower that",
            )


RULES: tuple[Rule, ...] = (
    cohort_is_of_the_clients,
    order_is_of_a_shared_back,
    wave_is_of_those_at_once,
    patience_is_of_joint_steps,
    private_labels_need_whole_mini_batches,
    steps_or_epochs,
    strategy_has_something_to_aggregate,
    clip_is_of_what_crosses,
    availability_is_of_a_simulation,
    oversample_takes_more_than_the_cohort,
    deadline_is_on_a_clock,
    phases_fill_the_rounds,
    phases_are_of_a_front,
    phases_teach_the_back,
    memory_is_of_a_frozen_front,
    memory_is_of_fixed_images,
    memory_takes_whole_samples,
    memory_is_gone_over,
    tail_is_of_private_labels,
    server_trains_what_it_holds,
    reducer_takes_the_batches,
    loaded_weights_are_in_a_file,
    copies_are_of_single_samples,
    what_is_packed_crosses,
    evaluation_asks_of_the_clients,
    budget_can_be_spent,
    engine_waits_longer_than_a_joint_step,
)


def breaks(rule: Rule, scenario: BaseModel) -> Found:
    """Yield the keys of a scenario that break a rule, as `section.key`, each with the reason and the way out."""
    return rule(**{section: getattr(scenario, section) for section in signature(rule).parameters})


def broken(scenario: BaseModel) -> Found:
    """Yield every key of a scenario that breaks a rule, as `section.key`, with the reason and the way out."""
    for rule in RULES:
        yield from breaks(rule, scenario)


def broken_in_part(scenario: BaseModel) -> Found:
    """Yield what is broken in a scenario that lacks some of its fields: a rule that would read one of them is silent
    about it."""
    for rule in RULES:
        with suppress(AttributeError):
            yield from breaks(rule, scenario)
