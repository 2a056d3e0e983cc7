"""Records as JSON: read with errors that say where, and written so that every reader takes them."""

import json
import math
import re
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cvt_nas.errors import RunFolderError

T = TypeVar("T")


def parse_json(adapter: TypeAdapter[T], text: str | bytes, where: str, *, strict: bool | None = None) -> T:
    """What `adapter` makes of `text`; a `strict` one converts no types. Raises RunFolderError where it is not of that
    form; `where` names it."""
    try:
        found = adapter.validate_json(text, strict=strict)
        load_finite(text)
    except ValidationError as error:
        raise RunFolderError(f"{where}: {first_problem(error)}") from error
    except ValueError as error:
        raise RunFolderError(f"{where}: {error}") from error
    return found


def load_finite(text: str | bytes) -> Any:
    """`json.loads`, which raises ValueError at numbers that are not finite: no record of ours holds any."""

    def refuse(word: str) -> float:
        raise ValueError(f"got {word}, must be a finite number")

    def finite(word: str) -> float:
        return value if math.isfinite(value := float(word)) else refuse(word)

    return json.loads(text, parse_constant=refuse, parse_float=finite)


def first_problem(error: ValidationError) -> str:
    """Of those that pydantic found: where, and what."""
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def json_text(tree: object, *, indent: int | None = None) -> str:
    """`tree` as JSON that every reader takes: half a surrogate pair, as of a path that is not UTF-8, is escaped."""
    text = json.dumps(tree, ensure_ascii=False, indent=indent)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\\\u{ord(half[0]):04x}", text)
