"""Search for CvT architectures on the best trade-off of accuracy against parameters and FLOPs.

The names below are the library; each is imported when it is first used, so `import cvt_nas` is cheap.
"""

import importlib
from typing import Any

_HOME = {
    "load_experiment": "config",
    "load_arch": "arch",
    "cost_of": "arch",
    "build_model": "model",
    "load_model": "model",
    "search": "race",
}

__version__ = "0.1.0"
__all__ = ["build_model", "cost_of", "load_arch", "load_experiment", "load_model", "search"]  # noqa: F822  lazy


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cvt_nas' has no attribute {name!r}")
    module = importlib.import_module(f"cvt_nas.{_HOME[name]}")
    return getattr(module, name)
