"""Federated split learning of Vision Transformers, with every byte that crosses the cut counted.

`from splitfed import Scenario, simulate` is the whole public surface for scripts and notebooks; the command line calls
nothing else. Importing this package imports neither torch nor Flower: names are loaded on first use.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitfed.comparison import compare
    from splitfed.describing import Description, describe
    from splitfed.errors import SplitfedError
    from splitfed.estimation import Estimate, estimate
    from splitfed.explaining import Explanation, explain
    from splitfed.exporting import Exported, export
    from splitfed.observe import Observer
    from splitfed.scenario import Scenario
    from splitfed.simulation import Result, simulate
    from splitfed.sweeping import sweep

__version__ = "0.1.0"

# In a checkout, `clients/`, `server/`, `compression/` and `scenarios/` stand beside this package, not in it. Looking
# for submodules in the root as well makes a checkout import the way an installed wheel does.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

_WHERE = {
    "Description": "splitfed.describing",
    "Estimate": "splitfed.estimation",
    "Explanation": "splitfed.explaining",
    "Exported": "splitfed.exporting",
    "Observer": "splitfed.observe",
    "Result": "splitfed.simulation",
    "Scenario": "splitfed.scenario",
    "SplitfedError": "splitfed.errors",
    "compare": "splitfed.comparison",
    "describe": "splitfed.describing",
    "estimate": "splitfed.estimation",
    "explain": "splitfed.explaining",
    "export": "splitfed.exporting",
    "simulate": "splitfed.simulation",
    "sweep": "splitfed.sweeping",
}

__all__ = [
    "Description", "Estimate", "Explanation", "Exported", "Observer", "Result", "Scenario", "SplitfedError",
    "__version__", "compare", "describe", "estimate", "explain", "export", "simulate", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'splitfed' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
