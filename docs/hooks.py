"""What MkDocs does beside its own work when it builds the site.

- `<!-- include: PATH -->`: from there on, the page is that file of the repository.
- `<!-- rendered: NAME -->`: a part of the reference, made from the code.
- Links that lead out of `docs/` go to the page that includes the file, or to a copy of the file in the site.
- A page that would load something from the network is an error.
"""

import argparse
import ast
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cvt_nas
from cvt_nas.cli.arguments import build_parser
from cvt_nas.config.reference import Setting, settings

if TYPE_CHECKING:
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_INCLUDE = re.compile(r"<!-- include: (\S+) -->.*", re.DOTALL)
_RENDERED = re.compile(r"<!-- rendered: (?:(files) )?([a-z ]+) -->")
_LINK = re.compile(r"\[([^\[\]]*)\]\((?![a-z]+:)([^()\s#]+)(#[^()\s]*)?\)")
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b(?![^>]*canonical)[^>]*\bhref=[\"']?(?:https?:)?//"
    r"|url\([\"']?(?:https?:)?//|@import[^;]*//"
)


def on_files(files: "Files", *, config: Any) -> "Files":
    from mkdocs.structure.files import File

    pages = _including_pages()
    for page in sorted(DOCS.rglob("*.md")):
        text, source = _with_included(page)
        for link in _LINK.finditer(text):
            path = _target(link, source)
            if path.is_file() and not path.is_relative_to(DOCS) and path not in pages:
                name = _copy_of(path)
                if files.get_file_from_path(name) is None:
                    files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: "Page", config: Any, files: "Files") -> str:
    del markdown, config, files  # the file is read again, together with what it includes
    text, source = _with_included(DOCS / page.file.src_uri)
    text = _with_links(text, source, DOCS / page.file.src_uri)
    return _RENDERED.sub(lambda found: files_of(found[2]) if found[1] else RENDERED[found[2]](), text)


def on_post_build(*, config: Any) -> None:
    """Raises:
    RuntimeError: A page, or a style sheet, would load something from the network.
    """
    for path in sorted(Path(config["site_dir"]).rglob("*")):
        if path.suffix in (".html", ".css") and (found := _LOADED.search(path.read_text(encoding="utf-8"))):
            raise RuntimeError(f"{path}: loads something from the network: {found[0]}")


def _with_included(page: Path) -> tuple[str, Path]:
    """The text of a page, and the file that its links are relative to.

    Where the page has a title of its own, that of the included file is left out.
    """
    text = page.read_text(encoding="utf-8")
    found = _INCLUDE.search(text)
    if found is None:
        return text, page
    before, source = text[: found.start()], ROOT / found[1]
    included = source.read_text(encoding="utf-8")
    if before.strip():
        included = _with_links(before, page, source) + re.sub(r"\A# .*\n", "", included)
    return included, source


def _including_pages() -> dict[Path, Path]:
    """The page that includes each file which some page includes."""
    pages = {}
    for page in sorted(DOCS.rglob("*.md")):
        if found := _INCLUDE.search(page.read_text(encoding="utf-8")):
            pages[ROOT / found[1]] = page
    return pages


def _target(link: re.Match[str], source: Path) -> Path:
    """The file or folder of the repository that a link in `source` leads to."""
    return Path(os.path.normpath(source.parent / link[2]))


def _with_links(text: str, source: Path, page: Path) -> str:
    """`text`, whose links are relative to `source`, with links that are relative to `page`.

    Raises:
        FileNotFoundError: A link leads to nothing.
    """
    pages = _including_pages()

    def moved(link: re.Match[str]) -> str:
        path = _target(link, source)
        if not path.exists():
            raise FileNotFoundError(f"{source}: {link[0]}: leads to nothing")
        if path.is_dir():
            return link[1]
        if path in pages:
            path = pages[path]
        elif not path.is_relative_to(DOCS) and page.is_relative_to(DOCS):
            path = DOCS / _copy_of(path)
        return f"[{link[1]}]({os.path.relpath(path, page.parent)}{link[3] or ''})"

    return _LINK.sub(moved, text)


def _copy_of(path: Path) -> str:
    """Where a file of the repository lies in the site, relative to `docs/`."""
    return f"repository/{path.relative_to(ROOT).as_posix()}"


