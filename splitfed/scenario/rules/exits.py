"""Rules of exits that are trained with the model: what they learn from, and what there is to see after their blocks."""

from collections.abc import Sequence

from splitfed.compression.reducers.settings import SemanticTokensConfig
from splitfed.federation.phases import Settings, phase_of
from splitfed.federation.strategies import BulyanConfig, KrumConfig, MultiKrumConfig, QFedAvgConfig
from splitfed.model.settings import ModelConfig
from splitfed.scenario.compression import Compression
from splitfed.scenario.rules.base import Found
from splitfed.scenario.sections import Federation, Training

_BLOCKS = "model.exits.blocks"


def exits_are_where_labels_are(model: ModelConfig, federation: Federation) -> Found:
    """Heads learn only where the labels are."""
    if model.exits is None or not federation.private:
        return
    if beyond := [block for block in model.exits.blocks if block > model.cut]:
        yield (
            _BLOCKS,
            f"with federation.labels: private the server has no labels that a head after block {beyond[0]} could learn "
            f"from: name blocks of the front, 1 to {model.cut}, or set labels: shared",
        )


def cascades_are_of_one_side(model: ModelConfig) -> Found:
    """What one head says reaches the next only where both are on one side."""
    if model.exits is None or model.exits.heads != "cascade":
        return
    sides = {block > model.cut for block in model.exits.blocks}
    if len(sides) == 2:
        yield (
            "model.exits.heads",
            f"in a cascade each head sees what the one before says, and that does not cross the cut after block "
            f"{model.cut}: set linear, or name blocks of one side",
        )


def exits_see_whole_tokens(model: ModelConfig, compression: Compression) -> Found:
    """After its block a head finds as many tokens of all samples."""
    if model.exits is None or not isinstance(compression.reducer, SemanticTokensConfig):
        return
    if wrong := [block for block in model.exits.blocks if block != model.cut]:
        yield (
            _BLOCKS,
            f"with the reducer {compression.reducer.kind} gates run the front as a whole, and the back sees other "
            f"tokens of each sample, so there is no head after block {wrong[0]}: name block {model.cut} alone, or set "
            "another reducer",
        )


def exits_learn_in_some_round(model: ModelConfig, federation: Federation, phases: Sequence[Settings]) -> Found:
    """There are rounds in which heads learn, those of the front with a front that does."""
    if model.exits is None:
        return
    if (after := model.exits.after) is not None and after >= federation.rounds:
        yield (
            "model.exits.after",
            f"is {after} of {federation.rounds} rounds, so the exits never learn: lower it, or raise federation.rounds",
        )
        return
    rounds = range((after or 0) + 1, federation.rounds + 1)
    of_the_front = any(block <= model.cut for block in model.exits.blocks)
    if of_the_front and all(phase_of(phases, round).frozen for round in rounds):
        way = "let a phase come before that is gradient or local" + ("" if after is None else ", or lower after")
        yield _BLOCKS, f"the front is frozen whenever its exits would learn: name blocks above {model.cut}, or {way}"
    if not of_the_front and all(phase_of(phases, round).upload_every is None for round in rounds):
        yield _BLOCKS, "nothing goes up that the exits of the back could learn from: set upload_every of a phase"


def fraug_is_of_a_head_at_the_client(training: Training, model: ModelConfig, federation: Federation) -> Found:
    """Features are made up where a head and the labels are, beside those of several images, by weights that stay."""
    if training.client.fraug is None:
        return
    key, exits = "training.client.fraug", model.exits
    if training.batch_size == 1:
        yield key, "with training.batch_size: 1 there is nothing to norm by: raise that, or leave it out"
    if training.client.chunk:
        yield key, "with training.client.chunk it would see a part of a mini-batch: leave one of them out"
    if federation.private or not federation.splits:
        return
    if exits is None or not any(block <= model.cut for block in exits.blocks):
        yield (
            key,
            "the clients have no head to make up features for: set federation.labels: private, or let model.exits name "
            f"a block of the front, 1 to {model.cut}",
        )
    elif exits.heads == "cascade" and len(exits.blocks) > 1:
        yield key, "in a cascade a head also sees what the one before says: set model.exits.heads: linear"
    if training.ahead:
        yield (
            key,
            "with training.ahead weights change while a mini-batch is on its way, and the generator's with them: leave "
            "one of them out",
        )


def disjoint_exits_change_nothing_else(model: ModelConfig, federation: Federation) -> Found:
    """Nothing takes the measure of heads and front together, or the front would depend on heads."""
    if model.exits is None or model.exits.regime != "disjoint":
        return
    if all(block > model.cut for block in model.exits.blocks) and federation.splits:
        return
    way = "set model.exits.regime to joint"
    if federation.clip.front_weights is not None:
        why = "with disjoint exits an update's norm would be that of the heads too, and change the front"
        yield "federation.clip.front_weights", f"{why}: leave it out, or {way}"
    if isinstance(federation.strategy, KrumConfig | MultiKrumConfig | BulyanConfig | QFedAvgConfig):
        why = f"{federation.strategy.kind} measures clients by heads and front together, so disjoint exits would count"
        yield "federation.strategy", f"{why}: set another, or {way}"
