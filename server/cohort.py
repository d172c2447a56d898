"""The training of one round: a message with its own invitation to every client of the cohort, and their replies."""

from logging import getLogger

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from splitfed.channel import Listener
from splitfed.engines import Remote
from splitfed.scenario import Scenario
from splitfed.server.dispatch import Dispatch
from splitfed.server.replies import checked
from splitfed.server.split import SplitServer
from splitfed.server.strategy import Aggregation
from splitfed.wire_names import ARRAYS, CONFIG

log = getLogger("splitfed")

# Flower's errors of a client that is not there, as against one that failed.
_ABSENT = {
    ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
}  # fmt: skip


class Cohort:
    """Lets the clients of a round train, in the scenario's order."""

    def __init__(
        self, scenario: Scenario, dispatch: Dispatch, split: SplitServer, strategy: Aggregation, listener: Listener
    ) -> None:
        self.dispatch, self.split, self.strategy, self.listener = dispatch, split, strategy, listener
        federation, engine = scenario.federation, scenario.engine
        # One shared back is trained by one client at a time: the order is made here, by whom the server messages next.
        self.one_by_one, self.hands_on = federation.one_by_one, federation.mode == "sl"
        self._grace = engine.grace if isinstance(engine, Remote) else 0.0

    def train(
        self, round: int, examples: dict[int, int], nodes: dict[int, int], arrays: ArrayRecord
    ) -> dict[int, Message | None]:
        """Send these weights to the clients that hold so many `examples`, and return their replies, in order of client;
        None for one that was lost."""
        config = ConfigRecord({"channel": "", "token": ""})
        configured = self.strategy.configure(round, arrays, config, [nodes[client] for client in examples])
        messages = {client: configured[nodes[client]] for client in examples}
        for client, message in messages.items():
            self._invite(message, round, client)
        replies: dict[int, Message | None] = {}

        def settle(client: int, reply: Message | None) -> None:
            if reply is not None and reply.has_error() and reply.error.code in _ABSENT:
                reply = None
            if reply is not None:
                reply = checked(reply, round, client, examples[client])
            taken = reply is not None and not reply.has_error()
            # A front whose stream did not end is refused with its back, for they were trained together.
            if self.split.settle(client, taken) != taken:
                reply = None
            if reply is None:
                log.warning("round %d: client %d is lost", round, client)
            replies[client] = reply

        for wave in [[client] for client in examples] if self.one_by_one else [list(examples)]:
            if self.hands_on:
                messages[wave[0]].content[ARRAYS] = self.handed_on(examples, replies) or arrays
            self.dispatch.exchange({c: messages[c] for c in wave}, lambda: self.split.lost(self._grace), settle)
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

    def _invite(self, message: Message, round: int, client: int) -> None:
        """Give a message, whose content a strategy shares among all, its own client's invitation."""
        invitation = self.listener.invite(client, round)
        content = RecordDict(dict(message.content))
        config = dict(message.content.config_records[CONFIG])
        content[CONFIG] = ConfigRecord(config | {"channel": invitation.address, "token": invitation.token})
        message.content = content


def failures(replies: dict[int, Message | None]) -> set[str]:
    """Return why clients failed that were there; nothing for those that were lost."""
    return {str(reply.error.reason) for reply in replies.values() if reply and reply.has_error()}
