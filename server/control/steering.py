"""Has a controller choose the operating point of each client of a round, and keeps account of what it took.

What a point would take is foretold from what the scenario's tensors come to, corrected by what rounds at that point
have really sent; the seconds of it tells a simulation's clock, or in a deployment the client's last round."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from splitfed.errors import RunError
from splitfed.federation.control.account import Account, Spent
from splitfed.federation.control.base import Controller, Option
from splitfed.federation.control.choices import Choice
from splitfed.federation.control.drift_plus_penalty import DriftPlusPenalty
from splitfed.run.ledger import Row
from splitfed.scenario import Scenario
from splitfed.scenario.sections import FixedControl, OwnController, Terms
from splitfed.server.clock.traffic import Sent, Traffic
from splitfed.server.control.terms import ClientTerms

# Foretells what a client with so many images sends and is sent in a round under its terms.
Foretells = Callable[[int, int, Terms], Sent]
# Tells how many seconds that would take it, which begins now; None where nothing tells.
Lasts = Callable[[int, Sent], float | None]


@dataclass(frozen=True, slots=True)
class Pace:
    """What a deployed client's last round came to: bytes, seconds from the server's order to its answer, and the bytes
    a second that its exchanges had, as it measured them."""

    bytes: float
    seconds: float
    throughput: float


class Steers:
    """What rounds ask of it. By itself it chooses nothing."""

    def hear(self, rows: list[Row]) -> None:
        """Hear of what the ledger counts."""

    def choose(self, round: int, images: Mapping[int, int], foretell: Foretells, lasts: Lasts) -> None:
        """Choose for these clients, who train on so many images each."""

    def close(
        self, round: int, losses: Mapping[int, float], seconds: Mapping[int, float], now: float,
        throughput: Mapping[int, float],
    ) -> list[Choice]:  # fmt: skip
        """End a round; return what was chosen in it."""
        return []

    def came_to(self) -> float | None:
        """Return what was spent of what a target allows, in its unit; None where nothing tells."""
        return None


class Steering(Steers):
    """A scenario's controller at work; whatever one of the user's own raises becomes a RunError that names it. Its
    state is the run's. Raises RunError where one cannot be imported or called so."""

    def __init__(self, scenario: Scenario, terms: ClientTerms) -> None:
        control = scenario.control
        assert not isinstance(control, FixedControl)
        self._kind, self._points, self._terms = control.kind, control.points, terms
        self._controller = self._made(control)
        self._account: Account = control.target.build(scenario.federation.rounds)
        self._traffic = Traffic()
        # Of each point, how many times what was foretold it has really sent; and of each client its last loss.
        self._ratio: dict[str, float] = {}
        self._loss: dict[int, float] = {}
        self._pace: dict[int, Pace] = {}  # measured, so no part of the state
        self._open: dict[int, Choice] = {}
        self._foretold: dict[int, int] = {}

    def _made(self, control: Any) -> Controller:
        if not isinstance(control, OwnController):
            return DriftPlusPenalty(control.v)
        kind = control.load()
        try:
            return kind(**control.arguments())
        except Exception as error:
            raise self._failed("cannot be made", error) from error

    def hear(self, rows: list[Row]) -> None:
        """Hear of what the ledger counts."""
        self._traffic.hear(rows)

    def choose(self, round: int, images: Mapping[int, int], foretell: Foretells, lasts: Lasts) -> None:
        """Choose for these clients, and let the terms say so."""
        self._open, self._foretold = {}, {}
        self._terms.points.clear()
        for client, number in images.items():
            profile, queue = self._terms.of(client).profile, self._account.queue(client)
            told = {name: foretell(client, number, Terms(profile, name)) for name in self._points}
            spent = {name: self._expected(client, name, sent, lasts) for name, sent in told.items()}
            options = [
                Option(name, one.bytes, one.seconds, self._account.cost(one), self._points[name].utility)
                for name, one in spent.items()
            ]
            try:
                chosen = self._controller.choose(round, client, queue, options)
            except Exception as error:
                raise self._failed(f"choose of round {round}", error) from error
            if chosen not in self._points:
                raise RunError(f"control: {self._kind}: choose returned {chosen!r}, which is no point of the scenario")
            self._terms.points[client] = chosen
            self._foretold[client] = told[chosen].total
            one = spent[chosen]
            self._open[client] = Choice(round, client, chosen, queue, int(one.bytes), one.seconds, 0, None, None)

    def _expected(self, client: int, name: str, sent: Sent, lasts: Lasts) -> Spent:
        likely = sent.scaled(self._ratio.get(name, 1.0))
        if (pace := self._pace.get(client)) is not None:
            more = (likely.total - pace.bytes) / pace.throughput if pace.throughput else 0.0
            return Spent(likely.total, max(0.0, pace.seconds + more))
        return Spent(likely.total, lasts(client, likely))

    def close(
        self, round: int, losses: Mapping[int, float], seconds: Mapping[int, float], now: float,
        throughput: Mapping[int, float],
    ) -> list[Choice]:  # fmt: skip
        """End a round in which clients were taken with these losses, and took so many seconds, `now` in seconds from
        the run's beginning; return what was chosen in it. In a deployment their exchanges had so many bytes a
        second."""
        sent = self._traffic.take()
        bytes_of = {client: one.total for client, one in sent.items() if client >= 0}
        spent = {client: Spent(number, seconds.get(client)) for client, number in sorted(bytes_of.items())}
        self._account.close(spent, round, now)
        found = []
        for client, choice in sorted(self._open.items()):
            took = spent.get(client, Spent(0))
            loss, before = losses.get(client), self._loss.get(client)
            if loss is not None:
                self._learn(round, choice, None if before is None else before - loss)
                self._loss[client] = loss
                self._ratio[choice.point] = took.bytes / max(1, self._foretold[client])
            if client in throughput and took.seconds is not None:
                self._pace[client] = Pace(took.bytes, took.seconds, throughput[client])
            found.append(replace(choice, bytes=int(took.bytes), seconds=took.seconds, loss=loss))
        self._open = {}
        self._terms.points.clear()
        return found

    def came_to(self) -> float | None:
        """Return what was spent in the unit of the target, by the account that the queue goes by."""
        return self._account.came_to()

    def _learn(self, round: int, choice: Choice, gain: float | None) -> None:
        try:
            self._controller.learn(round, choice.client, choice.point, gain)
        except Exception as error:
            raise self._failed(f"learn of round {round}", error) from error

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs."""
        return {
            "controller": self._controller.state_dict(), "account": self._account.state_dict(),
            "ratio": dict(self._ratio), "loss": sorted(map(list, self._loss.items())),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned. Raises RunError where it is another's."""
        self._account.load_state_dict(state["account"])
        self._ratio, self._loss = dict(state["ratio"]), {int(client): loss for client, loss in state["loss"]}
        try:
            self._controller.load_state_dict(state["controller"])
        except Exception as error:
            raise self._failed("the state in the checkpoint cannot be read", error) from error

    def _failed(self, what: str, error: BaseException) -> RunError:
        return RunError(f"control: {self._kind}: {what}: {type(error).__name__}: {' '.join(str(error).split())}")


def steering(scenario: Scenario, terms: ClientTerms) -> Steers:
    """Return what chooses in a scenario's rounds."""
    return Steers() if isinstance(scenario.control, FixedControl) else Steering(scenario, terms)
