"""Rules of what teaches the front, and of what the server keeps once nothing does."""

from collections.abc import Sequence

from splitfed.data.settings import DataConfig
from splitfed.federation.memory import Memory
from splitfed.federation.phases import Frozen, Gradient, Local, Phase, Settings
from splitfed.scenario.compression import Compression
from splitfed.scenario.rules.base import Found
from splitfed.scenario.sections import Federation, Training

Phases = Sequence[Settings]


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


def chunks_are_of_nets_that_learn_by_themselves(phases: Phases, training: Training) -> Found:
    """A net is fitted to the server's gradient of a whole mini-batch, all of which it keeps for that."""
    if training.client.chunk and any(isinstance(phase, Local) and phase.align_every for phase in phases):
        yield (
            "training.client.chunk",
            "with align_every in phases the auxiliary net is fitted to whole mini-batches: leave one of them out, or "
            "lower training.batch_size",
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


def memory_alters_what_is_alike(memory: Memory | None, compression: Compression) -> Found:
    """Only samples of as many tokens can be mixed, or lose as many."""
    if memory is None or not compression.reducer.ragged:
        return
    for key in ("mix", "drop_tokens"):
        if getattr(memory, key):
            yield (
                f"memory.{key}",
                f"the reducer {compression.reducer.kind} sends samples of different numbers of tokens: leave it out",
            )


def nets_are_fitted_to_what_goes_up(phases: Phases) -> Found:
    """Only what goes up can be answered."""
    for place, phase in enumerate(phases, 1):
        if isinstance(phase, Local) and phase.align_every and phase.upload_every is None:
            yield (
                "phases",
                f"phase {place} has align_every: {phase.align_every}, but with upload_every: null nothing goes up that "
                "could be answered: set upload_every, or align_every to 0",
            )


def copies_are_of_samples_that_come_again(
    compression: Compression, phases: Phases, memory: Memory | None, federation: Federation
) -> Found:
    """There are rounds in which a sample crosses as a difference, or its gradient does; into memory it crosses once."""
    if not (phases and federation.splits):
        return
    crossing = [Phase(one, 0) for one in (phases if memory is None else phases[:-1])]
    for key in compression.remembers:
        if key.startswith("smashed") and not any(phase.upload_every for phase in crossing):
            why = "into memory each sample crosses once" if memory is not None else "in no phase do samples cross"
            way = "leave it out, or let a phase come before in which they go up each time"
            yield f"compression.{key}", f"{why}, and of none comes a difference: {way}"
        if key.startswith("cut_gradient") and not any(phase.answer_every for phase in crossing):
            way = "leave it out, or let a phase be gradient, or local with align_every"
            yield f"compression.{key}", f"no gradient comes down in any phase: {way}"


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
