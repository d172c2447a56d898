"""A run whose model has something to exit from: two blocks at the client, two at the server."""

from pathlib import Path
from shutil import copytree

import pytest
from helpers import DEEPER, small
from PIL import Image

from splitfed import simulate
from splitfed.data.sources.base import open_digits
from splitfed.inference.fitting import fit

_FAST = ("training.client.optimiser.lr=4e-3", "training.server.optimiser.lr=4e-3", "training.batch_size=32")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without exits."""
    sizes = ("data.limit=900", "data.test_limit=100", "federation.rounds=8", "checkpoints.keep=2")
    return simulate(small(*DEEPER, *_FAST, *sizes), runs=tmp_path_factory.mktemp("finished")).folder


@pytest.fixture(scope="session")
def with_exits(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with exits, of which the third is the server's."""
    run = Path(copytree(finished, tmp_path_factory.mktemp("exits") / "run"))
    fit(run, [2, 1, 3], epochs=2)
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run without exits, to make some in."""
    return Path(copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def digits() -> list[Image.Image]:
    """Images that such a run knows."""
    source = open_digits()[0]
    return [source.image(row) for row in range(9)]
