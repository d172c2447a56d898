"""What a SuperLink keeps of messages for nodes that are gone, or never ask, and of what is written to its log."""

import os

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import ObjectChild, StoredObject
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import func, select

from splitfed.server.deployment.nodes import counted
from splitfed.server.deployment.tidy import MOST_WAITING, few_waiting, shorten, whole

TABLES = (MessageIns, MessageRes, StoredObject, ObjectChild)


class Tidy(SqlLinkState):
    """Flower's, as ours has it."""

    delete_messages = whole(SqlLinkState.delete_messages)
    store_message_and_object_tree = few_waiting(SqlLinkState.store_message_and_object_tree)
    create_node = counted(SqlLinkState.create_node, 8)


class Link:
    """A SuperLink's state in a file, with a run."""

    def __init__(self, file) -> None:
        store = SqlObjectStore(str(file))
        store.initialize()
        self.state = Tidy(str(file), NoOpFederationManager(), store)
        self.state.initialize()
        self.run = self.state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
        self._made = 0

    def come(self) -> int:
        self._made += 1
        node = self.state.create_node("nobody", "nobody", str(self._made).encode(), 0)
        assert self.state.activate_node(node, 30)
        return node

    def store(self, message) -> str:
        """Store a message with all that it holds, and return its number."""
        tree = get_object_tree(message)
        message.metadata.__dict__["_message_id"] = tree.object_id  # as Flower does: it has no setter
        stored, missing = self.state.store_message_and_object_tree(message, tree, self.state.start_session(self.run))
        assert stored
        assert missing
        return tree.object_id

    def send(self, node: int, number: int) -> str:
        weights = np.full(64, number, np.float32)
        return self.store(Message(RecordDict({"a": ArrayRecord({"w": Array(weights)})}), node, "train"))

    def rows(self) -> list[int]:
        with self.state.session() as session:
            return [session.scalar(select(func.count()).select_from(table)) for table in TABLES]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Link(tmp_path_factory.mktemp("link") / "state.db")


@pytest.fixture
def link(made, identity):
    TaskIdentity.run_id = made.run
    assert made.rows() == [0, 0, 0, 0]
    return made


def test_of_many_who_come_are_asked_and_go_nothing_is_kept(link):
    for number in range(30):
        node = link.come()
        asked = link.send(node, number)
        link.state.deactivate_node(node)
        (reply,) = link.state.get_message_res({asked}, link.run)
        assert reply.has_error()
        link.state.delete_messages({reply.metadata.reply_to_message_id})  # as Flower does once it has handed it out
        link.state.object_store.delete(reply.metadata.message_id)  # and once that was taken
    assert link.rows() == [0, 0, 0, 0]
    assert len(link.state.get_node_info()) <= 8


def test_of_one_who_stays_and_never_asks_the_newest_messages_wait(link):
    node, other = link.come(), link.come()
    kept = link.send(other, 0)
    sent = [link.send(node, number) for number in range(3 * MOST_WAITING)]
    with link.state.session() as session:
        waiting = set(session.scalars(select(MessageIns.message_id)))
    assert waiting == {kept, *sent[-MOST_WAITING:]}
    assert link.rows()[2] <= 5 * len(waiting)
    link.state.delete_messages(waiting)
    assert link.rows() == [0, 0, 0, 0]


def test_a_reply_that_is_about_to_be_read_stays_until_it_is(link):
    node = link.come()
    asked = link.send(node, 1)
    (message,) = link.state.get_message_ins(node, 1)
    message.metadata.__dict__["_message_id"] = asked  # likewise
    TaskIdentity.node_id = node
    answered = link.store(Message(RecordDict({"a": ArrayRecord({"w": Array(np.ones(5))})}), reply_to=message))
    TaskIdentity.node_id = 1
    (reply,) = link.state.get_message_res({asked}, link.run)
    link.state.delete_messages({reply.metadata.reply_to_message_id})
    tree = link.state.object_store.get_object_tree(answered)
    assert len(list(iterate_object_tree(tree))) > 2
    link.state.object_store.delete(answered)
    assert link.rows() == [0, 0, 0, 0]


def test_a_log_begins_anew(tmp_path):
    path = tmp_path / "log"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab", buffering=0) as file:
        file.write(b"x" * 100)
        shorten(file.fileno(), 100)
        assert path.read_bytes() == b"x" * 100
        file.write(b"y")
        shorten(file.fileno(), 100)
        file.write(b"z\n")
    assert path.read_text().endswith("deleted, as it was too much)\nz\n")
    assert path.stat().st_size < 100
    reading, writing = os.pipe()
    shorten(writing, 0)  # no file: left alone
    os.close(reading), os.close(writing)
