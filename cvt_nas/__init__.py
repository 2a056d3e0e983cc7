"""Search for CvT architectures on the best trade-off of accuracy against parameters and FLOPs.

The names below are the library; each is imported when it is first used, so `import cvt_nas` is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvt_nas.arch import cost_of, load_arch
    from cvt_nas.config import load_experiment
    from cvt_nas.model import build_model, load_model
    from cvt_nas.race import search

_HOME = {
    "load_experiment": "config",
    "load_arch": "arch",
    "cost_of": "arch",
    "build_model": "model",
    "load_model": "model",
    "search": "race",
}

__version__ = "0.1.0"
__all__ = ["build_model", "cost_of", "load_arch", "load_experiment", "load_model", "search"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cvt_nas' has no attribute {name!r}")
    module = importlib.import_module(f"cvt_nas.{_HOME[name]}")
    return getattr(module, name)
