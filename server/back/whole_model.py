"""Where clients train the whole model (`fl`): stands in for the split server and for what listens on its behalf."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from splitfed.errors import Refused, WireError
from splitfed.server.back.round_context import OnStep
from splitfed.split.evaluation import Evaluated
from splitfed.wire.channel import Invitation


class Unsplit:
    """Takes no mini-batches, so whatever a client's reply brings is all there is to settle. `on_step(round, client)` is
    called when a client is done."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step
        self._round, self._waiting = 0, set[int]()
        self.sent: Mapping[str, Mapping[int, float]] = MappingProxyType({})

    def start_round(
        self, round: int, lr: float, examples: dict[int, int], most: Mapping[int, int] | None = None,
        answer_every: int = 1, store: object = None, own: object = None,
    ) -> None:  # fmt: skip
        """Begin a round of these clients."""
        self._round, self._waiting = round, set(examples)

    def start_wave(self, clients: Collection[int], turns: Sequence[int] = ()) -> None:
        """Nothing to wait for: no client waits for another."""

    def begun(self) -> set[int]:
        """Return nobody: no client is heard of before it is done."""
        return set()

    def lost(self, grace: float) -> set[int]:
        """Return nobody: only a node that leaves tells that its client is lost."""
        return set()

    def crossed(self, client: int) -> None:
        """Return nothing: no mini-batch crosses."""

    def loss(self, client: int) -> None:
        """Return nothing: the client alone knows its loss."""

    def adapted(self) -> dict[str, Any]:
        """Return nothing: no blocks with budgets are trained here."""
        return {}

    def ended(self, client: int) -> bool:
        """Return that there is nothing to come: no stream was opened."""
        return True

    def settle(self, client: int, taken: bool) -> bool:
        """End a client's round; return whether it counts. Harmless when called again."""
        if client not in self._waiting:
            return False
        self._waiting.discard(client)
        self._on_step(self._round, client)
        return taken

    def forget(self, client: int) -> None:
        """Nothing is kept of a client's samples."""

    def refusal(self, client: int) -> None:
        """Return that no client is refused: none sends mini-batches."""

    def end_round(self) -> None:
        """Wait for nobody any more."""
        self._waiting.clear()

    @contextmanager
    def evaluation(self, round: int, images: Mapping[int, int], cuts: object = None) -> Iterator["Unasked"]:
        """Let these clients evaluate, each by itself."""
        yield Unasked()


class Unasked:
    """An evaluation in which the server is not asked, so whatever a client's reply says is all there is."""

    refused: Mapping[int, Refused | WireError] = MappingProxyType({})

    def begun(self) -> set[int]:
        """Return nobody: no client is heard of before it is done."""
        return set()

    def lost(self, grace: float) -> set[int]:
        """Return nobody: only a node that leaves tells that its client is lost."""
        return set()

    def settle(self, client: int) -> list[Evaluated] | None:
        """Return that the client has come to its end, and that nothing of it was evaluated here."""
        return []


class Unheard:
    """Listens to nobody: invitations lead nowhere."""

    def invite(self, client: int, round: int) -> Invitation:
        """Return an invitation without an address."""
        return Invitation("")

    def __enter__(self) -> "Unheard":
        return self

    def __exit__(self, *_: object) -> None: ...
