"""The training of one round: a message with its own invitation to every client of the cohort, their replies, and what
the strategy makes of them."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from splitfed.errors import Diverged, Refused, RunError, WireError
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment, Remote
from splitfed.server.back.server import SplitServer
from splitfed.server.back.whole_model import Unsplit
from splitfed.server.cohort.attendance import RoundPlan
from splitfed.server.cohort.claims import Claims, Crossed
from splitfed.server.cohort.dispatch import Dispatch, after
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.cohort.replies import Told, checked
from splitfed.server.cohort.suspects import standing
from splitfed.server.control.terms import ClientTerms
from splitfed.server.memory.store import Store
from splitfed.server.weights.exchange import WeightExchange
from splitfed.server.weights.strategy import Aggregation
from splitfed.server.weights.uneven import filled
from splitfed.wire.channel import Listener
from splitfed.wire.messages import (
    ABSURD,
    ARRAYS,
    CONFIG,
    DIVERGED,
    LACKING,
    LOST,
    UNREACHED,
    UNTAKEN,
    VANISHED,
    Order,
    TrainMetrics,
)

log = getLogger("splitfed")

Replies = dict[int, Message | None]

# Flower's errors of a client that is not there, as against one that failed.
_ABSENT = {
    ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED, VANISHED, UNREACHED,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cohort:
    """The clients of a round: how many images each says that it trains on, in the order in which they train, at which
    node each is, and what it weighs in averages."""

    examples: dict[int, int]
    nodes: dict[int, int]
    weights: dict[int, int]

    def only(self, clients: Iterable[int]) -> "Cohort":
        """Return those of them alone."""
        return Cohort({client: self.examples[client] for client in clients}, self.nodes, self.weights)


class TrainCall:
    """Lets the clients of a round train, in the scenario's order, and aggregates what they return."""

    def __init__(
        self, scenario: Scenario, dispatch: Dispatch, split: SplitServer | Unsplit, listener: Listener,
        exchange: WeightExchange, strategy: Aggregation, claims: Claims, refusals: Refusals,
        terms: ClientTerms, store: Store | None = None,
    ) -> None:  # fmt: skip
        self.terms, self.store = terms, store
        # Of clients of the last round: seconds from the order to the answer, and what those who measure say of
        # themselves.
        self.took, self.paces = dict[int, float](), dict[int, float | None]()
        self.operations = dict[int, float | None]()
        self.dispatch, self.split, self.listener = dispatch, split, listener
        self.claims, self.refusals = claims, refusals
        self.exchange, self.strategy = exchange, strategy
        federation, engine = scenario.federation, scenario.engine
        # One shared back is trained by one client at a time: the order is made here, by whom the server messages next.
        self._hands_on = federation.mode == "sl"
        self._at_once = federation.at_once
        # Of clients in one process each would be done before the next is sent its message.
        self._together = scenario.side_by_side
        self._grace = engine.grace if isinstance(engine, Remote) else 0.0
        # A simulation's plan says who finishes first and in time; in a deployment that is seen.
        self._deployed = isinstance(engine, Deployment)
        self._enough = federation.cohort_size if self._deployed else federation.clients
        self._seconds = federation.deadline if self._deployed else None
        self.forgetful = set[int]()  # clients that lacked, in the last round, what it built on
        self.refused: dict[int, Diverged] = {}  # clients whose mini-batches were refused in the last round
        # In which round each client was last taken, where it keeps something of that.
        compression = scenario.compression
        turns = scenario.model.adapter.turns > 1
        own = federation.local_norms or scenario.training.client.fraug is not None
        kept = bool(compression.front_weights.delta or compression.remembers or scenario.model.adaptive or turns or own)
        self._keeps = kept or scenario.training.client_state == "keep"
        self._taken: dict[int, int] = {}
        self._net = 0  # the phase, by its first round, whose auxiliary net was last averaged; 0 is none
        self._scenario = scenario

    def planned(self, round: int, client: int, examples: int) -> Crossed:
        """Return what a client that trains on so many images sends in a round."""
        if (stored := self._stored(round, client)) is None:
            return self.claims.planned(examples, self._scenario.phase(round).upload_every)
        return self.claims.to_store(examples, stored)

    def computed(self, round: int, client: int, examples: int) -> int:
        """Return how many mini-batches a client that holds so many images runs its front on in a round."""
        local = self._scenario.phase(round).local
        return (self.claims.planned(examples) if local else self.planned(round, client, examples)).steps

    def _stored(self, round: int, client: int) -> int | None:
        """Return how many of a client's mini-batches memory has; None in a round in which it takes none."""
        return self.store.batches(client) if self.store is not None and self._scenario.remembers(round) else None

    def run(self, round: int, server_lr: float, cohort: Cohort, weights: ArrayRecord, plan: RoundPlan) -> Replies:
        """Let the cohort train from these weights, the back at this learning rate, and return the replies in order of
        client; None for one that was lost, or given up."""
        count = {client: cohort.weights[client] for client in cohort.examples}
        most = {client: self.planned(round, client, number).steps for client, number in cohort.examples.items()}
        store = self.store if self._scenario.remembers(round) else None
        phase = self._scenario.phase(round)
        own = self.terms.own(cohort.examples, phase)
        self.split.start_round(round, server_lr, count, most, phase.answer_every, store, own)
        net = phase.first if phase.local else 0
        if net != self._net:  # a strategy may keep something for each array that it has seen
            self.strategy.restart()
            self._net = net
        self.exchange.open(round, sorted(cohort.examples))
        replies = self._exchange(round, cohort, weights, plan)
        self.split.end_round()
        return replies

    def stop(self) -> None:
        """End an open round: streams that are still there count nothing more."""
        self.split.end_round()

    def close(self, round: int, trained: list[int]) -> None:
        """End a round of which these clients were taken."""
        self.exchange.close(trained)
        if self._keeps:
            self._taken |= dict.fromkeys(trained, round)

    def state_dict(self) -> dict[str, Any]:
        """Return in which round each client was last taken, where it keeps something of that, and which auxiliary net
        the strategy knows."""
        taken = {"taken": sorted(map(list, self._taken.items()))} if self._taken else {}
        return {**taken, "net": self._net} if self._net else taken

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        self._taken, self._net = dict(state.get("taken", ())), state.get("net", 0)

    def _forget(self, client: int) -> bool:
        """Hear that a client lacks what it was thought to have. Return whether it can begin anew."""
        self.split.forget(client)
        sent_again = self.exchange.forget(client)
        return self._taken.pop(client, None) is not None or sent_again

    def aggregate(
        self, round: int, cohort: Cohort, replies: Replies, before: ArrayRecord, now: Callable[[int], ArrayRecord]
    ) -> tuple[ArrayRecord | None, float]:
        """Return the round's new weights, None where they stay as they were, as in a frozen phase, and the mean loss,
        by examples, of all who trained, whichever of them the strategy selects. `before` is what the round began with,
        and `now` what the server has, having trained some of it itself where fronts are uneven."""
        taken = trained(replies)
        arrays: ArrayRecord | None
        if self._scenario.phase(round).frozen:
            arrays = None
        elif self._hands_on:
            arrays = self._handed_on(cohort, replies)
        else:
            found = list(taken.values())
            if self._scenario.uneven:
                here = now(round)
                found = [filled(reply, here) for reply in found]
            arrays = self.strategy.aggregate(round, found, before)
        losses = {client: TrainMetrics.read(reply.content).loss for client, reply in taken.items()}
        seen = sum(cohort.weights[client] for client in taken)
        return arrays, math.fsum(cohort.weights[client] / seen * losses[client] for client in taken)

    def adapted(self, cohort: Cohort, taken: Iterable[int]) -> dict[str, Any]:
        """Return what `metrics.csv` tells of a round of blocks with budgets, in which these clients were taken; nothing
        where they have none."""
        if self._scenario.model.adaptive is None:
            return {}
        told = {client: self.operations.get(client) for client in sorted(taken)}
        weights = {client: cohort.weights[client] for client, one in told.items() if one is not None}
        total = math.fsum(weights[client] * (told[client] or 0.0) for client in weights)
        mean = total / sum(weights.values()) if weights else None
        return {"client_operations": mean, **self.split.adapted()}

    def standing(self, cohort: Cohort, replies: Replies, before: ArrayRecord) -> dict[int, float]:
        """Return how far each of those who were taken in a round that began with these weights stands out by what it
        sent: the length of its front's update, and the largest number that crossed."""
        taken, lengths = trained(replies), dict[int, float]()
        for client in [client for client in cohort.examples if client in taken]:
            if (front := taken[client].content.array_records.get(ARRAYS)) is not None:
                lengths[client] = math.hypot(*(_distance(front[name], before[name]) for name in front))
                before = front if self._hands_on else before
        return standing([lengths, *self.split.sent.values()], taken)

    def _exchange(self, round: int, cohort: Cohort, arrays: ArrayRecord, plan: RoundPlan) -> Replies:
        finish = _Finish(self._enough, self._seconds)
        nodes, examples = cohort.nodes, cohort.examples
        frozen = self._scenario.phase(round).frozen
        chosen = [nodes[client] for client in examples]
        made = _orders(round, arrays, chosen) if frozen else self.strategy.configure(
            round, arrays, Order.blank(), chosen
        )  # fmt: skip
        messages = {client: made[nodes[client]] for client in examples}
        for client, message in messages.items():
            stored = self._stored(round, client)
            invite(
                message, self.listener, round, client, plan.vanish[client], self._taken.get(client), stored,
                self.terms.of(client).point,
            )  # fmt: skip
        replies: Replies = {}
        self.forgetful, self.refused, self.took, self.paces, self.operations = set(), {}, {}, {}, {}
        began = time.monotonic()

        def settle(client: int, reply: Message | None) -> None:
            code = _code(reply)
            if reply is not None and code == LOST and not self._deployed:
                raise RunError(
                    f"round {round}: client {client}: {reply.error.reason}: bring it back, or start a new run"
                )
            if reply is not None and code in (LACKING, LOST) and self._forget(client):
                log.warning("round %d: client %d: %s", round, client, reply.error.reason)
                self.forgetful.add(client)
                reply = None
            unreached = f": {reply.error.reason}" if reply is not None and code == UNREACHED else ""
            refused = self.split.refusal(client)
            if isinstance(refused, Refused):
                log.warning("round %d: client %d is refused: %s", round, client, refused.problem)
                self.refused[client], reply = refused, None
                self.refusals.count(client, round)
            elif refused:
                error = Error(UNTAKEN, f"stream refused: {refused}")
                reply = Message(error, metadata=messages[client].metadata)  # type: ignore[call-overload]
            if (reply := present(reply)) is not None:
                planned = self.planned(round, client, examples[client])
                told = Told(examples[client], planned, cohort.weights[client], frozen)
                crossed, loss = self.split.crossed(client), self.split.loss(client)
                ended = self.split.ended(client)
                pace, operations = _told(reply)
                reply = checked(reply, round, client, told, crossed, loss, self.refusals, ended)
                if not reply.has_error():
                    self.took[client], self.paces[client] = time.monotonic() - began, pace
                    self.operations[client] = operations
                if self.store is not None and _code(reply) in (UNTAKEN, ABSURD):
                    self.store.drop(client)
            if finish.over():
                reply = None
            taken = reply is not None and not reply.has_error()
            # A front whose stream did not end is refused with its back, for they were trained together.
            if self.split.settle(client, taken) != taken:
                reply = None
            if reply is None and not refused and plan.vanish[client] is None:
                why = finish.over()
                log.warning(
                    "round %d: client %d is %s", round, client, f"given up: {why}" if why else f"lost{unreached}"
                )
            finish.taken += taken and reply is not None
            replies[client] = reply

        order = list(examples)
        for wave in [order[first : first + self._at_once] for first in range(0, len(order), self._at_once)]:
            if finish.over():
                for client in wave:
                    settle(client, None)
                continue
            if self._hands_on and not frozen:
                messages[wave[0]].content[ARRAYS] = self._handed_on(cohort, replies) or arrays
            self.split.start_wave(wave, plan.turns if self._together else ())
            began = time.monotonic()
            sent = {client: messages[client] for client in wave}
            self.dispatch.exchange(
                sent, lambda: self.split.lost(self._grace), settle, finish.over, together=self._together,
                begun=self.split.begun,
            )  # fmt: skip
        return {client: replies[client] for client in sorted(replies)}

    @staticmethod
    def _handed_on(cohort: Cohort, replies: Replies) -> ArrayRecord | None:
        """Return the front of the last client, in the order of the cohort, whose reply was taken; None before the
        first."""
        taken = trained(replies)
        last = next((client for client in reversed(cohort.examples) if client in taken), None)
        return None if last is None else taken[last].content.array_records[ARRAYS]


