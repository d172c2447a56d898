"""What a SuperLink keeps of messages, nothing that nobody will come for any more, and of its log.

Flower deletes a message once its reply is there, or once it is known that none will come. What the message holds, the
weights above all, it deletes once the node has said that it has it. Where a node has gone before that, it would stay on
disk as long as the run; so would what waits for a node that is there and never asks.
"""

import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

# Messages of a node that wait for it or for its reply: no round has more than a few.
MOST_WAITING = 16

# Bytes of what this process has written; a stranger may have Flower write a line with each request.
MOST_LOG = 4 << 20
_LOOK_SECONDS = 5.0

Delete = Callable[["SqlLinkState", set[str]], None]
Store = Callable[["SqlLinkState", "Message", "ObjectTree", str], tuple[bool, list[str]]]


def whole(delete: Delete) -> Delete:
    """Return the method of a state of Flower's that deletes messages, so that it deletes what they hold too, and what
    their replies hold that nobody is about to read."""

    def delete_messages(state: "SqlLinkState", message_ins_ids: set[str]) -> None:
        from flwr.supercore.state.schema.linkstate_models import MessageRes
        from sqlalchemy import select

        with state.session() as session:
            unread = select(MessageRes.message_id).where(
                MessageRes.reply_to_message_id.in_(message_ins_ids), MessageRes.delivered_at == ""
            )
            gone = [*message_ins_ids, *(session.scalars(unread) if message_ins_ids else ())]
            delete(state, message_ins_ids)
            for number in gone:
                state.object_store.delete(number)

    return delete_messages


def few_waiting(store: Store) -> Any:
    """Return the method of a state of Flower's that takes a message in, so that of each node the newest alone wait."""

    def store_message_and_object_tree(
        state: "SqlLinkState", message: "Message", object_tree: "ObjectTree", session_id: str
    ) -> tuple[bool, list[str]]:
        from flwr.supercore.state.schema.linkstate_models import MessageIns
        from flwr.supercore.utils import uint64_to_int64
        from sqlalchemy import select

        with state.session() as session:
            stored = store(state, message, object_tree, session_id)
            if stored[0] and not message.metadata.reply_to_message_id:
                node = uint64_to_int64(message.metadata.dst_node_id)
                newest = select(MessageIns.message_id).where(MessageIns.dst_node_id == node)
                newest = newest.order_by(MessageIns.created_at.desc()).offset(MOST_WAITING)
                state.delete_messages({str(number) for number in session.scalars(newest)})
        return stored

    return store_message_and_object_tree


def shorten(output: int, most: int = MOST_LOG) -> None:
    """Begin the file of an open descriptor anew where it has more than `most` bytes; what is no file has none. It must
    have been opened to append."""
    with suppress(OSError):
        found = os.fstat(output)
        if stat.S_ISREG(found.st_mode) and found.st_size > most:
            os.ftruncate(output, 0)
            os.write(output, b"(what stood here before was deleted, as it was too much)\n")


def keep_short(output: int = 1) -> None:
    """Shorten what this process writes there, now and then, as long as it runs."""

    def watch() -> None:
        while not threading.Event().wait(_LOOK_SECONDS):
            shorten(output)

    threading.Thread(target=watch, name="log", daemon=True).start()
