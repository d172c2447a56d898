"""The training of one round: a message with its own invitation to every client of the cohort, and their replies."""

import time
from collections.abc import Mapping
from logging import getLogger
from types import MappingProxyType

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment, Remote
from splitfed.server.back.server import SplitServer
from splitfed.server.back.whole_model import Unsplit
from splitfed.server.cohort.attendance import Plan
from splitfed.server.cohort.dispatch import Dispatch
from splitfed.server.cohort.replies import checked
from splitfed.server.weights.strategy import Aggregation
from splitfed.wire.channel import Listener
from splitfed.wire.messages import ARRAYS, CONFIG, LACKING, VANISHED, VANISHES_AFTER

log = getLogger("splitfed")

# Flower's errors of a client that is not there, as against one that failed.
_ABSENT = {
    ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED, VANISHED,
}  # fmt: skip


class Cohort:
    """Lets the clients of a round train, in the scenario's order."""

    def __init__(
        self, scenario: Scenario, dispatch: Dispatch, split: SplitServer | Unsplit, strategy: Aggregation,
        listener: Listener,
    ) -> None:  # fmt: skip
        self.dispatch, self.split, self.strategy, self.listener = dispatch, split, strategy, listener
        federation, engine = scenario.federation, scenario.engine
        # One shared back is trained by one client at a time: the order is made here, by whom the server messages next.
        self.one_by_one, self.hands_on = federation.one_by_one, federation.mode == "sl"
        self._at_once = federation.at_once
        # Of clients in one process each would be done before the next is sent its message.
        self._together = federation.mode == "psl" and not isinstance(engine, Remote)
        self._grace = engine.grace if isinstance(engine, Remote) else 0.0
        # A simulation's plan says who finishes first and in time; in a deployment that is seen.
        deployed = isinstance(engine, Deployment)
        self._enough = federation.cohort_size if deployed else federation.clients
        self._seconds = federation.deadline if deployed else None
        self.forgetful = set[int]()  # clients that lacked, in the last round, what its weights are measured from

    def train(
        self, round: int, examples: dict[int, int], nodes: dict[int, int], arrays: ArrayRecord, plan: Plan
    ) -> dict[int, Message | None]:
        """Send these weights to the clients that hold so many `examples`, and return their replies, in order of client;
        None for one that was lost, or given up."""
        finish = _Finish(self._enough, self._seconds)
        config = ConfigRecord({"channel": "", "token": ""})
        configured = self.strategy.configure(round, arrays, config, [nodes[client] for client in examples])
        messages = {client: configured[nodes[client]] for client in examples}
        for client, message in messages.items():
            after = plan.vanish[client]
            invite(message, self.listener, round, client, {} if after is None else {VANISHES_AFTER: after})
        replies: dict[int, Message | None] = {}
        self.forgetful = set()

        def settle(client: int, reply: Message | None) -> None:
            lacking = reply is not None and reply.has_error() and reply.error.code == LACKING
            if reply is not None and lacking and self.dispatch.grid.crossing.forget(client):
                log.warning("round %d: client %d: %s", round, client, reply.error.reason)
                self.forgetful.add(client)
                reply = None
            if (reply := present(reply)) is not None:
                reply = checked(reply, round, client, examples[client])
            if finish.over():
                reply = None
            taken = reply is not None and not reply.has_error()
            # A front whose stream did not end is refused with its back, for they were trained together.
            if self.split.settle(client, taken) != taken:
                reply = None
            if reply is None and plan.vanish[client] is None:
                why = finish.over()
                log.warning("round %d: client %d is %s", round, client, f"given up: {why}" if why else "lost")
            finish.taken += taken and reply is not None
            replies[client] = reply

        order = list(examples)
        for wave in [order[first : first + self._at_once] for first in range(0, len(order), self._at_once)]:
            if finish.over():
                for client in wave:
                    settle(client, None)
                continue
            if self.hands_on:
                messages[wave[0]].content[ARRAYS] = self.handed_on(examples, replies) or arrays
            self.split.start_wave(wave)
            sent = {client: messages[client] for client in wave}
            self.dispatch.exchange(
                sent, lambda: self.split.lost(self._grace), settle, finish.over, together=self._together
            )  # fmt: skip
        return {client: replies[client] for client in sorted(replies)}

    @staticmethod
    def handed_on(examples: dict[int, int], replies: dict[int, Message | None]) -> ArrayRecord | None:
        """Return the front of the last client, in the order of `examples`, whose reply was taken; None before the
        first."""
        for client in reversed(examples):
            reply = replies.get(client)
            if reply is not None and not reply.has_error():
                return reply.content.array_records[ARRAYS]
        return None


def invite(
    message: Message, listener: Listener, round: int, client: int, more: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Give a message, whose content is shared among all, what is its own client's alone: its invitation, and more."""
    invitation = listener.invite(client, round)
    content = RecordDict(dict(message.content))
    config = dict(message.content.config_records[CONFIG])
    content[CONFIG] = ConfigRecord(config | {"channel": invitation.address, "token": invitation.token, **more})
    message.content = content


def present(reply: Message | None) -> Message | None:
    """Return the reply, or None where it is Flower's word that the client is not there."""
    return None if reply is not None and reply.has_error() and reply.error.code in _ABSENT else reply


class _Finish:
    """When a round takes nobody more: once `enough` clients were `taken`, or so many seconds from now (None: never)."""

    def __init__(self, enough: int, seconds: float | None) -> None:
        self._enough, self._seconds = enough, seconds
        self._limit = None if seconds is None else time.monotonic() + seconds
        self.taken = 0

    def over(self) -> str:
        """Return why, or nothing as long as it goes on."""
        if self.taken >= self._enough:
            return f"{self._enough} others were first"
        if self._limit is not None and time.monotonic() > self._limit:
            return f"it has not finished within {self._seconds:g} s"
        return ""


def failures(replies: dict[int, Message | None]) -> set[str]:
    """Return why clients failed that were there; nothing for those that were lost."""
    return {str(reply.error.reason) for reply in replies.values() if reply and reply.has_error()}