def _distance(one: Array, other: Array) -> float:
    return float(np.linalg.norm(one.numpy() - other.numpy()))


def _orders(round: int, arrays: ArrayRecord, nodes: list[int]) -> dict[int, Message]:
    """Return the messages of a round in which no strategy has a say, by the node that each is for."""
    content = RecordDict({ARRAYS: arrays, CONFIG: Order(round, "", "").write()})
    return {node: Message(RecordDict(dict(content)), node, MessageType.TRAIN) for node in nodes}


def invite(
    message: Message, listener: Listener, round: int, client: int, vanishes_after: int | None = None,
    trained: int | None = None, stored: int | None = None, point: str = "",
) -> None:  # fmt: skip
    """Give a message, whose content is shared among all, what is its own client's alone: its invitation, after how many
    mini-batches it vanishes, in which round it was last taken, how many of its mini-batches are stored, and its
    operating point."""
    content = RecordDict(dict(message.content))
    told = message.content.config_records[CONFIG]
    content[CONFIG] = Order.addressed(told, listener.invite(client, round), vanishes_after, trained, stored, point)
    message.content = content


def present(reply: Message | None) -> Message | None:
    """Return the reply, or None where it is Flower's word that the client is not there."""
    return None if reply is not None and reply.has_error() and reply.error.code in _ABSENT else reply


