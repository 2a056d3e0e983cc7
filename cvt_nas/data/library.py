"""Import of optional libraries that read data sets."""

import importlib
from types import ModuleType

from cvt_nas.errors import DataError


def library(module: str, *, extra: str, of: str) -> ModuleType:
    """Imports a module.

    Args:
        extra: Extra of this package that installs the module.
        of: What needs the module, for the message.

    Raises:
        DataError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{of}: needs {error.name or module}: pip install 'cvt-nas[{extra}]'") from error
