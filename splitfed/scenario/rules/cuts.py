"""Rules of fronts of different depth: what does not go with blocks that are the front's for some and the back's for
others."""

from collections.abc import Sequence

from splitfed.federation.memory import Memory
from splitfed.federation.phases import Gradient, Settings
from splitfed.federation.strategies import FedAvgConfig
from splitfed.model.adapters.subsets import Whole
from splitfed.model.settings import ModelConfig
from splitfed.scenario.compression import Compression
from splitfed.scenario.rules.base import Found
from splitfed.scenario.sections import Federation, Training

_SAME = "set the same cut for all"


def _span(model: ModelConfig, federation: Federation) -> tuple[int, int]:
    """Return how many blocks a front has, at least and at most."""
    found = [one.cut or model.cut for one in federation.profiles.values()] or [model.cut]
    return min(found), max(found)


def cuts_are_of_a_front(federation: Federation) -> Found:
    """Only a client that holds a part of the model can hold more or less of it."""
    if federation.splits:
        return
    for name, profile in federation.profiles.items():
        if profile.cut is not None:
            yield (
                f"federation.profiles.{name}.cut",
                "with fl every client holds the whole model: leave it out, or set another federation.mode",
            )


def whole_model_is_cut_as_some_are(model: ModelConfig, federation: Federation) -> Found:
    """Where the whole model is cut, to be evaluated and to answer, is among where clients cut it."""
    least, most = _span(model, federation)
    if federation.splits and not least <= model.cut <= most:
        which = f"{least} to {most}: set one of these" if least < most else f"{least}: set that"
        yield "model.cut", f"is {model.cut}, where the whole model is evaluated, and the profiles' cuts are {which}"


def uneven_fronts_have_a_mean(
    model: ModelConfig, federation: Federation, compression: Compression, phases: Sequence[Settings],
    memory: Memory | None, training: Training,
) -> Found:  # fmt: skip
    """A block that some fronts have and others leave to the back is trained in both places, and becomes their mean."""
    least, most = _span(model, federation)
    if least == most or not federation.splits:
        return
    which = f"fronts have {least} to {most} blocks"
    if federation.mode == "sl":
        yield (
            "federation.profiles",
            f"{which}, and with sl one front is handed on from client to client: {_SAME}, or another federation.mode",
        )
    elif not isinstance(federation.strategy, FedAvgConfig):
        yield (
            "federation.strategy",
            f"{federation.strategy.kind}: {which}, and what a front lacks counts as the back's, of which FedAvg alone "
            f"makes a mean: leave it out, or {_SAME}",
        )
    if compression.front_weights.delta is not False:
        yield (
            "compression.front_weights.delta",
            f"{which}, so there is no one front that all differ from: set it to false, or {_SAME}",
        )
    if federation.local_norms:
        yield (
            "federation.local_norms",
            f"{which}, and norms that are a client's own in a deeper front the back has for others: leave it out, or "
            f"{_SAME}",
        )
    if training.client.fraug is not None:
        yield (
            "training.client.fraug",
            f"{which}, and features are made up for a head that all clients train alike: leave it out, or {_SAME}",
        )
    if model.adaptive is not None:
        yield (
            "model.adaptive",
            f"{which}, and a block has one budget and one turn to train: leave it out, or {_SAME}",
        )
    if memory is not None:
        yield "memory", f"{which}, and memory is of what one front makes: leave it out, or {_SAME}"
    elif any(not isinstance(phase, Gradient) for phase in phases):
        kind = next(phase.kind for phase in phases if not isinstance(phase, Gradient))
        why = {
            "frozen": "the back would go on training blocks that are frozen in deeper fronts",
            "local": "an auxiliary net stands in for what follows one of them",
        }[kind]
        yield "phases", f"{which}, and in a {kind} phase {why}: leave it out, or {_SAME}"
    if type(model.adapter) is not Whole:
        yield (
            "model.adapter",
            f"{model.adapter.kind}: {which}, and what it freezes in a deeper front the back trains whole: leave it "
            f"out, or {_SAME}",
        )


def exits_are_of_one_side(model: ModelConfig, federation: Federation) -> Found:
    """A head is either every client's or the server's."""
    least, most = _span(model, federation)
    if model.exits is None or least == most:
        return
    if between := [block for block in model.exits.blocks if least < block <= most]:
        yield (
            "model.exits.blocks",
            f"fronts have {least} to {most} blocks, so a head after block {between[0]} would be some clients' and "
            f"for others the server's: name blocks up to {least} or above {most}, or {_SAME}",
        )
