"""Flower's grid over HTTP, but one client's slow or broken upload holds up no other."""

import threading
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.app.error import Error
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto, metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from splitfed.wire.messages import UNTAKEN

# Flower waits a second before it looks again for a part that is still on its way.
_LOOK_AGAIN_SECONDS = 0.1


class ArrivingGrid(HttpGrid):
    """Returns replies that are there as a whole. A SuperLink knows of a reply before its parts have been uploaded; what
    is still arriving, or never will, is fetched aside."""

    def __init__(self, client: RuntimeHttpClient, token: str) -> None:
        super().__init__(token=token)
        self._client = client
        self._arriving: dict[str, _Arrival] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return and forget the whole replies to these messages."""
        wanted = set(message_ids)
        asked = wanted - self._arriving.keys()
        if asked:
            found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=asked))
            for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                number = message.metadata.reply_to_message_id
                self._arriving[number] = _Arrival(lambda m=message, t=tree: self._fetch(m, t))  # type: ignore[misc]
        whole = [
            number for number in sorted(wanted) if number in self._arriving and not self._arriving[number].is_alive()
        ]
        return [self._arriving.pop(number).take() for number in whole]

    def _fetch(self, message: ProtoMessage, tree: ObjectTree) -> Message:
        number, run = message.metadata.message_id, self.run.run_id
        pull = make_pull_object_fn_protobuf(self._runtime_client.PullObject, self.node, run)
        parts = [part.object_id for part in iterate_object_tree(tree)]
        try:
            contents = pull_objects(parts, pull, initial_backoff=_LOOK_AGAIN_SECONDS)
        except ObjectPullError:
            error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "its reply was not uploaded to the end")
            return Message(error, metadata=metadata_from_proto(message.metadata))  # type: ignore[call-overload]
        confirmation = ConfirmMessageReceivedRequest(node=self.node, run_id=run, message_object_id=number)
        self._runtime_client.ConfirmMessageReceived(confirmation)
        try:
            whole = inflate_object_from_contents(number, contents)
            if not isinstance(whole, Message) or _place(whole.metadata) != _place(
                metadata_from_proto(message.metadata)
            ):
                raise ValueError("it is no reply to this message")
            message_to_proto(whole)  # as whoever counts its bytes does
        except Exception:  # whatever a client uploads in the place of a message
            error = Error(UNTAKEN, "reply refused: it is no message of Flower's")
            return Message(error, metadata=metadata_from_proto(message.metadata))  # type: ignore[call-overload]
        whole.metadata.__dict__["_message_id"] = number
        return whole


def _place(metadata: Metadata) -> tuple[int, str, str]:
    return metadata.src_node_id, metadata.reply_to_message_id, metadata.message_type


class _Arrival(threading.Thread):
    """Fetches one reply; no reason to stay for a process that wants to end."""

    def __init__(self, fetch: Callable[[], Message]) -> None:
        super().__init__(name="reply", daemon=True)
        self._fetch = fetch
        self._outcome: Message | Exception | None = None
        self.start()

    def run(self) -> None:
        """Fetch."""
        try:
            self._outcome = self._fetch()
        except Exception as error:
            self._outcome = error

    def take(self) -> Message:
        """Return what was fetched, or raise what it met."""
        if isinstance(self._outcome, Exception):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome
