"""What users write in Python and name in a space file."""

import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from cvt_nas.errors import PluginError, first_line


def is_plugin(name: str) -> bool:
    """Whether a setting is `MODULE:NAME`, and no option of this package."""
    return ":" in name


def find_modules_in(folder: str) -> None:
    """Has Python find modules in `folder`, after all other places."""
    if folder not in sys.path:
        sys.path.append(folder)


def load_plugin(name: str, setting: str) -> Callable[..., Any]:
    """What `MODULE:NAME` names: of an installed package, or of a file `MODULE.py` in the working folder.

    Args:
        setting: Where the name was found, for messages.

    Raises:
        PluginError: There is no such module or name, it cannot be imported, or it is not callable.
    """
    find_modules_in(os.getcwd())
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # the module may raise whatever it likes
        raise PluginError(f"{setting}: {name}: cannot be imported: {first_line(error)}") from error
    if not callable(found):
        raise PluginError(f"{setting}: {name}: is no function or class, but {type(found).__name__}")
    return found
