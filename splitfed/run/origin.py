"""What a run starts from: the files that its scenario names, by their full paths, and fingerprints of what lies there.

A run that goes on is held to the fingerprints. The paths may change: the same images may lie elsewhere by then.
"""

import logging
from pathlib import Path

from splitfed.data.dataset import FederatedData, forget, load
from splitfed.data.sources.fingerprint import differences
from splitfed.model.build import fingerprint
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.scenario.places import resolved, with_value
from splitfed.seeds import Key
from splitfed.waiting import waiting

logger = logging.getLogger(__name__)


def pinned(scenario: Scenario, data: str | None = None, weights: str | None = None) -> Scenario:
    """Return the scenario with its paths written out and the fingerprints of what lies there, for a run to start from.

    One that has fingerprints is held to them; `data` and `weights` are other places of the same. The images that the
    run uses are looked at. Raises SplitfedError for data that cannot be opened, are others, or cannot be decoded, and
    for weights that are missing or others.
    """
    if data is not None:
        scenario = with_value(scenario, ("data", "path"), data)
    if weights is not None:
        scenario = with_value(scenario, ("model", "weights"), weights)
    scenario = resolved(scenario)
    forget()
    with waiting("loading the data"):
        found = load_data(scenario)
    # A deployment's clients have the images to train on, and look at them themselves.
    with waiting("looking at the images"):
        found.check(training=not isinstance(scenario.engine, Deployment))
    scenario = with_value(scenario, ("data", "fingerprint"), found.fingerprint)
    if scenario.model.weights is None:
        return scenario
    return with_value(scenario, ("model", "fingerprint"), fingerprint(scenario.model))


def continued(scenario: Scenario, folder: Path, data: str | None = None, weights: str | None = None) -> Scenario:
    """Return a run's own scenario to go on with, as `pinned` does; warns where a run that has begun has no
    fingerprint."""
    if scenario.data.fingerprint is None and (folder / "checkpoints").exists():
        logger.warning(
            "this run was started without a fingerprint of its data: nothing tells whether those at %s are the same",
            data or scenario.data.path,
        )
    return pinned(scenario, data, weights)


def load_data(scenario: Scenario) -> FederatedData:
    """Load the data of a scenario as all who take part in its run do. Raises DataError."""
    federation = scenario.federation
    return load(scenario.data, scenario.model.image_size, federation.clients, Key(scenario.seed).at("data"))


def same_data(scenario: Scenario, stored: Scenario) -> bool:
    """Tell whether a scenario's data are those of a run, wherever they lie. Raises DataError."""
    expected = stored.data.fingerprint
    return expected is not None and not differences(load_data(scenario).fingerprint, expected)
