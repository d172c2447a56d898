"""What a controller's target came to, and what is foretold of it, as a person reads it."""

from collections import Counter
from collections.abc import Mapping

from splitfed.reports import units
from splitfed.run.summary import Summary
from splitfed.scenario import Scenario
from splitfed.scenario.sections import Terms

_WHOSE = {
    "seconds_per_round": (" a client's round", " in the mean of the slowest client"),
    "bytes_per_second": (" a client", " of the client with most"),
}
_BEFORE = ", above it, before the lossless stage"


def came_to(summary: Summary) -> str | None:
    """Return the line on a run's target: what it allows, and what was spent; None where there is none."""
    if summary.target_kind is None or summary.target is None:
        return None
    kind, spent = summary.target_kind, summary.target_spent
    until = f" by {summary.target_until}" if summary.target_until else " in all"
    of, whose = _WHOSE.get(kind, (until, ""))
    if spent is None:
        return f"{amount(kind, summary.target)}{of}: nothing told what came of it"
    held = "within it" if summary.target_held else "above it"
    return f"{amount(kind, summary.target)}{of}: {amount(kind, spent)}{whose}, {held}"


def foretold(
    scenario: Scenario, each: Mapping[Terms, int], simulated: Mapping[Terms, tuple[float, float]], rounds: int
) -> list[str]:  # fmt: skip
    """Return a line for each profile whose cheapest point is foretold above the target; of bytes of all, one where the
    cheapest points of all together are. `each` is the bytes of a client's round, `simulated` the seconds of the fastest
    and of the slowest."""
    target, found = scenario.control.target, []
    if target is None:
        return []
    if target.kind == "all_bytes":
        return _of_all(scenario, each, rounds)
    for profile in dict.fromkeys(terms.profile for terms in simulated):
        mine = [terms for terms in simulated if terms.profile == profile]
        of = f" of {profile}" if profile else ""
        if target.kind == "seconds_per_round":
            least = min(mine, key=lambda terms: simulated[terms][1])
            fastest, cost = simulated[least]
            said = f"{'the slowest' if fastest < cost else 'a'} client{of} takes {amount(target.kind, cost)}"
        else:
            least = min(mine, key=lambda terms: each[terms] / simulated[terms][1])
            cost = each[least] / simulated[least][1]
            said = f"a client{of} has {amount(target.kind, cost)} while it trains"
        if cost > target.allowed:
            allowed = f"{amount(target.kind, target.allowed)}{_WHOSE[target.kind][0]}"
            found.append(f"{allowed}: even at {least.point} {said}{_BEFORE}")
    return found


def _of_all(scenario: Scenario, each: Mapping[Terms, int], rounds: int) -> list[str]:
    target, federation = scenario.control.target, scenario.federation
    if target is None or target.kind != "all_bytes" or target.seconds is not None:
        return []  # nothing foretells how many rounds there are until a time
    profiles, last = Counter(scenario.dealt_profiles()), min(rounds, target.rounds or rounds)
    least = {
        name: min((terms for terms in each if terms.profile == name), key=lambda one: each[one]) for name in profiles
    }
    share = federation.sampled / federation.clients
    cost = last * share * sum(number * each[least[name]] for name, number in profiles.items())
    if cost <= target.allowed:
        return []
    points = " and ".join(dict.fromkeys(terms.point for terms in least.values()))
    until = f" by {target.until}" if target.until else " in all"
    allowed = f"{amount(target.kind, target.allowed)}{until}"
    return [f"{allowed}: even at {points} it is {amount(target.kind, cost)}{_BEFORE}"]


def amount(kind: str, number: float) -> str:
    """Return so many seconds, bytes a second or bytes."""
    if kind == "seconds_per_round":
        return f"{number:.3g} s" if number < 59.95 else units.duration(number)
    return units.size(round(number)) + ("/s" if kind == "bytes_per_second" else "")
