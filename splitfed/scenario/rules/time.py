"""Rules of what tells the time: availability, links, deadlines."""

from splitfed.link.settings import LinkConfig, ServerLink
from splitfed.scenario.engine import Deployment, EngineConfig
from splitfed.scenario.rules.base import Found
from splitfed.scenario.sections import Federation


def availability_is_of_a_simulation(federation: Federation, engine: EngineConfig) -> Found:
    """Who is there is assumed of simulated clients only."""
    if isinstance(engine, Deployment) and federation.availability.kind != "none":
        yield "federation.availability", "a deployment's clients have their own: set it to none"


def link_is_of_a_simulation(federation: Federation, engine: EngineConfig, link: LinkConfig) -> Found:
    """Links are assumed of simulated clients only, and the server's is shared by such."""
    if isinstance(engine, Deployment) and link.timed:
        yield "link", "a deployment's clients have their own: set it to ideal"
    if federation.server.link != ServerLink() and not link.timed:
        yield "federation.server.link", "with an ideal link all bytes cross at once: leave it out, or set link"


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
    if isinstance(engine, Deployment) or federation.availability.timed or link.timed:
        return None
    return (
        "nothing tells the time of a simulation: set federation.availability or link, or for splitfed serve engine: "
        "deployment"
    )
