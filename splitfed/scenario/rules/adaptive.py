"""Rules of blocks that train by budgets (`model.adaptive`): what else may look at tokens, and teach the front."""

from collections.abc import Sequence

from splitfed.federation.memory import Memory
from splitfed.federation.phases import Local, Settings
from splitfed.model.adaptive.settings import Sides
from splitfed.model.settings import ModelConfig
from splitfed.scenario.compression import Compression
from splitfed.scenario.rules.base import Found
from splitfed.scenario.sections import Federation, Training

_KEY = "model.adaptive"


def blocks_that_train_are_there(model: ModelConfig, federation: Federation) -> Found:
    """A front has as many blocks as train, and both sides learn something."""
    if model.adaptive is None or not isinstance(sides := model.adaptive.trained, Sides):
        return
    if (sides.front or 0) > model.cut:
        yield (
            f"{_KEY}.trained.front",
            f"is {sides.front:g}, but the front has {model.cut}: lower it, or raise model.cut",
        )
    if sides.front == 0 and model.adaptive.embedding != "always":
        yield f"{_KEY}.trained.front", "is 0, so nothing of the front ever learns: raise it, such as to 0.5"
    if sides.back == 0 and federation.private:
        yield f"{_KEY}.trained.back", "is 0, and with labels: private the back has nothing but blocks: raise it"


def budgets_follow_each_mini_batch(
    model: ModelConfig, federation: Federation, memory: Memory | None, phases: Sequence[Settings]
) -> Found:
    """Each side goes by what it sees of one mini-batch after the other, for the gradient that the back returns."""
    if model.adaptive is None:
        return
    kind = model.adaptive.kind
    if federation.mode == "psl":
        yield (
            _KEY,
            f"{kind}: with psl mini-batches of several clients are one step, and each has other numbers of tokens and "
            "blocks: leave it out, or set another federation.mode",
        )
    if memory is not None:
        yield (
            _KEY,
            f"{kind}: what memory keeps was made by a front at rest, of all tokens, and is not seen as it comes: leave "
            "it out, or memory",
        )
    if model.adapter.kind in ("frozen", "head"):
        yield (
            _KEY,
            f"{kind}: with model.adapter: {model.adapter.kind} no block of the front trains, so none can be chosen: "
            "leave one of them out",
        )
    elif model.adapter.turns > 1:
        yield (
            "model.adapter.parts",
            f"is {model.adapter.turns}, so of a block another part learns each round, and with model.adaptive of the "
            "round other blocks: set it to 1, or leave model.adaptive out",
        )
    if any(isinstance(phase, Local) for phase in phases):
        yield (
            "phases",
            "local: an auxiliary net teaches all of the front in each mini-batch, and with model.adaptive some blocks "
            "rest: leave one of them out",
        )


def budgets_see_whole_mini_batches(model: ModelConfig, training: Training) -> Found:
    """Budgets move by what a mini-batch shows, and its tokens are chosen together."""
    if model.adaptive is not None and training.client.chunk:
        yield (
            "training.client.chunk",
            f"with model.adaptive: {model.adaptive.kind} budgets go by whole mini-batches: leave one of them out, or "
            "lower training.batch_size",
        )


def fewer_tokens_can_be_sent(model: ModelConfig, compression: Compression, federation: Federation) -> Found:
    """Of each sample other tokens are left, in other places, at each visit."""
    if model.adaptive is None or not federation.splits:
        return
    reducer, kind = compression.reducer, model.adaptive.kind
    way = "set one that sends samples as they are or fewer of their tokens or values, such as discard_tokens"
    if reducer.ragged:
        why = f"its gates run the front's blocks, and so does model.adaptive: {kind}"
        yield "compression.reducer", f"{reducer.kind}: {why}: {way}"
    elif not reducer.single:
        why = f"it makes one sample of several, and with model.adaptive: {kind} tokens of other places are left of each"
        yield "compression.reducer", f"{reducer.kind}: {why}: {way}"
    if keys := compression.remembers:
        yield (
            f"compression.{keys[0]}",
            f"with model.adaptive: {kind} other tokens of a sample cross at each visit, of which no copy is kept: "
            "leave one of them out",
        )
