"""Python code of users that a space file or an option names."""

import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from cvt_nas.errors import PluginError, first_line


def is_plugin(name: str) -> bool:
    """Whether a setting has the form `MODULE:NAME`. Otherwise it is an option of this package."""
    return ":" in name


def find_modules_in(folder: str) -> None:
    """Lets Python find modules in `folder`. All other places come first."""
    if folder not in sys.path:
        sys.path.append(folder)


def load_plugin(name: str, setting: str) -> Callable[..., Any]:
    """Loads `MODULE:NAME` from an installed package, or from a file `MODULE.py` in the working folder.

    Args:
        setting: Setting that contains the name, for messages.

    Raises:
        PluginError: If there is no such module or name, if it cannot be imported, or if it is not callable.
    """
    find_modules_in(os.getcwd())
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # the module may raise any exception
        raise PluginError(f"{setting}: {name}: cannot be imported: {first_line(error)}") from error
    if not callable(found):
        raise PluginError(f"{setting}: {name}: is no function or class, but {type(found).__name__}")
    return found
