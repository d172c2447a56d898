"""Memory as the rounds of the last phase see it: who has something left to send, and passes over what was sent."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from splitfed.compression.reducers.base import Reducer
from splitfed.errors import Diverged
from splitfed.federation.memory import Memory as Settings
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.server.back.server import SplitServer
from splitfed.server.memory.alter import Alter
from splitfed.server.memory.replay import replay
from splitfed.server.memory.store import Store
from splitfed.split.bounds import largest

# What share of a pass may come to nothing, as its loss is no number, before the pass does.
_MOST_SPOILT = 0.5


@dataclass(frozen=True, slots=True)
class Recalled:
    """What a pass over memory came to: the mean loss, and how many samples it went over."""

    loss: float
    samples: int


class Memory:
    """Fills a store in some rounds, and trains the back on it in others. `to_send(examples)` says how many mini-batches
    so many images make in all their variants."""

    def __init__(
        self, scenario: Scenario, settings: Settings, store: Store, split: SplitServer, reducer: Reducer, alter: Alter,
        to_send: Callable[[int], int],
    ) -> None:  # fmt: skip
        self.settings, self.store, self._split, self._alter = settings, store, split, alter
        self._separable, self._to_send, self._key = reducer.separable, to_send, Key(scenario.seed).at("memory")
        federation = scenario.federation
        # A joint step is as large as those of the phases before, whose learning rate it has.
        joined = federation.cohort_size if federation.mode == "psl" else 1
        self._batch = scenario.training.batch_size * joined
        self._resting = set[int]()  # who did not come to an end when it was last asked, until after the next pass

    def missing(self, examples: Mapping[int, int]) -> set[int]:
        """Return who, of clients that hold so many images, has sent less than all of them."""
        return {client for client, number in examples.items() if self.store.batches(client) < self._to_send(number)}

    def asked(self, examples: Mapping[int, int]) -> set[int]:
        """Return who of such clients is to send in the next round: whoever has something left, but for those who did
        not come to an end in the last one, as long as there is something to go over."""
        missing = self.missing(examples)
        return missing - self._resting if self.store.samples else missing

    def close(self, examples: Mapping[int, int]) -> None:
        """End a round in which these clients were asked to send."""
        self.store.close()
        self._resting = self.missing(examples)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs."""
        kept = self.store.state_dict()
        return kept | {"resting": sorted(self._resting)} if kept or self._resting else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned. Raises RunError for damaged memory."""
        self._resting = set(state.get("resting", ()))
        self.store.load_state_dict(state)

    def steps(self) -> int:
        """Return about how many mini-batches a pass takes."""
        return max(1, -(-self.store.samples // self._batch))

    def largest(self) -> dict[int, float]:
        """Return the largest magnitude in what is kept of each client."""
        most: dict[int, float] = {}
        for place in self.store.places():
            client = place.segment.client
            most[client] = max(most.get(client, 0.0), largest([self.store.read(place).smashed]))
        return most

    def forget_all_but(self, joined: Collection[int], round: int) -> None:
        """Forget who has left, where only those who are there count."""
        self.store.expire(round)
        if self.settings.keep == "joined":
            self.store.forget({place.segment.client for place in self.store.places()} - set(joined), round)

    def recall(self, round: int, lr: float, on_step: Callable[[], None]) -> Recalled:
        """Train the back on all that is kept, once. Raises Diverged where most of it teaches nothing."""
        key = self._key.at(round)
        batches = replay(self.store, self._batch, key, round, separable=self._separable)
        total, samples, spoilt = 0.0, 0, list[tuple[int, Diverged]]()
        for batch, outcome in self._split.learn(round, lr, batches, self._alter):
            if isinstance(outcome, Diverged):
                spoilt.append((len(batch.targets), outcome))
            else:
                total, samples = total + outcome[1] * len(batch.targets), samples + len(batch.targets)
            on_step()
        self._resting = set()
        lost = sum(number for number, _ in spoilt)
        if lost > _MOST_SPOILT * (samples + lost):
            raise spoilt[0][1]
        return Recalled(total / max(1, samples), samples)
