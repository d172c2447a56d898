"""The inline engine: Flower's ServerApp and ClientApp in one process, over a grid that calls the ClientApp directly.

Messages still pass through Flower's own serialisation, so neither side can hold on to the other's objects. A client's
exception stops the run here, unlike in a deployment: this engine is for a laptop, debugging and tests. One that the
server has refused for its numbers fails.
"""

import itertools
from collections.abc import Iterable
from queue import SimpleQueue
from threading import Thread

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from splitfed.engines.compute_lock import Baton
from splitfed.errors import Refused
from splitfed.wire.messages import UNTAKEN

_RUN, _SERVER_NODE = 1, 1
UserConfig = dict[str, str | int | float | bool]


class InlineGrid(Grid):
    """Runs `clients` nodes, numbered from 2 (1 is the server), in this process: messages that are pushed one by one run
    one after another; those pushed in one call are in progress together, each in a thread, of which one computes, and
    who pulls waits for the next of their replies.

    A node costs nothing until it keeps state of its own, so thousands of clients are as light as ten."""

    def __init__(self, app: ClientApp, clients: int, run_config: UserConfig) -> None:
        self._app, self._clients, self._run_config = app, clients, run_config
        self._states: dict[int, RecordDict] = {}
        self._replies: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self._run = Run.create_empty(_RUN)
        self._threads: list[Thread] = []
        self._baton = Baton()
        self._outcomes: SimpleQueue[tuple[str, Message | BaseException]] = SimpleQueue()
        self._under_way = set[str]()

    def set_run(self, run: Run) -> None:
        """Set what `run` returns."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return Flower's record of the run."""
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        """Make a message of this run."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Return all node ids."""
        return list(range(_SERVER_NODE + 1, _SERVER_NODE + 1 + self._clients))

    def deliver(self, message: Message) -> Message:
        """Run the node that a message is for and return its reply; to lose or change replies, wrap this."""
        node = message.metadata.dst_node_id
        state = self._states.get(node, RecordDict())
        client: UserConfig = {"partition-id": node - _SERVER_NODE - 1, "num-partitions": self._clients}
        context = Context(_RUN, node, client, state, dict(self._run_config))
        try:
            reply = _through_bytes(self._app(_through_bytes(message), context))
        except Refused as refused:  # it fails, as anywhere else, and the others go on
            return _through_bytes(Message(Error(UNTAKEN, str(refused)), reply_to=message))
        if context.state:
            self._states[node] = context.state
        return reply

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run a message to its end, or begin with several; their replies wait to be pulled."""
        numbered = {str(next(self._numbers)): message for message in messages}
        if len(numbered) > 1:
            self._begin(numbered)
        else:
            self._replies |= {number: self.deliver(message) for number, message in numbered.items()}
        return list(numbered)

    def _begin(self, numbered: dict[str, Message]) -> None:
        """Run messages in threads that hand the baton on."""
        self._baton, self._under_way = Baton(), set(numbered)

        def run(number: str, message: Message) -> None:
            try:
                with self._baton:
                    self._outcomes.put((number, self.deliver(message)))
            except BaseException as error:
                self._outcomes.put((number, error))

        self._threads = [Thread(target=run, args=item, name="client", daemon=True) for item in numbered.items()]
        for thread in self._threads:
            thread.start()

    def _wait(self) -> None:
        """Wait for the next reply of those under way; the first exception stops them all and comes through."""
        try:
            number, outcome = self._outcomes.get()
            self._under_way.discard(number)
            if isinstance(outcome, BaseException):
                raise outcome
            self._replies[number] = outcome
        except BaseException:
            self._baton.stop()  # who waits for the server is let go when the server drops the round
            raise

    def close(self) -> None:
        """Wait for what still runs after an exception; the server has let it go."""
        for thread in self._threads:
            thread.join()

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return and forget the replies to these messages, one at least where some of them are under way."""
        wanted = list(message_ids)
        while self._under_way.intersection(wanted) and not self._replies.keys() & set(wanted):
            self._wait()
        return [self._replies.pop(number) for number in wanted if number in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Run each message and return the replies, in order."""
        return [self.deliver(message) for message in messages]


def _through_bytes(message: Message) -> Message:
    return message_from_proto(ProtoMessage.FromString(message_to_proto(message).SerializeToString()))


def run_inline(server_app: ServerApp, client_app: ClientApp, clients: int, run_config: UserConfig) -> None:
    """Run both apps in this process until the ServerApp ends; its exceptions, and the clients', come through."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN, _SERVER_NODE
    context = Context(_RUN, _SERVER_NODE, {}, RecordDict(), dict(run_config))
    grid = InlineGrid(client_app, clients, run_config)
    try:
        server_app(grid, context)
    finally:
        grid.close()
