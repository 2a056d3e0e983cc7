"""The library of a kind of data set, which comes with an extra of this package."""

import importlib
from types import ModuleType

from cvt_nas.errors import DataError


def library(module: str, *, extra: str, of: str) -> ModuleType:
    """The module.

    Args:
        of: What needs it; for the message.

    Raises:
        DataError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{of}: needs {error.name or module}: pip install 'cvt-nas[{extra}]'") from error
