"""Drift plus penalty (Neely, 2010, "Stochastic Network Optimization with Application to Communication and Queueing
Systems"; for semantic communication arXiv 2505.17604): the most utility in the mean for a mean cost within a target.

In each round the point is chosen that makes V x utility - Z x cost largest, with Z the queue of what was spent over the
target. The mean utility comes within a constant over V of the best that any mixture of points reaches; the queue, and
with it how long it takes to come to the target, grows with V.
"""

from collections.abc import Sequence
from typing import Any

from splitfed.federation.control.base import Controller, Option

_PACE = 0.2  # how much of the mean gain of a point the newest one is


class DriftPlusPenalty(Controller):
    """Weighs utilities with `v`. Where the scenario gives none, the utility of a point is the mean decrease of the
    training loss in rounds at it, all clients together and the latest count most, as a share of the best point's; one
    that was never tried is taken to be as good as that, so each is tried. What sends more is taken to be at least as
    good as what sends less: where it seems worse, the mean of both holds for both. Of itself the decrease would be
    larger where the loss is larger yet, as after rounds at a bad point."""

    def __init__(self, v: float) -> None:
        self._v = v
        self._gains: dict[str, float] = {}

    def choose(self, round: int, client: int, queue: float, options: Sequence[Option]) -> str:
        """Return the best; of equal ones one that was never tried, each client another, and else what sends most."""
        utility, names = self._seen(options), [one.name for one in options]

        def rank(one: Option) -> tuple[float, int, float]:
            untried = one.utility is None and one.name not in self._gains
            turn = (names.index(one.name) - round - client) % len(names) - len(names) if untried else 0
            return queue * one.cost - self._v * utility[one.name], turn, -one.bytes

        return min(options, key=rank).name

    def _seen(self, options: Sequence[Option]) -> dict[str, float]:
        told = {one.name: one.utility for one in options}
        tried = sorted((one.bytes, self._gains[one.name], one.name) for one in options if one.name in self._gains)
        risen = rising([gain for _, gain, _ in tried])
        gains = {name: gain for (_, _, name), gain in zip(tried, risen, strict=True)}
        best = max((abs(gain) for gain in gains.values()), default=0.0)
        seen = {name: gains[name] / best if name in gains and best else 1.0 for name in told}
        return {name: seen[name] if utility is None else utility for name, utility in told.items()}

    def learn(self, round: int, client: int, point: str, gain: float | None) -> None:
        """Take the gain into the point's mean."""
        if gain is not None:
            before = self._gains.get(point)
            self._gains[point] = gain if before is None else before + _PACE * (gain - before)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean gains."""
        return {"gains": dict(self._gains)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        self._gains = dict(state["gains"])


def rising(values: Sequence[float]) -> list[float]:
    """Return the numbers nearest to these, by squares, of which none is less than the one before (isotonic regression,
    by pooling adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (high, many), (low, few) = pools[-2:]
            pools[-2:] = [((high * many + low * few) / (many + few), many + few)]
    return [mean for mean, count in pools for _ in range(count)]
