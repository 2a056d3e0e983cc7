"""Reading and writing of records as JSON."""

import json
import math
import re
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cvt_nas.errors import RunFolderError

T = TypeVar("T")


def parse_json(adapter: TypeAdapter[T], text: str | bytes, where: str, *, strict: bool | None = None) -> T:
    """Validates `text`, from the place `where`, by `adapter`.

    Args:
        strict: Whether values of other types are refused rather than converted.

    Raises:
        RunFolderError: `text` is not JSON, does not fit, or has a number that is not finite.
    """
    try:
        found = adapter.validate_json(text, strict=strict)
        load_finite(text)
    except ValidationError as error:
        raise RunFolderError(f"{where}: {first_problem(error)}") from error
    except ValueError as error:
        raise RunFolderError(f"{where}: {error}") from error
    return found


def load_finite(text: str | bytes) -> Any:
    """`json.loads` that raises ValueError at numbers that are not finite, and at a text that is nested too deeply.

    Our records never have any of that.
    """

    def refuse(word: str) -> float:
        raise ValueError(f"got {word}, must be a finite number")

    def finite(word: str) -> float:
        return value if math.isfinite(value := float(word)) else refuse(word)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def first_problem(error: ValidationError) -> str:
    """Place and message of the first problem that pydantic found."""
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def json_text(tree: object, *, indent: int | None = None) -> str:
    """`tree` as JSON for all readers. Lone surrogates, from paths that are not UTF-8, are escaped."""
    text = json.dumps(tree, ensure_ascii=False, indent=indent)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\\\u{ord(half[0]):04x}", text)
