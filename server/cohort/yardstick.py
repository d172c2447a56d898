"""What the training images weigh, by which all that is sent is measured.

They are the images that clients train on or hold out, once each, as they are stored. In a simulation the server has
all of them. In a deployment clients tell what theirs weigh when they join. No image weighs more than any can that is
decoded (`MOST_IMAGE_BYTES` in `splitfed.wire.messages`), or the client is refused; and no client's images count for
more than `MOST_TIMES` what those of the middle client weigh, unless they weigh to the byte what the server's own copy
of the share does that it deals to the client.
"""

from functools import cached_property
from statistics import median_low
from typing import Any

from splitfed.data.dataset import FederatedData
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.server.cohort.claims import MOST_TIMES
from splitfed.waiting import waiting


class Yardstick:
    """Knows what the images of a scenario's `data` weigh, or is told it by clients: then it is `reported`.

    It is the run's state: whoever goes on with it measures by the same, where files have been packed anew too, and
    while clients are away.
    """

    def __init__(self, scenario: Scenario, data: FederatedData) -> None:
        self.reported = isinstance(scenario.engine, Deployment)
        self._data = data
        self._told: dict[int, int] = {}
        self._dealt: dict[int, int] = {}
        self._known: int | None = None

    @property
    def bytes(self) -> int | None:
        """What the images weigh, of clients that have joined so far; None where nobody has told."""
        if not self.reported:
            return self._own if self._known is None else self._known
        return sum(self._believed().values()) or None

    def tell(self, client: int, weight: int | None) -> None:
        """Hear what a client says that its images weigh, in bytes. What it said first counts for the whole run."""
        if self.reported and weight:
            self._told.setdefault(client, weight)

    def state_dict(self) -> dict[str, Any]:
        """Return what the images weigh: all of them, or those of each client."""
        if self.reported:
            return {"told": [list(pair) for pair in sorted(self._told.items())]} if self._told else {}
        return {"bytes": self.bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned in an earlier attempt."""
        self._told = dict(state.get("told", []))
        self._known = state.get("bytes")

    @cached_property
    def _own(self) -> int:
        with waiting("weighing the images"):
            return self._data.images_bytes

    def _believed(self) -> dict[int, int]:
        most = MOST_TIMES * median_low(self._told.values()) if self._told else 0
        return {c: told if told <= most or told == self._share(c) else most for c, told in self._told.items()}

    def _share(self, client: int) -> int:
        """Return what the share weighs that the scenario deals to a client."""
        if client not in self._dealt:
            self._dealt[client] = self._data.train.stored_bytes(self._data.partitions[client])
        return self._dealt[client]
