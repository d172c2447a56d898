"""The service's ledger: what crossed, by day, client, direction and role, in a file a day.

    day,client,direction,role,messages,sent_bytes

What adaptation computes is there too, by images, in the direction `here`, and takes no bytes. A file is written anew
each second in which something crossed, so it is as long as there are clients and roles, and the oldest make room for
new ones: what lies on disk is bounded.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from splitfed.errors import RunError, WriteError
from splitfed.files import told, write
from splitfed.inference.service.metrics import Metrics
from splitfed.run.folder import Held, locked
from splitfed.run.journal import count, read_table
from splitfed.run.ledger import Direction
from splitfed.wire.frame import Counted

log = logging.getLogger(__name__)

COLUMNS = ("day", "client", "direction", "role", "messages", "sent_bytes")
HERE = "here"
NOBODY = -1  # who has not said who it is, and the last ones where there are too many
_MOST_CLIENTS = 4096
_SECONDS = 1.0

Place = tuple[int, str, str]  # client, direction, role


def today() -> str:
    """Return the day, by UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


class Tally:
    """Counts frames and what else crosses, in `folder`, which is this process's within its `with` block; the newest
    `days` files stay. Raises RunError where another process has it or a file is broken, and WriteError on entry; a
    file that cannot be written later is told in the log, and tried again. Safe to call from threads."""

    def __init__(self, folder: Path, metrics: Metrics, days: int = 90, day: Callable[[], str] = today) -> None:
        self.folder, self._metrics, self._days, self._day = folder, metrics, days, day
        self._sums: dict[Place, list[int]] = defaultdict(lambda: [0, 0])
        self._clients: set[int] = set()
        self._of, self._changed, self._failing = "", False, False
        self._lock, self._over = threading.Lock(), threading.Event()
        self._entered = ExitStack()

    def __enter__(self) -> "Tally":
        with told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._entered.enter_context(locked(self.folder))
        except Held:
            raise RunError(
                f"{self.folder}: another process counts in it, such as 'splitfed serve-model' of the same run: end "
                "that, or name another folder with --ledger"
            ) from None
        self._begin(self._day())
        self._write()
        thread = threading.Thread(target=self._run, name="tally", daemon=True)
        thread.start()
        self._entered.callback(self._write)
        self._entered.callback(thread.join)
        self._entered.callback(self._over.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def frame(self, client: int, direction: Direction, counted: Counted) -> None:
        """Count a frame by its roles."""
        sizes = {role: part.sent for role, part in counted.sizes.items()} | {"envelope": counted.envelope}
        for role, sent in sizes.items():
            self.add(client, direction, role, sent)

    def add(self, client: int, direction: Direction, role: str, sent: int) -> None:
        """Count a message, or a part of one, of so many bytes."""
        self._metrics.crossed(direction, role, sent)
        self._count(client, direction, role, 1, sent)

    def images(self, client: int, role: str, images: int) -> None:
        """Count images that were computed here for what a role says."""
        self._metrics.computed(role, images)
        self._count(client, HERE, role, images, 0)

    def _count(self, client: int, direction: str, role: str, messages: int, sent: int) -> None:
        with self._lock:
            if (day := self._day()) != self._of:
                self._flush()
                self._begin(day)
            if client not in self._clients:
                client = client if len(self._clients) < _MOST_CLIENTS else NOBODY
                self._clients.add(client)
            found = self._sums[client, direction, role]
            found[0], found[1] = found[0] + messages, found[1] + sent
            self._changed = True

    def sums(self) -> dict[Place, tuple[int, int]]:
        """Return today's messages and bytes by client, direction and role."""
        with self._lock:
            return {place: (messages, sent) for place, (messages, sent) in self._sums.items()}

    def _run(self) -> None:
        while not self._over.wait(_SECONDS):
            self._write()

    def _write(self) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if not self._changed:
            return
        rows = [f"{self._of},{client},{direction},{role},{messages},{sent}\n"
                for (client, direction, role), (messages, sent) in sorted(self._sums.items())]  # fmt: skip
        try:
            write(self.folder / f"{self._of}.csv", ",".join(COLUMNS) + "\n" + "".join(rows))
            self._changed = self._failing = False
        except WriteError as error:
            if not self._failing:
                log.warning("%s; requests are answered, and it is tried again", error)
            self._failing = True

    def _begin(self, day: str) -> None:
        """Go on with a day, and let go of the oldest."""
        self._of, self._changed = day, False
        path = self.folder / f"{day}.csv"
        self._sums.clear()
        if path.exists():
            for place, messages, sent in read_table(path, _row, COLUMNS):
                self._sums[place] = [messages, sent]
        self._clients = {client for client, _, _ in self._sums}
        days = sorted(self.folder.glob("[0-9]*-[0-9]*-[0-9]*.csv"))
        for old in days[: max(0, len(days) + (not path.exists()) - self._days)]:
            with suppress(OSError):
                old.unlink()


def _row(line: dict[str, str]) -> tuple[Place, int, int]:
    client = NOBODY if line["client"] == str(NOBODY) else count(line["client"])
    if line["direction"] not in (*get_args(Direction), HERE) or not line["role"].isidentifier():
        raise ValueError("no row of a service's ledger")
    return (client, line["direction"], line["role"]), count(line["messages"]), count(line["sent_bytes"])
