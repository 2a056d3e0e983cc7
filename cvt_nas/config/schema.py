"""The JSON Schema of the space file (draft 2020-12), made from the same sections as the reader."""

import inspect
import re
from dataclasses import MISSING, fields, is_dataclass

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DataclassSchema

from cvt_nas.config.reader import name_in_file
from cvt_nas.config.sections import SpaceFile


def schema() -> JsonSchemaValue:
    """Returns the JSON Schema: the type, options, bounds, default and meaning of each setting.

    The schema describes each setting on its own. Only the reader checks that settings fit each other, such as
    `num_heads` and `embed_dim`.
    """
    found = TypeAdapter(SpaceFile).json_schema(schema_generator=_Generator)
    return {"$schema": _Generator.schema_dialect, "title": "cvt-nas space file", **found}


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, extended by the `Args` of docstrings and by defaults from factories."""

    def dataclass_schema(self, schema: DataclassSchema) -> JsonSchemaValue:
        section, found = schema["cls"], super().dataclass_schema(schema)
        meanings = meanings_of(section)
        del found["title"]
        found["description"] = first_paragraph(section)
        for field in fields(section):
            name = name_in_file(field.name)
            shown = found["properties"][name]
            if name in meanings:
                shown["description"] = meanings[name]
            if field.default_factory is not MISSING and not is_dataclass(made := field.default_factory()):
                shown["default"] = made
        return found

    def field_title_should_be_set(self, schema: object) -> bool:
        del schema
        return False  # the title would repeat the name


def first_paragraph(section: type) -> str:
    return " ".join((inspect.getdoc(section) or "").partition("\n\n")[0].split())


def meanings_of(section: type) -> dict[str, str]:
    """Meanings of a section's settings, from the `Args` of its docstring and those of the sections it extends."""
    meanings: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        _, _, arguments = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")
        for entry in re.split(r"^    (?=\w)", arguments, flags=re.MULTILINE)[1:]:
            name, _, meaning = entry.partition(": ")
            meanings[name] = " ".join(meaning.split())
    return meanings
