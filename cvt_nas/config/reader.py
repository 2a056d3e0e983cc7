"""Reads YAML with line numbers, and explains its problems."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import yaml
from pydantic_core import ErrorDetails

from cvt_nas.errors import SpaceFileError, first_line

Key = tuple[str | int, ...]
MAX_LENGTH = 2**20
_MAX_VALUES = 20_000
_MAX_DEPTH = 100
_MAX_WHOLE = 10**18
_MAX_SHOWN = 100  # characters of a wrong value


class _TooManyValuesError(Exception):
    pass


class _Loader(yaml.SafeLoader):
    """Ends at a depth that no space file has. The time that PyYAML takes grows with the square of the depth."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class Reader:
    """Reads YAML, and keeps the line of every key and all problems found so far."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where
        self.lines: dict[Key, int] = {(): 1}
        self.problems: list[tuple[int, str]] = []
        self._num_values = 0

    def add(self, key: Key, message: str) -> None:
        place = key
        while place not in self.lines:
            place = place[:-1]
        line, name = self.lines[place], dotted(key)
        self.problems.append((line, f"{self.where}:{line}: {name + ': ' if name else ''}{message}"))

    def stop_if_wrong(self) -> None:
        if self.problems:
            raise SpaceFileError([message for _, message in sorted(self.problems, key=lambda problem: problem[0])])

    def read(self) -> object:
        """Returns the values of the file. Returns None and adds a problem if it is no YAML mapping."""
        try:
            if len(self.text) > MAX_LENGTH:
                self.add((), f"too long for a space file: {len(self.text):,} characters, at most {MAX_LENGTH:,}")
                return None
            node = yaml.compose(self.text, Loader=_Loader)
            if not isinstance(node, yaml.MappingNode):
                self.add((), "must hold the keys format, name, space, data, training")
                return None
            return self._value(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.lines[()] = mark.line + 1 if mark else 1
            self.add((), f"not YAML: {error.problem}")
        except yaml.YAMLError as error:
            self.add((), f"not YAML: {first_line(error)}")
        except RecursionError:
            self.add((), "nested too deeply")
        except _TooManyValuesError:
            self.add((), f"more than {_MAX_VALUES:,} values, counting what aliases repeat")
        return None

    def _value(self, node: yaml.Node, key: Key) -> object:
        self._num_values += 1
        if self._num_values > _MAX_VALUES:
            raise _TooManyValuesError
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            tree = {}
            for name_node, value_node in node.value:
                name = name_node.value
                line = name_node.start_mark.line + 1
                if not isinstance(name_node, yaml.ScalarNode):
                    self.problems.append((line, f"{self.where}:{line}: {dotted(key) or 'file'}: a key must be text"))
                    continue
                if name in tree:
                    first = self.lines[(*key, name)]
                    self.problems.append(
                        (line, f"{self.where}:{line}: {dotted((*key, name))}: repeated, stands on line {first} already")
                    )
                    continue
                self.lines[(*key, name)] = line
                tree[name] = self._value(value_node, (*key, name))
            return tree
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*key, index)) for index, item in enumerate(node.value)]
        try:
            value = yaml.constructor.SafeConstructor().construct_object(node)
        except (ValueError, LookupError):  # text that looks like a number, a date or a boolean
            value = str(node.value)
        if isinstance(value, float) and not math.isfinite(value):
            self.add(key, f"got {value}, must be a finite number")
            return 0.0
        if isinstance(value, int) and abs(value) > _MAX_WHOLE:
            self.add(key, f"got a number of {len(str(node.value))} digits, must be at most {_MAX_WHOLE:.0e}")
            return 1
        if not isinstance(value, str | int | float | bool | None):
            return str(node.value)  # no setting is a date
        if isinstance(value, str) and not value.isprintable():
            self.add(key, f"got {show(value)}, must be text without control characters")
            return ""
        return value


def dotted(key: Key) -> str:
    """Writes a key as `space.stages[0].kv_stride`."""
    name = ""
    for part in key:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def explain(error: ErrorDetails, tree: object, schema: type) -> tuple[Key, str]:
    """Returns the key and a message in our own words for one of pydantic's errors."""
    key = _existing(error["loc"], tree, keep_last=error["type"] in ("missing", "unexpected_keyword_argument"))
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return key, "missing"
    if kind == "unexpected_keyword_argument":
        return key, f"unknown key{did_you_mean(str(key[-1]), _keys_beside(key, schema))}"
    if kind == "value_error":
        return key, str(context["error"])
    came = _value_at(tree, key) if not isinstance(error["input"], str | int | float | bool | list) else error["input"]
    shown = f"got {show(came)}"
    if kind == "literal_error":
        allowed = [part.strip("' ") for part in context["expected"].replace(" or ", ", ").split(", ")]
        close = did_you_mean(str(came), allowed) if len(allowed) > 1 else ""
        return key, f"{shown}, must be {one_of(allowed)}{close if 'mean' in close else ''}"
    wanted = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "string_type": "text",
        "bool_type": "true or false",
        "list_type": "a list",
        "dict_type": "a section with keys of its own",
        "dataclass_type": "a section with keys of its own",
        "string_pattern_mismatch": f"text that matches {context.get('pattern')}",
        "too_short": "at least one",
        "too_long": f"a list of at most {context.get('max_length')}",
        "greater_than": f"above {context.get('gt', 0):g}",
        "greater_than_equal": f"at least {context.get('ge', 0):g}",
        "less_than": f"below {context.get('lt', 0):g}",
        "less_than_equal": f"at most {context.get('le', 0):g}",
    }.get(kind, error["msg"])
    return key, f"{shown}, must be {wanted}{_yaml_hint(came)}"


def _existing(location: Sequence[Any], tree: Any, *, keep_last: bool) -> Key:
    """The part of pydantic's location that exists in the file, without union tags and indices of lone scalars."""
    key: list[str | int] = []
    for position, part in enumerate(location):
        in_list = isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        if in_list or (isinstance(tree, dict) and part in tree):
            tree = tree[part]
        elif not (keep_last and position == len(location) - 1):
            continue
        key.append(part)
    return tuple(key)


def _value_at(tree: Any, key: Key) -> object:
    for part in key:
        tree = tree[part]
    return tree


def show(value: object) -> str:
    if isinstance(value, dict):
        return "a section"
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."


def one_of(allowed: Sequence[str]) -> str:
    return allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known here: {', '.join(known)}" if known else ""


def _yaml_hint(value: object) -> str:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        mantissa, _, exponent = value.partition("e")
        written = f"{mantissa}.0e{exponent}" if exponent and "." not in mantissa else str(number)
        return f"; YAML reads {value} as text, write {written}"
    if isinstance(value, bool):
        return "; YAML reads yes, no, on and off as true and false"
    return ""


def _keys_beside(key: Key, schema: type) -> list[str]:
    """Names of all keys that are allowed in the section of `key`."""
    section = schema
    for part in key[:-1]:
        if isinstance(part, int):
            continue
        inner = _section_in(typing.get_type_hints(section).get(part))
        if inner is None:
            return []
        section = inner
    return list(map(name_in_file, typing.get_type_hints(section)))


def name_in_file(field: str) -> str:
    """Name of a setting in a file. A field whose name is a keyword of Python ends in `_`, such as `as_`."""
    return field.removesuffix("_")


def _section_in(hint: object) -> type | None:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (list, typing.Union, types.UnionType, Annotated):
        return next((found for part in typing.get_args(hint) if (found := _section_in(part))), None)
    return None
