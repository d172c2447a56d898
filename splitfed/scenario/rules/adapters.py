"""Rules of adapters that are divided into parts: what goes with parts that take turns."""

from collections.abc import Sequence

from splitfed.federation.phases import Gradient, Settings
from splitfed.federation.strategies import (
    BulyanConfig,
    FedAvgConfig,
    FedMedianConfig,
    FedProxConfig,
    FedTrimmedAvgConfig,
    KrumConfig,
    MultiKrumConfig,
)
from splitfed.model.settings import ModelConfig
from splitfed.scenario.compression import Compression
from splitfed.scenario.rules.base import Found
from splitfed.scenario.sections import Federation

_PARTS = "model.adapter.parts"
# These make a round's front of that round's replies alone.
_FORGETFUL = (
    FedAvgConfig, FedProxConfig, FedMedianConfig, FedTrimmedAvgConfig, KrumConfig, MultiKrumConfig, BulyanConfig,
)  # fmt: skip


def parts_take_turns_where_they_cross(model: ModelConfig, federation: Federation) -> Found:
    """What is divided is sent, and each part has its turn."""
    adapter = model.adapter
    if adapter.turns == 1:
        return
    if federation.splits and "back" in adapter.sides:
        yield (
            _PARTS,
            f"is {adapter.turns}, and of what follows the front nothing crosses to be divided: set it to 1, or on: "
            "front",
        )
    if adapter.turns > federation.rounds:
        yield (
            _PARTS,
            f"is {adapter.turns} of {federation.rounds} rounds, so some never learn: lower it, or raise "
            "federation.rounds",
        )


def parts_are_sent_whole(model: ModelConfig, compression: Compression, phases: Sequence[Settings]) -> Found:
    """Who has which part is known by the rounds in which it was trained, and by nothing else."""
    if model.adapter.turns == 1:
        return
    why = f"is {model.adapter.turns}: parts cross in turn"
    if compression.front_weights.delta is not False:
        yield (
            _PARTS,
            f"{why}, and none has a difference to the round before: set it to 1, or front_weights.delta: false",
        )
    if compression.front_weights.initial == "load":
        yield _PARTS, f"{why}, as the server has them: set it to 1, or compression.front_weights.initial: send"
    if not all(isinstance(phase, Gradient) for phase in phases):
        yield _PARTS, f"{why}, while the gradient teaches the front: set it to 1, or leave phases out"


def parts_are_made_of_one_round(model: ModelConfig, federation: Federation) -> Found:
    """A strategy sees another part each round."""
    if model.adapter.turns > 1 and not isinstance(federation.strategy, _FORGETFUL):
        yield (
            "federation.strategy",
            f"{federation.strategy.kind} may keep something for each array that it has seen, and with "
            f"{_PARTS}: {model.adapter.turns} those of each round are others: set parts to 1, or FedAvg",
        )
