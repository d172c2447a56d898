"""Federated split learning of Vision Transformers, with every byte that crosses the cut counted.

`from splitfed import Scenario, simulate` is the whole public surface for scripts and notebooks; the command line calls
nothing else. Importing this package imports neither torch nor Flower: names are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from splitfed.version import __version__ as __version__

if TYPE_CHECKING:
    from splitfed.errors import SplitfedError
    from splitfed.inference.predictor import Prediction, Predictor
    from splitfed.inference.remote.predictor import RemotePredictor
    from splitfed.reports.costs.estimate import Estimate, estimate
    from splitfed.reports.dataset.describe import Description, describe
    from splitfed.reports.explanation.explain import Explanation, explain
    from splitfed.reports.export.export import Exported, export
    from splitfed.reports.study.comparison import compare
    from splitfed.reports.sweep.pool import sweep
    from splitfed.run.observer import Observer
    from splitfed.scenario import Scenario
    from splitfed.simulation import Result, simulate

_WHERE = {
    "Description": "splitfed.reports.dataset.describe",
    "Estimate": "splitfed.reports.costs.estimate",
    "Explanation": "splitfed.reports.explanation.explain",
    "Exported": "splitfed.reports.export.export",
    "Observer": "splitfed.run.observer",
    "Prediction": "splitfed.inference.predictor",
    "Predictor": "splitfed.inference.predictor",
    "RemotePredictor": "splitfed.inference.remote.predictor",
    "Result": "splitfed.simulation",
    "Scenario": "splitfed.scenario",
    "SplitfedError": "splitfed.errors",
    "compare": "splitfed.reports.study.comparison",
    "describe": "splitfed.reports.dataset.describe",
    "estimate": "splitfed.reports.costs.estimate",
    "explain": "splitfed.reports.explanation.explain",
    "export": "splitfed.reports.export.export",
    "simulate": "splitfed.simulation",
    "sweep": "splitfed.reports.sweep.pool",
}

__all__ = [
    "Description", "Estimate", "Explanation", "Exported", "Observer", "Prediction", "Predictor", "RemotePredictor",
    "Result", "Scenario", "SplitfedError", "__version__", "compare", "describe", "estimate", "explain", "export",
    "simulate", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'splitfed' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
