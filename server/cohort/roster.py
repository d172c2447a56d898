"""Which node is which client, and how many images it holds: asked of every node when it first appears."""

import time
from collections.abc import Callable, Mapping
from logging import getLogger
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from splitfed.data.stratify import count_held_out
from splitfed.errors import RunError
from splitfed.server.cohort.dispatch import Dispatch
from splitfed.wire.messages import CONFIG

log = getLogger("splitfed")

_PAUSE, _ASK_AGAIN, _FAREWELL = 0.2, 15.0, 3.0  # seconds
_GOODBYE = 10.0  # seconds; a SuperNode looks every 3


class Roster:
    """The clients of a run, numbered from 0.

    `examples` are the images that each trains on, `nodes` the node that each was last seen at. A client that has none
    is there, but never online. `held_out` are the images that each holds out beside them, which is a `share` of all.
    `keys` tells which client a node is by the key that it has proven to hold; without it nodes are believed. `known`
    are the examples of an earlier attempt: a client that holds another number once a run has begun is refused, for
    nothing that follows would repeat. With `waits`, clients may come and go; one that was away, or cannot take part, is
    asked again. Else the run ends.
    """

    def __init__(
        self, dispatch: Dispatch, clients: int, question: dict[str, Any], known: dict[int, int], *, waits: bool,
        keys: Callable[[], Mapping[int, int]] | None, joined: Callable[[int, int, list[int]], None],
        share: float = 0.0,
    ) -> None:  # fmt: skip
        self.dispatch, self.grid, self.clients, self.question = dispatch, dispatch.grid, clients, question
        self.waits, self.keys, self.joined = waits, keys, joined
        self.share = share
        self.examples, self.held_out = dict(known), dict.fromkeys(known, 0)
        self._known = dict(known)
        self.nodes: dict[int, int] = {}
        self._asked: dict[str, tuple[int, float, float]] = {}
        self._refused: dict[int, tuple[str, float]] = {}
        if waits:  # a round may last for hours: whoever comes meanwhile has a part in the next one
            dispatch.meanwhile = self.online

    def online(self) -> set[int]:
        """Ask nodes that are new, and return the clients that are there and hold images."""
        there = set(self.grid.get_node_ids())
        self.nodes = {client: node for client, node in self.nodes.items() if node in there}
        self._take()  # before anybody is asked again: this may be called once a round, hours after the last answer came
        self._ask(there)
        self._take()
        self.nodes = {client: node for client, node in self.nodes.items() if node in there}
        return {client for client in self.nodes if self.examples[client]}

    def _take(self) -> None:
        for number, reply in self.dispatch.take(set(self._asked)).items():
            node, _, _ = self._asked.pop(number)
            problem = self._answer(node, reply)
            if problem is None:
                self._refused.pop(node, None)
            elif not self.waits:
                raise RunError(problem)
            else:
                if self._refused.get(node, ("", 0.0))[0] != problem:
                    log.warning("%s", problem)
                    if not reply.has_error() and "problem" not in reply.content.config_records.get(CONFIG, {}):
                        self._tell(node, problem)
                self._refused[node] = problem, time.monotonic()

    def _tell(self, node: int, problem: str) -> None:
        """Let whoever sits at that node know: nobody there sees what is printed here."""
        content = RecordDict({CONFIG: ConfigRecord({"problem": problem})})
        if (number := self.dispatch.send(Message(content, node, "query.refused"))) is not None:
            self.dispatch.forget(number)

    def gather(self, enough: int) -> None:
        """Return when so many clients are there, one with images at least. Raises RunError where they never will be."""
        while not self.online() or len(self.nodes) < enough:
            if not self.waits and not self._asked:
                raise RunError(f"the clients that answered are {sorted(self.nodes)}, not 0 to {self.clients - 1}")
            time.sleep(_PAUSE)
        empty = sorted(client for client in self.nodes if not self.examples[client] and client not in self._known)
        if empty:
            named = ", ".join(map(str, empty[:10])) + (", ..." if empty[10:] else "")
            log.warning("%d of %d clients hold no images and never train: %s", len(empty), self.clients, named)
        self._known = dict(self.examples)

    def goodbye(self) -> None:
        """Tell the clients that the run is over; whoever is busy hears of it later, or never."""
        end = time.monotonic() + _GOODBYE
        self.online()
        nodes = [node for _, node in sorted(self.nodes.items())]
        numbers = {self.dispatch.send(Message(RecordDict(), node, "query.goodbye")) for node in nodes} - {None}
        while numbers and time.monotonic() < end:
            numbers -= set(self.dispatch.take(numbers))  # type: ignore[arg-type]
            time.sleep(0.1)

    def _ask(self, there: set[int]) -> None:
        now = time.monotonic()
        for number, (node, asked, seen) in list(self._asked.items()):
            seen = now if node in there else seen
            self._asked[number] = node, asked, seen
            # It may have been restarted meanwhile; the answer of one that left at once may still be on its way.
            if now - seen > _FAREWELL or now - asked > _ASK_AGAIN:
                del self._asked[number]
                self.dispatch.forget(number)
        busy = {node for node, _, _ in self._asked.values()} | set(self.nodes.values())
        recently = {node for node, (_, when) in self._refused.items() if now - when < _ASK_AGAIN}
        for node in sorted(there - busy - recently):
            message = Message(RecordDict({CONFIG: ConfigRecord(self.question)}), node, "query")
            if (sent := self.dispatch.send(message)) is not None:
                self._asked[sent] = node, now, now

    def _answer(self, node: int, reply: Message) -> str | None:
        """Take a node's answer; return why it is refused, if it is."""
        if reply.has_error():
            return f"node {node} does not answer: {reply.error.reason}"
        answer = dict(reply.content.config_records.get(CONFIG, {}))
        client, examples = answer.get("partition-id"), answer.get("num-examples")
        held = answer.get("held-out", 0)
        if type(client) is not int or not 0 <= client < self.clients:
            return f"a node says that it is client {str(client)[:20]}, where there are clients 0 to {self.clients - 1}"
        if self.keys and self.keys().get(node) != client:
            return f"a node says that it is client {client}, but its key is another's"
        if "problem" in answer:
            return f"client {client} cannot take part: {str(answer['problem'])[:500]}"
        if type(examples) is not int or examples < 0:
            return f"client {client} says that it holds {str(examples)[:20]} images"
        if type(held) is not int or held < 0 or held != count_held_out(examples + held, self.share):
            return f"client {client} says that it holds out {str(held)[:20]} images beside {examples} that it trains on"
        if self._known.get(client, examples) != examples:
            return f"client {client} held {self._known[client]} images, now {examples}: start a new run"
        if self.nodes.get(client, node) != node:
            return f"a second node says that it is client {client}; the first one stays"
        self.nodes[client] = node
        self.examples[client], self.held_out[client] = examples, held
        self.grid.clients[node] = client
        if self.waits:
            self.joined(client, examples, sorted(set(range(self.clients)) - set(self.nodes)))
        return None
