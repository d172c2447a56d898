"""What a client's machine decides for itself, and no server: which client it is, where its images are, what it trains
on. It comes with the node, from the command that joined; the scenario comes from the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from splitfed.clients.connect import Reach
from splitfed.errors import RunError, ScenarioError
from splitfed.files import expanded
from splitfed.model.build import fingerprint
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment, EngineConfig, Remote
from splitfed.scenario.places import with_value
from splitfed.wire.records import shown

_KEYS: dict[str, type] = {
    "splitfed-data": str, "splitfed-data-path": str, "splitfed-device": str, "splitfed-threads": int,
    "splitfed-chunk": int,
    "splitfed-states": str, "splitfed-host": str, "splitfed-ca": str, "splitfed-weights": str,
    "splitfed-profile": str,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """One client's own settings; all but `partition`, its number from 0 on, may be left out.

    With `data`, the images there are this client's; without it, it takes its share of the scenario's data set, which
    lies at `data_path` if that is given. `device`, `threads` (torch's) and `chunk` stand in for the scenario's.
    `states` is the folder of what it keeps between rounds (None: in the run's folder), `host` the one that it joined,
    `ca` what that host proves itself by. `weights` is where this machine has the file of the scenario's weights, if
    clients load them. `profile` is which of the scenario's this client is, in a deployment.
    """

    partition: int
    data: str | None = None
    data_path: str | None = None
    device: str | None = None
    threads: int | None = None
    states: Path | None = None
    host: str | None = None
    ca: Path | None = None
    weights: Path | None = None
    profile: str | None = None
    chunk: int | None = None

    @classmethod
    def read(cls, node_config: Mapping[str, Any]) -> Self:
        """Read what Flower's context has for this node. Raises RunError for what is missing, unknown or of another
        kind."""
        partition = node_config.get("partition-id")
        if type(partition) is not int or partition < 0:
            raise RunError(f"partition-id: {_what(partition)} is no client's number, which is 0 or more")
        found = {key: value for key, value in node_config.items() if key.startswith("splitfed-")}
        for key, value in found.items():
            if key not in _KEYS:
                raise RunError(f"{key}: unknown setting of a client; known are {', '.join(_KEYS)}")
            if type(value) is not _KEYS[key] or not value or (isinstance(value, int) and value < 1):
                wanted = "a number from 1 on" if _KEYS[key] is int else "a text"
                raise RunError(f"{key}: must be {wanted}, not {_what(value)}")
        values: dict[str, Any] = {key[len("splitfed-") :].replace("-", "_"): value for key, value in found.items()}
        if values.keys() >= {"data", "data_path"}:
            raise RunError("splitfed-data, splitfed-data-path: a client has its own images or a share, not both")
        for name in values.keys() & {"states", "ca", "weights"}:
            values[name] = expanded(values[name])
        return cls(partition, **values)

    def with_weights(self, scenario: Scenario) -> Scenario:
        """Return the scenario with the file of weights that this client loads. Raises RunError where this machine's own
        place of it is not known, and ModelError where the file is another than the server's."""
        if (named := scenario.model.weights) is None:
            return scenario
        if self.weights is not None:
            scenario = with_value(scenario, ("model", "weights"), str(self.weights))
            fingerprint(scenario.model)  # the file of a simulation is the one that the run was started with
        elif isinstance(scenario.engine, Deployment):
            # Which of this machine's files are opened is not the server's to say.
            raise RunError(
                f"the scenario's weights lie in a file, {Path(named).name}, on the server's machine, "
                "and clients load them themselves: say with --weights where it lies here"
            )
        return scenario

    def with_chunk(self, scenario: Scenario) -> Scenario:
        """Return the scenario with the chunk in which this machine computes: all at once where it takes a whole
        mini-batch. Raises RunError where it has no place."""
        if self.chunk is None:
            return scenario
        chunk = self.chunk if self.chunk < scenario.training.batch_size else "null"
        try:
            return scenario.with_([f"training.client.chunk={chunk}"])
        except ScenarioError as error:
            raise RunError(f"--chunk {self.chunk}: {error.problems[0]}") from None

    def check_profile(self, scenario: Scenario) -> None:
        """Raise RunError where this client is of no profile that a deployment's scenario has, though it has some."""
        known = ", ".join(scenario.federation.profiles)
        if not isinstance(scenario.engine, Deployment):
            return  # there they are dealt
        if self.profile is None and known:
            raise RunError(f"the server's scenario has profiles: say with --profile which this client is of: {known}")
        if self.profile is not None and self.profile not in scenario.federation.profiles:
            there = f"has the profiles {known}" if known else "has no profiles: leave it out"
            raise RunError(f"--profile {shown(self.profile, 40)}: the server's scenario {there}")

    def reach(self, engine: EngineConfig) -> Reach:
        """Return how this client gets to the split server, and how patient it is under this engine."""
        patience = {"deadline": engine.deadline, "grace": engine.grace} if isinstance(engine, Remote) else {}
        return Reach(self.host, self.ca, **patience)

    def states_of(self, run: str) -> Path:
        """Return the folder of what this run's clients keep here. `run` is the run's folder, or its name alone where
        `states` is set; then it is the server's word, and RunError is raised for one that might lead elsewhere."""
        if self.states is None:
            return Path(run) / "clients"
        if not run.isprintable() or set(run) & set('/\\:*?"<>|') or run.strip(". ") != run or not 0 < len(run) < 161:
            raise RunError(f"the server calls its run {_what(run)}, which cannot name a folder here")
        return self.states / run


def _what(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."
