"""Flower's strategy at work: which messages it makes of a round, what it makes of the replies, and its state.

Flower's own loop, `Strategy.start`, is not used: it samples from global random state and knows nothing of streams, lost
clients or budgets.
"""

from inspect import isroutine
from logging import getLogger
from typing import Any

import flwr.serverapp.strategy as flower
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import Strategy

from splitfed.errors import RunError, StrategyError
from splitfed.federation.own_strategy import OwnStrategy
from splitfed.federation.strategies import StrategySettings
from splitfed.server.weights.grid import CohortGrid
from splitfed.wire.messages import ARRAYS, CONFIG, EXAMPLES, TRAIN_LOSS

log = getLogger("splitfed")

# What Flower's strategies have as attributes and the platform decides: all of the cohort, under our names.
_OURS = {
    "fraction_train": 1.0, "fraction_evaluate": 1.0, "min_train_nodes": 1, "min_evaluate_nodes": 1,
    "min_available_nodes": 1, "weighted_by_key": EXAMPLES, "arrayrecord_key": ARRAYS, "configrecord_key": CONFIG,
    "train_loss_key": TRAIN_LOSS,
}  # fmt: skip


class Aggregation:
    """A scenario's strategy; whatever it raises becomes a RunError that names it. Raises RunError where a strategy of
    the user's own cannot be imported or called so."""

    def __init__(self, settings: StrategySettings | OwnStrategy) -> None:
        self.settings, self.name = settings, settings.kind
        self._kind = settings.load() if isinstance(settings, OwnStrategy) else getattr(flower, settings.kind)
        self.restart()

    def restart(self) -> None:
        """Make the strategy anew, without what it keeps from round to round. Raises RunError."""
        try:
            self.strategy: Strategy = self._kind(**self.settings.arguments())
        except Exception as error:
            raise self._failed("cannot be made", error) from error
        for name, value in _OURS.items():
            if hasattr(self.strategy, name):
                setattr(self.strategy, name, value)
        self._made = dict(vars(self.strategy))

    def configure(self, round: int, arrays: ArrayRecord, config: ConfigRecord, nodes: list[int]) -> dict[int, Message]:
        """Return the messages to train by the node that each is for. Raises RunError unless there is one for every node
        of the cohort, with the front's weights."""
        try:
            messages = list(self.strategy.configure_train(round, arrays, config, CohortGrid(nodes)))  # type: ignore[arg-type]
        except Exception as error:
            raise self._failed(f"configure_train of round {round}", error) from error
        found = {message.metadata.dst_node_id: message for message in messages}
        if sorted(found) != sorted(nodes) or len(messages) != len(nodes):
            raise RunError(
                f"{self.name}: configure_train made {len(messages)} messages for a cohort of {len(nodes)}: sampling is "
                "the platform's, it must make one for each node of its grid"
            )
        for message in messages:
            content = message.content
            sent = content.array_records.get(ARRAYS)
            wrong = set(content) != {ARRAYS, CONFIG} or CONFIG not in content.config_records
            if sent is None or list(sent) != list(arrays) or wrong:
                raise RunError(
                    f"{self.name}: configure_train must send the arrays and the config that it is given, as "
                    f"{ARRAYS!r} and {CONFIG!r}"
                )
        return found

    def aggregate(self, round: int, replies: list[Message], arrays: ArrayRecord) -> ArrayRecord | None:
        """Return the new front from the replies of those who trained, in order of client and in float64, where `arrays`
        is the front before; None, with a warning, where the strategy makes nothing of so few. Raises StrategyError
        where it raises, and RunError where what it returns is no such front."""
        # What a scenario is refused for, that a lost client must not bring about either.
        if problem := self.settings.problem(len(replies)):
            log.warning("round %d: %s: %s; the front stays as it was", round, self.name, problem)
            return None
        try:
            made, _ = self.strategy.aggregate_train(round, replies)
        except Exception as error:
            raise StrategyError(str(self._failed(f"aggregate_train of round {round}", error))) from error
        if made is None:
            log.warning("round %d: %s aggregated nothing; the front stays as it was", round, self.name)
            return None
        shapes, found = ({n: tuple(a.shape) for n, a in one.items()} for one in (arrays, made))
        if found != shapes:
            wrong = sorted(set(shapes.items()) ^ set(found.items()))[0][0]
            raise RunError(
                f"{self.name}: aggregate_train must return the front's arrays under their names: see {wrong!r}"
            )
        return made

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs beside the settings; nothing where that is nothing.

        It is what a strategy's `state_dict` returns, if it has one, and else all attributes that have changed since it
        was made, or may have, functions aside."""
        if hasattr(self.strategy, "state_dict"):
            return self.strategy.state_dict()
        return {name: value for name, value in vars(self.strategy).items() if not self._as_made(name, value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` once returned, in the place of whatever has come since. Raises RunError where it
        is another's."""
        self.restart()
        if not state:
            return
        try:
            if hasattr(self.strategy, "load_state_dict"):
                self.strategy.load_state_dict(state)
            else:
                vars(self.strategy).update(state)
        except Exception as error:
            raise self._failed("the state in the checkpoint cannot be read", error) from error

    def _as_made(self, name: str, value: Any) -> bool:
        if isroutine(value) or isinstance(value, type):
            return True
        plain = value is None or isinstance(value, bool | int | float | str)
        return plain and name in self._made and self._made[name] is value

    def _failed(self, what: str, error: BaseException) -> RunError:
        text = " ".join(str(error).split())
        return RunError(f"federation.strategy: {self.name}: {what}: {type(error).__name__}: {text}")
