"""Search for CvT architectures on the best trade-off of accuracy against parameters and FLOPs.

The names below are the library; each is imported when it is first used, so `import cvt_nas` is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvt_nas.arch import ArchConfig, Cost, cost_of, load_arch
    from cvt_nas.config import Experiment, load_experiment, load_recipe
    from cvt_nas.engine.latency import measure_latency
    from cvt_nas.errors import CvtNasError
    from cvt_nas.evaluate import evaluate_model
    from cvt_nas.export import export as export_model
    from cvt_nas.model import build_model, load_checkpoint, load_model
    from cvt_nas.pipeline import evaluate_supernet, query, search
    from cvt_nas.report import Comparison, front_frame, trials_frame, write_report
    from cvt_nas.results import ParetoFront, TrialResult
    from cvt_nas.run import RunFolder
    from cvt_nas.space import SearchSpace
    from cvt_nas.train import train as train_model

_NAMES_OF = {
    "arch": ("ArchConfig", "Cost", "cost_of", "load_arch"),
    "config": ("Experiment", "load_experiment", "load_recipe"),
    "engine.latency": ("measure_latency",),
    "errors": ("CvtNasError",),
    "evaluate": ("evaluate_model",),
    "export": ("export_model",),
    "model": ("build_model", "load_checkpoint", "load_model"),
    "pipeline": ("evaluate_supernet", "query", "search"),
    "report": ("Comparison", "front_frame", "trials_frame", "write_report"),
    "results": ("ParetoFront", "TrialResult"),
    "run": ("RunFolder",),
    "space": ("SearchSpace",),
    "train": ("train_model",),
}
_HOME = {name: module for module, names in _NAMES_OF.items() for name in names}
_NAME_THERE = {"export_model": "export", "train_model": "train"}  # where it is another one

__version__ = "0.1.0"
__all__ = [
    "ArchConfig",
    "Comparison",
    "Cost",
    "CvtNasError",
    "Experiment",
    "ParetoFront",
    "RunFolder",
    "SearchSpace",
    "TrialResult",
    "build_model",
    "cost_of",
    "evaluate_model",
    "evaluate_supernet",
    "export_model",
    "front_frame",
    "load_arch",
    "load_checkpoint",
    "load_experiment",
    "load_model",
    "load_recipe",
    "measure_latency",
    "query",
    "search",
    "train_model",
    "trials_frame",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cvt_nas' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cvt_nas.{_HOME[name]}"), _NAME_THERE.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
