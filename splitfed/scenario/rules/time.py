"""Rules of what tells the time: availability, links, profiles, deadlines."""

import math

from splitfed.federation.availability import Drawn
from splitfed.federation.profiles import dealt
from splitfed.link.settings import LinkConfig, ServerLink
from splitfed.scenario.engine import Deployment, EngineConfig
from splitfed.scenario.rules.base import Found
from splitfed.scenario.sections import Federation
from splitfed.seeds import Key

_ROUNDING = 1e-6  # by how much shares that are written with a few digits may miss 1


def availability_is_of_a_simulation(federation: Federation, engine: EngineConfig) -> Found:
    """Who is there is assumed of simulated clients only."""
    if isinstance(engine, Deployment) and federation.availability.kind != "none":
        yield "federation.availability", "a deployment's clients have their own: set it to none"


def link_is_of_a_simulation(federation: Federation, engine: EngineConfig, link: LinkConfig) -> Found:
    """Links are assumed of simulated clients only, and the server's is shared by such."""
    if isinstance(engine, Deployment) and link.timed:
        yield "link", "a deployment's clients have their own: set it to ideal"
    links = [link, *(profile.link for profile in federation.profiles.values())]
    if federation.server.link != ServerLink() and not any(one is not None and one.timed for one in links):
        yield "federation.server.link", "with an ideal link all bytes cross at once: leave it out, or set link"


def devices_are_of_a_simulation(federation: Federation, engine: EngineConfig) -> Found:
    """How clients are connected and what machines compute with is assumed of simulated ones only."""
    if not isinstance(engine, Deployment):
        return
    for name, profile in federation.profiles.items():
        for key, told in (("link", profile.link is not None), ("device.flops", profile.device.flops is not None)):
            if told:
                yield f"federation.profiles.{name}.{key}", "a deployment's clients have their own: leave it out"
    if federation.server.device.flops is not None:
        yield "federation.server.device", "a deployment's server is as fast as it is: leave it out"


def profiles_are_all_clients(federation: Federation) -> Found:
    """Every client is of some profile, and every profile has clients."""
    profiles = federation.profiles
    total = math.fsum(profile.share for profile in profiles.values())
    if profiles and abs(total - 1) > _ROUNDING:
        yield "federation.profiles", f"the shares are {total:g} together: let them be 1"
        return
    for name, profile in profiles.items():
        if name not in dealt(profiles, federation.clients, Key(0)):
            yield (
                f"federation.profiles.{name}.share",
                f"{profile.share:g} of {federation.clients} clients is none: raise it, or leave the profile out",
            )


def computing_is_told_once(federation: Federation) -> Found:
    """What a mini-batch takes follows from a speed, or is told."""
    availability, profiles = federation.availability, federation.profiles
    if isinstance(availability, Drawn) and availability.step_seconds is not None:
        for name, profile in profiles.items():
            if profile.device.flops is not None:
                yield (
                    f"federation.profiles.{name}.device.flops",
                    "federation.availability.step_seconds tells already what a mini-batch takes: keep one of them",
                )


def oversample_takes_more_than_the_cohort(federation: Federation, engine: EngineConfig, link: LinkConfig) -> Found:
    """More than the cohort can be sampled only where there are more, and something tells who finishes first."""
    if federation.oversample == 1:
        return
    if federation.cohort_size == federation.clients:
        yield (
            "federation.oversample",
            f"all {federation.clients} clients are sampled already: set a smaller cohort, or leave it out",
        )
    elif why := _no_clock(federation, engine, link):
        yield "federation.oversample", why


def deadline_is_on_a_clock(federation: Federation, engine: EngineConfig, link: LinkConfig) -> Found:
    """A round can be over at a time only where something tells the time."""
    if federation.deadline is not None and (why := _no_clock(federation, engine, link)):
        yield "federation.deadline", why


def _no_clock(federation: Federation, engine: EngineConfig, link: LinkConfig) -> str | None:
    if isinstance(engine, Deployment) or federation.timed(link):
        return None
    return (
        "nothing tells the time of a simulation: set federation.availability or link, or for splitfed serve engine: "
        "deployment"
    )
