"""The text of a space file, with a comment for each setting that has a reason."""

from collections.abc import Iterator
from typing import Any

import yaml

from cvt_nas.init.choosing import Draft

_WIDTH = 116


def text_of(draft: Draft, header: list[str]) -> str:
    """A space file.

    Args:
        header: Lines of comment at its top.
    """
    lines = [f"# {line}" for line in header]
    for name, section in draft.sections.items():
        lines += _section(name, section, draft.reasons)
    return "\n".join(lines) + "\n"


def _section(name: str, section: Any, reasons: dict[str, str]) -> Iterator[str]:
    if name == "space":
        yield "space:"
        for key, value in section.items():
            if key == "stages":
                if key in reasons:
                    yield f"  # {reasons[key]}"
                yield "  stages:"
                for stage in value:
                    for number, (choice, options) in enumerate(stage.items()):
                        yield f"    {'-' if number == 0 else ' '} {choice}: {_flow(options)}"
            else:
                yield from _setting(key, value, reasons)
        return
    if name == "anchors":
        yield "anchors: # trained first"
        for anchor, choices in section.items():
            yield f"  {anchor}:"
            yield from (f"    {choice}: {_flow(options)}" for choice, options in choices.items())
        return
    told = isinstance(section, dict) and any(key in reasons for key in section)
    one_line = f"{name}: {_flow(section)}"
    if not told and len(one_line) <= _WIDTH:
        yield one_line
        return
    yield f"{name}:"
    for key, value in section.items():
        yield from _setting(key, value, reasons)


def _setting(key: str, value: object, reasons: dict[str, str]) -> Iterator[str]:
    line = f"  {key}: {_flow(value)}"
    if key not in reasons:
        yield line
    elif len(line) + len(reasons[key]) + 3 <= _WIDTH:
        yield f"{line} # {reasons[key]}"
    else:
        yield f"  # {reasons[key]}"
        yield line


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()
