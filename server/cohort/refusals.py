"""Whose replies were refused, round by round, and who is left out of the rest of the run for it."""

from logging import getLogger
from typing import Any

from flwr.app import Message

from splitfed.wire.messages import ABSURD, UNTAKEN

log = getLogger("splitfed")

# What a broken network or another version does, it does once, or before the first round.
ROUNDS = 3


class Refusals:
    """In which rounds each client's replies were refused; it is the run's state. `out` are the clients that are left
    out, which they are after `ROUNDS` such rounds."""

    def __init__(self) -> None:
        self._rounds: dict[int, set[int]] = {}

    @property
    def out(self) -> set[int]:
        """Who is not asked any more."""
        return {client for client, rounds in self._rounds.items() if len(rounds) >= ROUNDS}

    def note(self, client: int, round: int, reply: Message) -> None:
        """Hear of a client's reply, which counts if it is a refused one, once a round. Whoever is left out from now on
        is logged."""
        if reply.has_error() and reply.error.code in (UNTAKEN, ABSURD):
            self.count(client, round)

    def count(self, client: int, round: int) -> None:
        """Count a round in which a client was refused, for its reply or for what its stream brought."""
        if client in self.out:
            return
        self._rounds.setdefault(client, set()).add(round)
        if client in self.out:
            log.warning("round %d: client %d %s", round, client, self.why())

    def forgive(self, round: int) -> None:
        """Forget who was refused in a round, as it may be none of their doing."""
        self._rounds = {client: rounds - {round} for client, rounds in self._rounds.items() if rounds - {round}}

    @staticmethod
    def why() -> str:
        """Return why a client is left out."""
        return f"is left out for the rest of the run: its replies were refused in {ROUNDS} rounds"

    def state_dict(self) -> dict[str, Any]:
        """Return the rounds; nothing where nobody was refused."""
        refused = [[client, sorted(rounds)] for client, rounds in sorted(self._rounds.items())]
        return {"refused": refused} if refused else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        self._rounds = {client: set(rounds) for client, rounds in state["refused"]}
