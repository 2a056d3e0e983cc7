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
    from cvt_nas.pipeline import search
    from cvt_nas.pipeline.query import query
    from cvt_nas.pipeline.verdict import evaluate_supernet
    from cvt_nas.report import Comparison, front_frame, trials_frame, write_report
    from cvt_nas.results import ParetoFront, TrialResult
    from cvt_nas.run import RunFolder
    from cvt_nas.space import SearchSpace
    from cvt_nas.train import train as train_model

_HOME = {  # of each name its module, and there its name
    "ArchConfig": ("arch", "ArchConfig"),
    "Comparison": ("report", "Comparison"),
    "Cost": ("arch", "Cost"),
    "CvtNasError": ("errors", "CvtNasError"),
    "Experiment": ("config", "Experiment"),
    "ParetoFront": ("results", "ParetoFront"),
    "RunFolder": ("run", "RunFolder"),
    "SearchSpace": ("space", "SearchSpace"),
    "TrialResult": ("results", "TrialResult"),
    "build_model": ("model", "build_model"),
    "cost_of": ("arch", "cost_of"),
    "evaluate_model": ("evaluate", "evaluate_model"),
    "evaluate_supernet": ("pipeline.verdict", "evaluate_supernet"),
    "export_model": ("export", "export"),
    "front_frame": ("report", "front_frame"),
    "load_arch": ("arch", "load_arch"),
    "load_checkpoint": ("model", "load_checkpoint"),
    "load_experiment": ("config", "load_experiment"),
    "load_model": ("model", "load_model"),
    "load_recipe": ("config", "load_recipe"),
    "measure_latency": ("engine.latency", "measure_latency"),
    "query": ("pipeline.query", "query"),
    "search": ("pipeline", "search"),
    "train_model": ("train", "train"),
    "trials_frame": ("report", "trials_frame"),
    "write_report": ("report", "write_report"),
}

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
    module, there = _HOME[name]
    return getattr(importlib.import_module(f"cvt_nas.{module}"), there)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
