"""Sends messages to clients and takes their replies as they come, without waiting for those who are lost."""

import time
from collections.abc import Callable, Collection
from logging import getLogger

from flwr.app import Message

from splitfed.server.weights.grid import WireGrid, refusal

log = getLogger("splitfed")

# Over HTTP a look costs the server about 10 ms: who has waited long for a reply may find it a twentieth later.
_PAUSE, _LONGEST_PAUSE, _SHARE = 0.1, 0.5, 0.05
_LOOK_SECONDS, _SAY_SECONDS = 2.0, 20.0
# So many replies of a node that nobody waits for any more: one that never answers would be asked for more at each look.
_MOST_LATE = 8
_MOST_LATE_IN_ALL = 1024


class Mail:
    """The messages under way over a grid."""

    def __init__(self, grid: WireGrid) -> None:
        self.grid = grid
        self._sent: dict[str, tuple[int, str]] = {}  # to which node, and of what type
        self._late: list[str] = []

    def send(self, message: Message) -> str | None:
        """Send a message and return its number; None where its node is no longer there."""
        number = next(iter(self.grid.push_messages([message])), None)
        if number is not None:
            self._sent[number] = message.metadata.dst_node_id, message.metadata.message_type
        return number

    def send_together(self, messages: list[Message]) -> list[str]:
        """Send messages to nodes in this process, in one call, and return their numbers."""
        numbers = list(self.grid.push_messages(messages))
        of = [(message.metadata.dst_node_id, message.metadata.message_type) for message in messages]
        self._sent |= zip(numbers, of, strict=True)
        return numbers

    def take(self, numbers: set[str]) -> dict[str, Message]:
        """Return the replies that have come, by the number of their message.

        What comes too late for a round that has ended is taken too, so that its bytes are counted, and forgotten."""
        wanted, came = numbers.union(self._late), {}
        asked = {self._sent[number]: number for number in wanted}  # in one process messages bear no number
        of_node = {node: number for (node, _), number in asked.items()}
        for reply in self.grid.pull_messages(wanted):
            number, node = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
            if number not in wanted:
                number = asked.get((node, reply.metadata.message_type), of_node[node])
            question = self._sent.pop(number)
            if number in self._late:
                self._late.remove(number)
            if number in numbers:
                # Of a client that is gone the SuperLink answers, in its own name.
                fits = reply.has_error() or question == (reply.metadata.src_node_id, reply.metadata.message_type)
                came[number] = reply if fits else refusal(reply, "it answers what nobody asked")
        return came

    def forget(self, number: str) -> None:
        """Wait no longer for the reply to a message; the latest of a node are still looked for."""
        self._late.append(number)
        node = self.node(number)
        of_node = [late for late in self._late if self.node(late) == node]
        for old in of_node[:-_MOST_LATE] or self._late[:-_MOST_LATE_IN_ALL]:
            self._late.remove(old)
            del self._sent[old]

    def node(self, number: str) -> int:
        """Return the node that a message under way is for."""
        return self._sent[number][0]


def after(seconds: float | None) -> Callable[[], bool]:
    """Return what tells whether so many seconds have passed from now; never with None."""
    limit = None if seconds is None else time.monotonic() + seconds
    return lambda: limit is not None and time.monotonic() > limit


class Dispatch:
    """Exchanges messages with the clients of a round; `meanwhile` is called now and then while it waits for them. With
    `says` it tells, once in an exchange, for whom it has waited long."""

    def __init__(self, mail: Mail, meanwhile: Callable[[], object] = lambda: None, says: bool = False) -> None:
        self.mail, self.meanwhile, self.says = mail, meanwhile, says

    def exchange(
        self, messages: dict[int, Message], lost: Callable[[], set[int]], settle: Callable[[int, Message | None], None],
        over: Callable[[], object] = lambda: False, *, together: bool = False,
        begun: Callable[[], Collection[int]] = tuple,
    ) -> None:  # fmt: skip
        """Send each client its message, and `settle` each reply as it comes; None for a client that is lost or gone,
        and for all who are left once it is `over`. `together` is for clients in one process that wait for each other:
        else each would be done before the next begins. Of those nobody is lost but who says so. Those who have `begun`
        are seen to be at work."""
        mail = self.mail
        waiting: dict[str, int] = {}

        def take() -> None:
            for number, reply in mail.take(set(waiting)).items():
                settle(waiting.pop(number), reply)

        if together:
            waiting |= zip(mail.send_together(list(messages.values())), messages, strict=True)
            while waiting:
                take()
            return
        for client, message in messages.items():
            number = mail.send(message)
            if number is None:
                settle(client, None)
                continue
            waiting[number] = client
            # In one process the reply is there already: what is settled now need not be held until all have trained.
            take()
        looked = since = time.monotonic()
        away = set[int]()
        says = self.says
        while waiting:
            gone, still = set(waiting.values()) if over() else lost(), len(waiting)
            if time.monotonic() - looked > _LOOK_SECONDS:
                # A client that has left, and was already away a look ago: what it sent before has had time to come.
                there, before = set(mail.grid.get_node_ids()), away
                away = {client for number, client in waiting.items() if mail.node(number) not in there}
                self.meanwhile()
                gone, looked = gone | (away & before), time.monotonic()
            for number in [number for number, client in waiting.items() if client in gone]:
                mail.forget(number)
                settle(waiting.pop(number), None)
            take()
            now = time.monotonic()
            since = now if len(waiting) < still else since  # clients who began together end together
            if says and now - since > _SAY_SECONDS and (idle := sorted(set(waiting.values()) - set(begun()))):
                log.warning("still waiting for clients that have sent nothing yet: %s", ", ".join(map(str, idle)))
                says = False
            if waiting:
                time.sleep(min(_LONGEST_PAUSE, max(_PAUSE, _SHARE * (now - since))))
