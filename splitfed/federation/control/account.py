"""How much more clients have spent than a target allows: virtual queues, as in Lyapunov optimisation (Neely, 2010,
"Stochastic Network Optimization with Application to Communication and Queueing Systems").

A queue grows by what a round has cost and shrinks by what it was allowed, and never goes below zero:
Z <- max(0, Z + cost - allowed). As long as Z / rounds goes to zero, the mean cost keeps to the target.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALL = -1  # whose queue it is where all clients have one


@dataclass(frozen=True, slots=True)
class Spent:
    """What a round took a client: bytes both ways, and seconds (None: nothing tells)."""

    bytes: float
    seconds: float | None = None


class Account(ABC):
    """The queues of a target, which is kept where what was spent is no more than `allowed`, in the target's own unit.
    Costs are in units of about a round's allowance, and of a client's or of all together."""

    def __init__(self, allowed: float) -> None:
        self.allowed = allowed
        self._queues: dict[int, float] = {}
        self._whole = True  # whether what was spent is known of all rounds: an earlier version's state has it not

    def queue(self, client: int) -> float:
        """Return how much more was spent than allowed where this client's spending counts."""
        return self._queues.get(self.payer(client), 0.0)

    def payer(self, client: int) -> int:
        """Return whose queue a client's spending counts for: its own, or that of `ALL`."""
        return client

    @abstractmethod
    def cost(self, spent: Spent) -> float:
        """Return what it would add to the queue; the less, the better, and constants apart."""

    @abstractmethod
    def close(self, spent: Mapping[int, Spent], round: int, now: float) -> None:
        """End a round in which clients have spent so much, `now`, in seconds from the run's beginning."""

    def came_to(self) -> float | None:
        """Return what was spent so far, in the unit of the target: of the client that spent most, where each has its
        own; None where nothing tells."""
        return self._most() if self._whole else None

    @abstractmethod
    def _most(self) -> float | None:
        """Return the same of the rounds that this knows."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs, as JSON has it."""
        return {"queues": sorted(map(list, self._queues.items())), "whole": self._whole}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        self._queues = {int(client): float(queue) for client, queue in state["queues"]}
        self._whole = state.get("whole", False)

    def _add(self, payer: int, excess: float) -> None:
        self._queues[payer] = max(0.0, self._queues.get(payer, 0.0) + excess)


class RoundAccount(Account):
    """So many seconds a round, for each client. A round of which nothing tells the time counts as one that keeps to
    it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._took: dict[int, tuple[float, int]] = {}  # of each client, the seconds of its rounds, and how many

    def cost(self, spent: Spent) -> float:
        """Return the round's seconds, in multiples of what is allowed, beyond that."""
        return 0.0 if spent.seconds is None else spent.seconds / self.allowed - 1

    def close(self, spent: Mapping[int, Spent], round: int, now: float) -> None:
        """Count the round for those who had a part in it."""
        for client, one in spent.items():
            self._add(client, self.cost(one))
            if one.seconds is not None:
                seconds, rounds = self._took.get(client, (0.0, 0))
                self._took[client] = seconds + one.seconds, rounds + 1

    def _most(self) -> float | None:
        """Return the seconds of a round, in the mean of the slowest client's."""
        return max((seconds / rounds for seconds, rounds in self._took.values()), default=None)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs, as JSON has it."""
        return {**super().state_dict(), "took": [[client, *took] for client, took in sorted(self._took.items())]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        super().load_state_dict(state)
        self._took = {int(client): (seconds, rounds) for client, seconds, rounds in state.get("took", ())}


class RateAccount(Account):
    """So many bytes a second, for each client, in the time of the run; also while others train. One unit is what the
    first round of anyone took."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self._unit = 0.0
        self._since: dict[int, float] = {}
        self._sent: dict[int, float] = {}

    def cost(self, spent: Spent) -> float:
        """Return the bytes beyond those that are allowed in the time that they take."""
        return (spent.bytes - self.allowed * (spent.seconds or 0.0)) / self._unit if self._unit else 0.0

    def close(self, spent: Mapping[int, Spent], round: int, now: float) -> None:
        """Count the round's bytes, and the time since a client's last round."""
        self._unit = self._unit or max((one.bytes for one in spent.values()), default=0.0)
        if not self._unit:
            return
        for client, one in spent.items():
            self._add(client, (one.bytes - self.allowed * (now - self._since.get(client, 0.0))) / self._unit)
            self._since[client] = now
            self._sent[client] = self._sent.get(client, 0.0) + one.bytes

    def _most(self) -> float | None:
        """Return the bytes a second, until its last round, of the client with most."""
        return max((sent / now for client, sent in self._sent.items() if (now := self._since[client])), default=None)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs, as JSON has it."""
        since, sent = (sorted(map(list, one.items())) for one in (self._since, self._sent))
        return {**super().state_dict(), "unit": self._unit, "since": since, "sent": sent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        super().load_state_dict(state)
        self._unit, self._since = state["unit"], {int(client): when for client, when in state["since"]}
        self._sent = {int(client): sent for client, sent in state.get("sent", ())}


class TotalAccount(Account):
    """So many bytes of all clients by the end of a round, or by a time (the other is None); in equal parts until then,
    and none after it. One unit is what a client's even share of them comes to, by the first cohort."""

    def __init__(self, limit: float, rounds: int | None, seconds: float | None) -> None:
        super().__init__(limit)
        self._rounds, self._seconds = rounds, seconds
        self._earned, self._unit, self._sent = 0.0, 0.0, 0.0

    def payer(self, client: int) -> int:
        """Return that of all."""
        return ALL

    def cost(self, spent: Spent) -> float:
        """Return the bytes."""
        return spent.bytes / self._unit if self._unit else 0.0

    def close(self, spent: Mapping[int, Spent], round: int, now: float) -> None:
        """Count all bytes of the round, and how far it has come on the way to the end."""
        total = sum(one.bytes for one in spent.values())
        if self._earned < self.allowed:  # the round began before the end
            self._sent += total
        self._unit = self._unit or total / max(1, len(spent))
        share = round / self._rounds if self._rounds else now / (self._seconds or 1.0)
        earned = min(1.0, share) * self.allowed
        if self._unit:
            self._add(ALL, (total - (earned - self._earned)) / self._unit)
        self._earned = earned

    def _most(self) -> float | None:
        """Return the bytes of all until the end; of a round that lasts beyond it, all of them."""
        return self._sent

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs, as JSON has it."""
        return {**super().state_dict(), "unit": self._unit, "earned": self._earned, "sent": self._sent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        super().load_state_dict(state)
        self._unit, self._earned, self._sent = state["unit"], state["earned"], state.get("sent", 0.0)
