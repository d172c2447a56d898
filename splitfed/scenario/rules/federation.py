"""Rules of who trains, when and in which order."""

from collections.abc import Sequence

from splitfed.data.settings import Evaluation
from splitfed.federation.phases import Frozen, Gradient, Settings
from splitfed.federation.strategies import FedAvgConfig
from splitfed.model.settings import ModelConfig
from splitfed.scenario.compression import Compression
from splitfed.scenario.engine import EngineConfig, Remote
from splitfed.scenario.rules.base import Found
from splitfed.scenario.sections import Federation, Training


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


def ahead_is_of_gradients_on_their_way(
    training: Training, federation: Federation, compression: Compression, phases: Sequence[Settings]
) -> Found:
    """A client can be ahead only of a gradient that comes back, and that nothing but its own front waits for."""
    if not training.ahead:
        return
    key = "training.ahead"
    if federation.mode == "fl":
        yield key, "with fl no gradient comes from the server: leave it out, or set another federation.mode"
    if federation.mode == "psl":
        yield (
            key,
            "with psl a step is of one mini-batch of each client, and none goes on before it: leave it out, or set "
            "another federation.mode",
        )
    if federation.private:
        yield (
            key,
            "with federation.labels: private a mini-batch goes up twice, and the second time needs an answer: leave it "
            "out, or set labels: shared",
        )
    if keys := compression.remembers:
        yield (
            key,
            f"with compression.{keys[0]} both ends go on from what has crossed of a sample, of which an answer may be "
            "on its way: leave one of them out",
        )
    if phases and not any(isinstance(phase, Gradient) for phase in phases):
        yield key, "in none of the phases does the front wait for a gradient: leave it out, or add one of kind gradient"


def checkpointing_is_of_weights_that_stay(training: Training) -> Found:
    """What is computed again must go through the weights that it went through."""
    for key in ("checkpointing", "chunk"):
        if getattr(training.client, key) and training.ahead:
            yield (
                f"training.client.{key}",
                "with training.ahead a mini-batch is gone back through when the weights are others already: leave one "
                "of them out",
            )


def chunks_are_of_a_mini_batch(training: Training) -> Found:
    """What is computed at a time is a part of a mini-batch, or all of it."""
    if (chunk := training.client.chunk or 0) > training.batch_size:
        yield (
            "training.client.chunk",
            f"is {chunk}, more images than a mini-batch has (training.batch_size: {training.batch_size}): set fewer, "
            "or leave it out",
        )


def compiled_blocks_run_alone(training: Training, model: ModelConfig, compression: Compression) -> Found:
    """What is compiled is a block that is run as it is, with nobody looking into it."""
    for name, side in (("client", training.client), ("server", training.server)):
        if not side.compile:
            continue
        key = f"training.{name}.compile"
        if model.exits is not None:
            yield key, "with model.exits heads look at what blocks make: leave one of them out"
        if model.adaptive is not None:
            yield key, "with model.adaptive blocks are run otherwise in each mini-batch: leave one of them out"
        if model.adapter.kind in ("bottleneck", "hydra"):
            yield (
                key,
                f"with model.adapter: {model.adapter.kind} something is hung on their layers: leave one of them out",
            )
        if compression.reducer.ragged:
            yield key, f"the gates of the reducer {compression.reducer.kind} run the blocks: leave one of them out"
    for other in ("checkpointing", "chunk"):
        if training.client.compile and getattr(training.client, other):
            yield (
                f"training.client.{other}",
                "compiled blocks are not computed again: set it, or compile, to its default",
            )


def local_norms_are_learned(federation: Federation, model: ModelConfig, phases: Sequence[Settings]) -> Found:
    """What is a client's own must learn, and something else must come together."""
    if not federation.local_norms:
        return
    key, adapter = "federation.local_norms", model.adapter.kind
    if adapter == "norms":
        yield key, "with model.adapter: norms nothing of the front would come together: leave one of them out"
    elif "front" in model.adapter.sides:
        yield key, f"with model.adapter: {adapter} no LayerNorm of the front learns: leave one of them out"
    if phases and all(isinstance(phase, Frozen) for phase in phases):
        yield key, "in none of the phases does the front learn: leave it out, or let a phase be gradient or local"


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


def evaluation_asks_of_the_clients(evaluation: Evaluation, federation: Federation) -> Found:
    """No more clients are asked than there are."""
    asked, clients = evaluation.cohort, federation.clients
    if asked is not None and asked > clients:
        yield "evaluation.cohort", f"{asked} of {clients} clients cannot be asked: lower it, or leave it out"


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