def command_line() -> str:
    """Each verb with its arguments, from the parser itself."""
    parser = build_parser()
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = []
    for name, verb in verbs.choices.items():
        verb.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=76)
        rows = [
            f"| `{_form_of(action)}` | {_cell(action.help or '')}{_default_of(action)} |"
            for action in verb._actions
            if not isinstance(action, argparse._HelpAction)
        ]
        usage = verb.format_usage().removeprefix("usage: ").rstrip()
        parts += [
            f"## {name}", f"{_sentence(verb.description or '')}", f"```text\n{usage}\n```",
            "\n".join(["| argument | meaning |", "|---|---|", *rows]),
        ]  # fmt: skip
    return "\n\n".join(parts)


def _form_of(action: argparse.Action) -> str:
    """As `--trials N`."""
    value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else "")
    value = "" if action.nargs == 0 else str(value or action.dest.upper())
    name = ", ".join(action.option_strings)
    return _cell(f"{name} {value}".strip())


def _default_of(action: argparse.Action) -> str:
    if action.default in (None, False) or action.required or not action.option_strings:
        return ""
    default = ",".join(action.default) if isinstance(action.default, list) else action.default
    return f" (default: `{default}`)"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def python() -> str:
    """Every public name, for mkdocstrings to render."""
    functions = [name for name in cvt_nas.__all__ if name.islower()]
    values = [name for name in cvt_nas.__all__ if not name.islower()]
    lines = ["## Functions", *(f"::: cvt_nas.{name}" for name in functions), "## Values"]
    members = "\n    options: {members: null}"
    return "\n\n".join([*lines, *(f"::: cvt_nas.{name}{members}" for name in values)])


def space_file() -> str:
    """The settings of each section. What `supernet` takes over from `training` is not repeated."""
    sections: dict[str, list[Setting]] = {}
    for setting in settings():
        sections.setdefault(setting.name.rpartition(".")[0], []).append(setting)
    inherited = {
        f"supernet{name.removeprefix('training')}": found
        for name, found in sections.items()
        if name.startswith("training")
    }
    parts = []
    for name, found in sections.items():
        same = {_meaning_of(setting) for setting in inherited.get(name, ())}
        own = [setting for setting in found if _meaning_of(setting) not in same]
        if not own:
            continue
        rows = [
            f"| `{_key(setting)}` | {_cell(setting.type)} | {_cell(setting.meaning)} | {_default(setting)} |"
            for setting in own
        ]
        parts.append(f"## {name or 'The file itself'}")
        if same:
            parts.append("All settings of [`training`](#training) with their defaults, those of its sections too, and:")
        parts.append("\n".join(["| setting | values | meaning | default |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _key(setting: Setting) -> str:
    return setting.name.rpartition(".")[2]


def _meaning_of(setting: Setting) -> tuple[str, ...]:
    return (_key(setting), setting.type, setting.meaning, setting.default or "")


def _default(setting: Setting) -> str:
    if setting.default is None:
        return "required"
    return "" if setting.default == "null" else f"`{setting.default}`"


def layers() -> str:
    """The layers of the package, each room a link to its paragraph."""
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rows = [
        "| " + ", ".join(f"[`{room}`](#{room})" for room in layer.split(" | ")) + " |"
        for layer in tree["tool"]["importlinter"]["contracts"][0]["layers"]
    ]
    return "\n".join(["| rooms |", "|---|", *rows])


def files_of(room: str) -> str:
    """The modules of a package, each with the first sentence of its docstring."""
    rows = []
    for path in sorted((ROOT / "cvt_nas" / room).iterdir()):
        module = path / "__init__.py" if path.is_dir() else path
        if module.suffix == ".py" and module.is_file() and path.name != "__init__.py":
            told = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
            first = " ".join(re.split(r"(?<=\.)\s|\n\n", told)[0].split())
            rows.append(f"| `{path.name}{'/' * path.is_dir()}` | {_cell(first)} |")
    return "\n".join(["| file | |", "|---|---|", *rows])


RENDERED: dict[str, Callable[[], str]] = {
    "command line": command_line, "layers": layers, "python": python, "space file": space_file,
}  # fmt: skip
