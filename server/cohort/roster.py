"""Which node is which client, and how many images it holds: asked of every node when it first appears."""

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

from flwr.app import Message, MessageType, RecordDict

from splitfed.data.stratify import count_held_out
from splitfed.errors import RunError, WireError
from splitfed.server.cohort.claims import Claims
from splitfed.server.cohort.dispatch import Mail
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.cohort.sparing import Sparing, worth_telling
from splitfed.server.cohort.yardstick import Yardstick
from splitfed.wire.messages import CONFIG, GOODBYE, REFUSED, UNTAKEN, Identity, Question, Refusal
from splitfed.wire.records import shown

log = getLogger("splitfed")

_PAUSE, _ASK_AGAIN, _LONGEST, _FAREWELL = 0.2, 15.0, 3600.0, 3.0  # seconds
# Of one that is silent for ever the latest count, and of those who are refused not each gets a line: where there are no
# keys anybody may make nodes, one after another.
_QUESTIONS, _LINES = 4, 20
_MOST_REFUSED = 1000  # of nodes that were refused a moment ago
_GOODBYE = 10.0  # seconds; a SuperNode looks every 3


class Roster:
    """The clients of a run, numbered from 0.

    `examples` are the images that each trains on, `nodes` the node that each was last seen at. A client that has none
    is there, but never online. `held_out` are the images that each holds out beside them, which is a `share` of all.
    `profiles` are those that clients say, of the `known_profiles` of a deployment. `keys` tells which client a node is
    by the key that it has proven to hold; without it nodes are believed. A client that holds another number of images
    once a run has begun is refused, for nothing that follows would repeat: the examples are the run's state. So is one
    whose number `claims` knows better; who is out by `refusals` is there, and never online. What a client's images
    weigh is told to the `yardstick`. With `waits`, clients may come and go; one that was away, or cannot take part, is
    asked again. Else the run ends."""

    def __init__(
        self, mail: Mail, clients: int, question: Question, *, waits: bool,
        keys: Callable[[], Mapping[int, int]] | None, joined: Callable[[int, int, list[int]], None],
        share: float = 0.0, refusals: Refusals | None = None, claims: Claims | None = None,
        yardstick: Yardstick | None = None, known_profiles: Collection[str] = (),
        profiles: dict[int, str] | None = None,
    ) -> None:  # fmt: skip
        self._known_profiles = known_profiles
        self.mail, self.grid, self.clients, self.question = mail, mail.grid, clients, question
        self.waits, self.keys, self.joined = waits, keys, joined
        self.share, self.claims, self.yardstick = share, claims, yardstick
        self.refusals = refusals or Refusals()
        self._told_out = set[int]()
        self.examples: dict[int, int] = {}
        self.held_out: dict[int, int] = {}
        self.nodes: dict[int, int] = {}
        self.profiles = {} if profiles is None else profiles
        self._known: dict[int, int] = {}
        self._asked: dict[str, int] = {}
        self._silent: dict[int, _Silent] = {}
        self._refused: dict[int, tuple[str, float]] = {}
        self._lines = Sparing(_LINES + 2 * clients)
        self._joined = Counter[int]()

    def state_dict(self) -> dict[str, Any]:
        """Return how many images each client trains on."""
        return {"examples": [[client, number] for client, number in sorted(self.examples.items()) if number]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned in an earlier attempt."""
        self._known = dict(state["examples"])
        self.examples, self.held_out = dict(self._known), dict.fromkeys(self._known, 0)

    def meanwhile(self) -> None:
        """Let in who comes while a round goes on, as it may last for hours: it has a part in the next one."""
        if self.waits:
            self.online()

    def online(self) -> set[int]:
        """Ask nodes that are new, and return the clients that are there and hold images."""
        there = set(self.grid.get_node_ids())
        self.nodes = {client: node for client, node in self.nodes.items() if node in there}
        self._take()  # before anybody is asked again: this may be called once a round, hours after the last answer came
        self._ask(there)
        self._take()
        self.nodes = {client: node for client, node in self.nodes.items() if node in there}
        return {client for client in self.nodes if self.examples[client]} - self._out()

    def _out(self) -> set[int]:
        """Return who is left out for good; whoever sits there is told once."""
        out = self.refusals.out
        for client in sorted((out & set(self.nodes)) - self._told_out if self.waits else ()):
            self._told_out.add(client)
            self._tell(self.nodes[client], f"client {client} {self.refusals.why()}")
        return out

    def _take(self) -> None:
        came = self.mail.take(set(self._asked))
        # Of a node that has answered several questions the last answer counts.
        for node, reply in {self._asked.pop(number): reply for number, reply in came.items()}.items():
            self._forget(node)
            try:
                self._admit(node, reply)
            except _Refused as refused:
                self._refuse(node, str(refused), refused.knows)
            else:
                self._refused.pop(node, None)

    def _refuse(self, node: int, problem: str, knows: bool) -> None:
        """Leave a node out for now, and say so once, also to the node, if what it said has told nobody there. A node
        that cannot take part waits for that, and then leaves."""
        if not self.waits:
            raise RunError(problem)
        now = time.monotonic()
        if self._refused.get(node, ("", 0.0))[0] != problem:
            self._lines.warn(problem)
            if not knows:
                self._tell(node, problem)
        self._refused[node] = problem, now

    def _tell(self, node: int, problem: str) -> None:
        """Let whoever sits at that node know: nobody there sees what is printed here."""
        content = RecordDict({CONFIG: Refusal(problem).write()})
        if (number := self.mail.send(Message(content, node, REFUSED))) is not None:
            self.mail.forget(number)

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

    def known(self) -> dict[int, int]:
        """Return how many images each client trains on that was ever there, in an earlier attempt too."""
        return {**self._known, **self.examples}

    def goodbye(self, kind: str = GOODBYE) -> None:
        """Tell the clients that the run is over, or by another `kind` of message that it goes on without them; whoever
        is busy hears of it later, or never."""
        end = time.monotonic() + _GOODBYE
        self.online()
        nodes = [node for _, node in sorted(self.nodes.items())]
        numbers = {self.mail.send(Message(RecordDict(), node, kind)) for node in nodes} - {None}
        while numbers and time.monotonic() < end:
            numbers -= set(self.mail.take(numbers))  # type: ignore[arg-type]
            time.sleep(0.1)

    def _ask(self, there: set[int]) -> None:
        now = time.monotonic()
        for node, silent in list(self._silent.items()):
            silent.seen = now if node in there else silent.seen
            # Who has left may have been restarted; the answer of one that left at once may still be on its way.
            if now - silent.seen > _FAREWELL:
                self._forget(node)
        still = [(node, told) for node, told in self._refused.items() if node in there or now - told[1] < _ASK_AGAIN]
        self._refused = dict(sorted(still, key=lambda one: (one[0] in there, one[1][1]))[-_MOST_REFUSED:])
        recently = {node for node, (_, when) in self._refused.items() if now - when < _ASK_AGAIN}
        for node in sorted(there - set(self.nodes.values()) - recently):
            silent = self._silent.get(node, _Silent(now, now))
            if silent.again > now:
                continue
            message = Message(RecordDict({CONFIG: self.question.write()}), node, MessageType.QUERY)
            if (sent := self.mail.send(message)) is not None:
                # A question may be lost with the process that it was for; an answer to the first counts as well.
                self._asked[sent] = node
                silent.asked.append(sent)
                if len(silent.asked) > _QUESTIONS:
                    del self._asked[oldest := silent.asked.popleft()]
                    self.mail.forget(oldest)
                silent.again, silent.pause = now + silent.pause, min(2 * silent.pause, _LONGEST)
                self._silent[node] = silent

    def _forget(self, node: int) -> None:
        """Wait for no answer of a node's any more."""
        self._silent.pop(node, None)
        for number in [number for number, asked in self._asked.items() if asked == node]:
            del self._asked[number]
            self.mail.forget(number)

    def _admit(self, node: int, reply: Message) -> None:
        """Take a node's answer. Raises _Refused."""
        if reply.has_error():
            knows = reply.error.code != UNTAKEN
            raise _Refused(f"node {node} does not answer: {reply.error.reason}", knows)
        try:
            identity = Identity.read(reply.content, self.clients)
            if self.claims and not identity.problem:
                self.claims.check(identity.client, identity.examples)
        except WireError as error:
            raise _Refused(str(error)) from None
        client, examples, held_out = identity.client, identity.examples, identity.held_out or 0
        if self.keys and self.keys().get(node) != client:
            raise _Refused(f"a node says that it is client {client}, but its key is another's")
        if identity.problem:
            raise _Refused(f"client {client} cannot take part: {identity.problem}")
        if held_out != count_held_out(examples + held_out, self.share):
            raise _Refused(
                f"client {client} says that it holds out {held_out} images beside {examples} that it trains on"
            )
        self._check_profile(client, identity.profile)
        if self._known.get(client, examples) != examples:
            raise _Refused(f"client {client} held {self._known[client]} images, now {examples}: start a new run")
        if self.nodes.get(client, node) != node:
            raise _Refused(f"a second node says that it is client {client}; the first one stays")
        self.nodes[client] = node
        self.examples[client], self.held_out[client] = examples, held_out
        self.profiles[client] = identity.profile or ""
        if self.yardstick is not None:
            self.yardstick.tell(client, identity.images_bytes)
        self.grid.introduce(node, client)
        self._joined[client] += 1
        if self.waits and worth_telling(self._joined[client]):
            self.joined(client, examples, sorted(set(range(self.clients)) - set(self.nodes)))

    def _check_profile(self, client: int, profile: str | None) -> None:
        """Raise _Refused for a profile that the scenario has not, and where none is said of those that it has."""
        if self.waits and (profile or "") not in (self._known_profiles or ("",)):
            has = f"has {', '.join(self._known_profiles)}" if self._known_profiles else "has none"
            said = "says no profile" if profile is None else f"says that its profile is {shown(profile, 40)}"
            raise _Refused(f"client {client} {said}, where the scenario {has}")


@dataclass
class _Silent:
    """A node that was asked: when it was last there, when it is asked `again`, the pause after that, and the numbers of
    the questions."""

    seen: float
    again: float
    pause: float = _ASK_AGAIN
    asked: deque[str] = field(default_factory=deque)


class _Refused(Exception):
    """Why a node is not taken, and whether whoever sits there `knows` it already."""

    def __init__(self, problem: str, knows: bool = False) -> None:
        super().__init__(problem)
        self.knows = knows
