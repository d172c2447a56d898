"""What holds for all tests: no network, one thread, no cache of the user's, and no plug-in of the environment's."""

import atexit
import os
import runpy
import shutil
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

# Before anything imports these libraries: they read their settings once. Processes that tests start inherit them.
_home = tempfile.mkdtemp(prefix="splitfed-tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": _home,
    "FLWR_HOME": _home,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",  # models are tiny: threads would cost more than they bring
}
for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
    os.environ.pop(name, None)

_alone = Path(__file__).parent / "alone"
os.environ["SPLITFED_TESTS_HIDE"] = os.pathsep.join(sys.path)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_alone), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(_alone / "sitecustomize.py"))  # this process has started already

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402

import splitfed.waiting  # noqa: E402

os.fsync = lambda handle: None  # no test has a power cut, and a run asks for it some forty times
splitfed.waiting.PATIENCE = 3600.0  # what a slow machine says on top is nothing that a test waits for
torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Four CAs with a server certificate each: a good one, another good one, an expired one, and another host's."""
    from channels import certify

    folder = tmp_path_factory.mktemp("tls")
    return {
        "good": certify(folder / "good"), "other": certify(folder / "other"),
        "old": certify(folder / "old", days=-1), "elsewhere": certify(folder / "elsewhere", host="10.9.8.7"),
    }  # fmt: skip


@pytest.fixture
def without(monkeypatch):
    """Return what makes modules be as good as not installed."""

    def hide(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return hide


@pytest.fixture
def identity():
    """What Flower wants to know before it makes a message. It cannot be unset, and each run sets its own."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture
def fuzz():
    """Return what tries a property with all that hypothesis draws, twenty examples of each seed: of so many seeds, as
    long as the seconds last. SPLITFED_FUZZ_SECONDS says for how long instead, whatever seeds that reaches, and
    SPLITFED_FUZZ_SEED which is the first."""
    from hypothesis import given, seed

    def fuzz(property, *drawn, seconds: float = 25.0, seeds: int = 5) -> None:
        longer = os.environ.get("SPLITFED_FUZZ_SECONDS")
        end = time.monotonic() + float(longer or seconds)
        plan = settings(
            max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # to make a failing example smaller would take many runs
        )  # fmt: skip
        first = int(os.environ.get("SPLITFED_FUZZ_SEED", 0))
        for number in count(first):
            tried = seed(number)(plan(given(*drawn)(property)))
            try:
                tried()
            except BaseException as error:
                error.add_note(f"seed {number}")
                raise
            if time.monotonic() > end or (longer is None and number - first + 1 >= seeds):
                return

    return fuzz
