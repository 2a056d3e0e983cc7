"""A flat list of all settings of the space file, for the documentation."""

from collections.abc import Iterator
from dataclasses import dataclass

import yaml
from pydantic.json_schema import JsonSchemaValue

from cvt_nas.config.schema import schema


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A setting of the space file.

    Args:
        name: Name with its sections, such as `training.lr` or `space.stages[].depth`.
        type: Type in words.
        default: Default as YAML; None if the setting is required.
        example: A line of YAML that sets it.
    """

    name: str
    type: str
    default: str | None
    meaning: str
    example: str


def settings() -> list[Setting]:
    """Returns all settings in the order of sections. Section `supernet` repeats the settings of `training`."""
    whole = schema()
    return list(_settings_of(whole, "", whole["$defs"]))


def _settings_of(section: JsonSchemaValue, prefix: str, sections: JsonSchemaValue) -> Iterator[Setting]:
    for key, shown in section["properties"].items():
        name, inner = f"{prefix}{key}", _section_in(shown)
        if inner is not None:
            dots = "[]." if shown.get("type") == "array" else "."
            yield from _settings_of(sections[inner], f"{name}{dots}", sections)
            continue
        yield Setting(
            name=name,
            type=_words(shown),
            default=_as_yaml(shown["default"]) if "default" in shown else None,
            meaning=shown["description"],
            example=f"{key}: {_as_yaml(_example_of(shown))}",
        )


def _section_in(shown: JsonSchemaValue) -> str | None:
    """Name of the section that a setting holds, alone or in a list; None for other settings."""
    for part in (shown, shown.get("items", {}), *shown.get("anyOf", ())):
        if "$ref" in part:
            return part["$ref"].rpartition("/")[2]
    return None


def _example_of(shown: JsonSchemaValue) -> object:
    """The first example in the schema, or else an option that is not the default, or else the default."""
    parts, default = (shown, *shown.get("anyOf", ())), shown.get("default")
    examples = [example for part in parts for example in part.get("examples", ())]
    options = [option for part in parts for option in _options_in(part) if option != default]
    return [*examples, *options, default][0]


def _options_in(shown: JsonSchemaValue) -> list[str | int | bool]:
    if shown.get("type") == "boolean":
        return [False, True]
    return [shown["const"]] if "const" in shown else shown.get("enum", [])


def _as_yaml(value: object) -> str:
    if isinstance(value, str):
        return value  # without the quotes that YAML puts around words such as off, which the reader accepts
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).removesuffix("...\n").strip()


def _words(shown: JsonSchemaValue) -> str:
    """Type and bounds of a setting in words."""
    if options := [str(option) for option in _options_in(shown) if not isinstance(option, bool)]:
        return f"one of {', '.join(options)}" if len(options) > 1 else options[0]
    if "anyOf" in shown:
        words = [_words(part) for part in shown["anyOf"] if part != {"type": "null"}]
        return f"{words[0]}, or a list of such" if words[-1] == f"a list, each {words[0]}" else " or ".join(words)
    kind = shown["type"]
    if kind == "array":
        number = f" of {shown['minItems']}" if "maxItems" in shown and shown["minItems"] == shown["maxItems"] else ""
        return f"a list{number}, each {_words(shown['items'])}"
    if kind == "object":
        if "propertyNames" not in shown:
            return "a section with names of its own"
        names = ", ".join(shown["propertyNames"]["enum"])
        return f"a section with any of {names}, each {_words(shown['additionalProperties'])}"
    if shown.get("description", "").startswith("MODULE:NAME"):
        return "MODULE:NAME"
    return {"boolean": "true or false", "string": "text"}.get(kind) or _number(shown)


def _number(shown: JsonSchemaValue) -> str:
    name = "a whole number" if shown["type"] == "integer" else "a number"
    if "minimum" in shown and "maximum" in shown:
        return f"{name} from {shown['minimum']:,} to {shown['maximum']:,}"
    words = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = " and ".join(f"{word} {shown[key]:,}" for key, word in words.items() if key in shown)
    return f"{name} {bounds}".strip()
