"""Rules of what differs between clients or changes in time of what is sent: profiles' own compression, and the
operating points that a controller chooses from."""

from collections.abc import Iterator

from splitfed.federation.memory import Memory
from splitfed.federation.phases import Frozen, Gradient, PhaseConfig
from splitfed.link.settings import LinkConfig
from splitfed.scenario.compression import Compression, PartialCompression
from splitfed.scenario.engine import Deployment, EngineConfig
from splitfed.scenario.rules.base import Found
from splitfed.scenario.sections import ControlConfig, Federation, FixedControl, Training

_OF_THE_RUN = "is of the whole run: leave it out here"
_WEIGHTS = ("front_weights", "parts")


def parts(federation: Federation, control: ControlConfig) -> Iterator[tuple[str, PartialCompression]]:
    """Yield what is another than `compression` for some clients or rounds, with the key under which it stands."""
    for name, profile in federation.profiles.items():
        if profile.compression is not None:
            yield f"federation.profiles.{name}.compression", profile.compression
    for name, point in control.points.items():
        yield f"control.points.{name}.compression", point.compression


def what_ends_keep_is_alike(federation: Federation, control: ControlConfig, compression: Compression) -> Found:
    """What both ends keep from round to round is the same for all clients."""
    told = set[str]()
    for place, part in parts(federation, control):
        if "cache" in part.model_fields_set:
            yield f"{place}.cache", _OF_THE_RUN
        for key in sorted(part.front_weights.model_fields_set & {"delta", "initial"}):
            yield f"{place}.front_weights.{key}", _OF_THE_RUN
        section = "control" if place.startswith("control") else place
        if (kept := compression.remembers or part.remembers) and section not in told:
            told.add(section)
            yield (
                section,
                f"with {kept[0]} both ends keep samples as they crossed, and there all cross alike: leave it out, or "
                f"{kept[0]}",
            )


def weights_that_are_kept_are_alike(
    federation: Federation, control: ControlConfig, compression: Compression, phases: tuple[PhaseConfig, ...]
) -> Found:  # fmt: skip
    """Weights that a client keeps, to build on later, come to all in the same frame."""
    delta = compression.front_weights.delta is not False
    if not (delta or any(isinstance(phase, Frozen) for phase in phases)):
        return
    why = "with compression.front_weights.delta" if delta else "with a frozen phase"
    for place, part in parts(federation, control):
        for key in _WEIGHTS:
            if key in part.model_fields_set and not getattr(part, key).model_fields_set <= {"delta", "initial"}:
                yield f"{place}.{key}", f"{why} clients keep weights, and all have the same: leave it out"


def memory_is_of_one_reducer(
    federation: Federation, control: ControlConfig, compression: Compression, memory: Memory | None
) -> Found:
    """What the server keeps it restores later, without the client."""
    if memory is None:
        return
    for place, part in parts(federation, control):
        if "reducer" in part.model_fields_set and part.reducer != compression.reducer:
            yield f"{place}.reducer", "memory keeps what one reducer has made: leave it out, or memory"


def points_are_of_what_crosses(
    control: ControlConfig, federation: Federation, memory: Memory | None, phases: tuple[PhaseConfig, ...],
    training: Training,
) -> Found:  # fmt: skip
    """A point changes what crosses the cut in rounds to come."""
    if isinstance(control, FixedControl):
        return
    if not federation.splits:
        yield "control", "with fl nothing crosses a cut: leave it out, or set another federation.mode"
    if memory is not None:
        yield "control", "what memory takes crosses once, whatever comes after it: leave it out, or memory"
    for name, point in control.points.items():
        if point.gradient_every == 1:
            continue
        key = f"control.points.{name}.gradient_every"
        if federation.private:
            yield key, "with federation.labels: private the back learns from no mini-batch without its gradient: set 1"
        elif training.ahead:
            yield key, "with training.ahead a client waits for a gradient of each mini-batch: set 1, or leave ahead out"
        elif phases and not any(isinstance(phase, Gradient) for phase in phases):
            yield key, "in no phase does the gradient teach the front: leave it out"
    told = {name: point.utility is not None for name, point in control.points.items()}
    if any(told.values()) and not all(told.values()):
        lacking = next(name for name, given in told.items() if not given)
        yield f"control.points.{lacking}", "utility is missing, which other points have: give it to all or to none"


def points_differ(control: ControlConfig, federation: Federation, compression: Compression) -> Found:
    """Of two points at which the same crosses, one is another's name that was written wrong."""
    profiles = [compression]
    profiles += [
        one.compression.over(compression) for one in federation.profiles.values() if one.compression is not None
    ]
    found: list[tuple[str, tuple[object, ...]]] = []
    for name, point in control.points.items():
        comes_to = point.gradient_every, *(point.compression.over(one) for one in profiles)
        alike = [other for other, known in found if known == comes_to]
        if alike:
            yield (
                f"control.points.{name}",
                f"is the same as {alike[0]}, for every client: say what is another at it, or leave it out",
            )
        found.append((name, comes_to))


def targets_are_on_a_clock(
    control: ControlConfig, federation: Federation, engine: EngineConfig, link: LinkConfig
) -> Found:
    """Seconds can be kept to only where something tells them."""
    if isinstance(control, FixedControl) or not control.target.timed or isinstance(engine, Deployment):
        return
    if not federation.timed(link):
        yield (
            "control.target",
            f"{control.target.kind}: nothing tells the time of a simulation: set link or federation.availability, or "
            "for splitfed serve engine: deployment",
        )
