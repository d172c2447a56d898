"""Replies that arrive as a whole, slowly, or never to the end: none holds up another."""

import threading
import time

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run

from splitfed.server.deployment.http_grid import ArrivingGrid
from splitfed.wire.messages import UNTAKEN

pytestmark = pytest.mark.usefixtures("identity")


class SuperLink:
    """Knows of replies, and hands out the parts of those that have been uploaded."""

    def __init__(self) -> None:
        self.replies: dict[str, tuple] = {}
        self.parts: dict[str, bytes] = {}
        self.gone: set[str] = set()
        self.confirmed: list[str] = []
        self.lock = threading.Lock()

    def add(self, number: str, text: str, uploaded: bool) -> list[str]:
        asked = Message(RecordDict(), 7, "train")
        # Flower numbers a message like this too: the number has no setter.
        asked.metadata.__dict__["_message_id"] = number
        reply = Message(RecordDict({"answer": ConfigRecord({"text": text})}), reply_to=asked)
        reply.metadata.__dict__["_message_id"] = reply.object_id  # likewise
        tree, parts = get_object_tree(reply), get_all_nested_objects(reply)
        self.replies[number] = message_to_proto(remove_content_from_message(reply)), tree
        contents = {name: part.deflate() for name, part in parts.items()}
        if uploaded:
            self.parts.update(contents)
        else:
            self.waiting = contents
        return list(contents)

    def PullMessages(self, request) -> PullAppMessagesResponse:
        found = [self.replies.pop(number) for number in request.message_ids if number in self.replies]
        return PullAppMessagesResponse(
            messages_list=[message for message, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request) -> PullObjectResponse:
        with self.lock:
            name = request.object_id
            there = name in self.parts
            return PullObjectResponse(
                object_found=name not in self.gone, object_available=there, object_content=self.parts.get(name, b"")
            )

    def ConfirmMessageReceived(self, request) -> None:
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link() -> SuperLink:
    return SuperLink()


@pytest.fixture
def grid(link) -> ArrivingGrid:
    grid = ArrivingGrid(link, "token")
    grid.set_run(Run.create_empty(1))
    return grid


def pulled(grid: ArrivingGrid, numbers: set[str], wanted: int) -> list[Message]:
    replies, limit = [], time.monotonic() + 20
    while len(replies) < wanted and time.monotonic() < limit:
        replies += grid.pull_messages(numbers)
        time.sleep(0.01)
    return replies


def text(reply: Message) -> str:
    return str(reply.content.config_records["answer"]["text"])


def test_a_reply_still_on_its_way_holds_up_no_other(grid, link):
    link.add("slow", "late", uploaded=False)
    link.add("quick", "soon", uploaded=True)
    (first,) = pulled(grid, {"slow", "quick"}, 1)
    assert (text(first), first.metadata.reply_to_message_id) == ("soon", "quick")
    assert grid.pull_messages({"slow"}) == []
    with link.lock:
        link.parts.update(link.waiting)
    (second,) = pulled(grid, {"slow"}, 1)
    assert (text(second), second.metadata.reply_to_message_id) == ("late", "slow")
    assert len(link.confirmed) == 2
    assert grid.pull_messages({"slow", "quick"}) == []


def test_a_reply_that_was_not_uploaded_to_the_end_is_an_error(grid, link):
    link.gone.update(link.add("broken", "never", uploaded=False))
    (reply,) = pulled(grid, {"broken"}, 1)
    assert isinstance(reply.error, Error)
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == ("broken", 7)
    assert link.confirmed == []


def _another_kind(link: SuperLink, parts: list[str]) -> None:
    """A record where a message is announced."""
    link.parts[parts[-1]] = RecordDict({"answer": ConfigRecord({"text": "x"})}).deflate()


def _elsewhere(link: SuperLink, parts: list[str]) -> None:
    """A whole message of another node's, where one of this node's is announced."""
    proto, tree = link.replies["lie"]
    proto.metadata.src_node_id = 8
    link.replies["lie"] = proto, tree


def _to_another(link: SuperLink, parts: list[str]) -> None:
    """A whole message of another type."""
    proto, tree = link.replies["lie"]
    proto.metadata.message_type = "evaluate"
    link.replies["lie"] = proto, tree


def _garbage(link: SuperLink, parts: list[str]) -> None:
    for part in parts:
        link.parts[part] = b"garbage"


@pytest.mark.parametrize("lie", [_another_kind, _elsewhere, _to_another, _garbage])
def test_what_is_no_message_is_refused_in_a_line_and_the_others_come(lie, grid, link):
    lie(link, link.add("lie", "false", uploaded=True))
    link.add("honest", "true", uploaded=True)
    one, other = sorted(pulled(grid, {"lie", "honest"}, 2), key=lambda reply: reply.has_error())
    assert text(one) == "true"
    assert other.error.code == UNTAKEN
    assert other.error.reason == "reply refused: it is no message of Flower's"
    assert other.metadata.reply_to_message_id == "lie"
    assert len(link.confirmed) == 2


def test_what_fetching_meets_comes_through(grid, link):
    link.add("one", "text", uploaded=True)
    link.ConfirmMessageReceived = None
    with pytest.raises(TypeError):
        pulled(grid, {"one"}, 1)