def _told(reply: Message) -> tuple[float | None, float | None]:
    """Return the bytes a second that a client has measured in its exchanges, and the operations of an image that it has
    counted, if it says so."""
    try:
        told = None if reply.has_error() else TrainMetrics.read(reply.content)
    except WireError:
        told = None
    return (told.throughput, told.operations) if told else (None, None)


def _code(reply: Message | None) -> int | None:
    return reply.error.code if reply is not None and reply.has_error() else None


def trained(replies: Replies) -> dict[int, Message]:
    """Return the replies of those who trained."""
    return {client: reply for client, reply in replies.items() if reply and not reply.has_error()}


def failures(replies: Replies) -> dict[int, str]:
    """Return why clients failed that were there; nothing for those that were lost."""
    return {client: str(reply.error.reason) for client, reply in replies.items() if reply and reply.has_error()}


def absurd(round: int, replies: Replies) -> dict[int, Diverged]:
    """Return whose replies were refused for their numbers, or who says that its own are such, and why."""
    return {
        client: Diverged(f"round {round}, client {client}", str(reply.error.reason), ("client",))
        for client, reply in replies.items()
        if reply is not None and _code(reply) in (ABSURD, DIVERGED)
    }


class _Finish:
    """When a round takes nobody more: once `enough` clients were `taken`, or so many seconds from now (None: never)."""

    def __init__(self, enough: int, seconds: float | None) -> None:
        self._enough, self._seconds = enough, seconds
        self._late = after(seconds)
        self.taken = 0

    def over(self) -> str:
        """Return why, or nothing as long as it goes on."""
        if self.taken >= self._enough:
            return f"{self._enough} others were first"
        if self._late():
            return f"it has not finished within {self._seconds:g} s"
        return ""
