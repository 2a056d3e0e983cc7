"""The README, the pages under `docs/` and what their commands do. `make docs` checks links, anchors and assets."""

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import cvt_nas
from cvt_nas.cli.arguments import build_parser
from cvt_nas.config import parse_experiment

ROOT = Path(__file__).parent.parent
README, TUTORIALS = ROOT / "README.md", sorted((ROOT / "docs").glob("tutorial*.md"))
PAGES = [README, ROOT / "search_spaces" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: title=\"(\S+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Language, title and text of each block of code."""
    yield from BLOCK.findall(page.read_text(encoding="utf-8"))


def calls(page: Path) -> list[str]:
    """Each call of `cvt-nas` in the blocks of a page, without comments and shell variables."""
    text = "\n".join(text for language, _, text in blocks(page) if language == "bash")
    lines = re.sub(r"\$\([^()]*\)", "", text.replace("\\\n", " ")).splitlines()
    return [found[1] for line in lines if (found := re.match(r"(?:\.venv/bin/)?cvt-nas (.*?)(?: &| > .*)?$", line))]


def verbs() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


@pytest.mark.parametrize("page", [page for page in PAGES if calls(page)], ids=lambda page: page.stem)
def test_each_command_of_a_page_is_one_that_the_parser_takes(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for call in calls(page):
        try:
            build_parser().parse_args(shlex.split(call, comments=True))
        except SystemExit:
            pytest.fail(f"{page.name}: cvt-nas {call}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_verb_and_option_named_in_the_text_is_one_of_the_parser(page: Path) -> None:
    for call in re.findall(r"`cvt-nas ([a-z]+[^`]*)`", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        verb, *words = call.split()
        assert verb in verbs(), call
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert set(options) <= set(verbs()[verb]._option_string_actions), call


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_whole_space_file_of_a_page_is_valid_and_each_part_names_known_settings(page: Path) -> None:
    known = (ROOT / "cvt_nas" / "config").rglob("*.py")
    names = set(re.findall(r"\w+", "".join(path.read_text(encoding="utf-8") for path in known)))
    for language, _, text in blocks(page):
        if language == "yaml" and text.startswith("format:"):
            parse_experiment(text, page.name)
        elif language == "yaml":
            for key, value in yaml.safe_load(text).items():
                assert {key, *(value if isinstance(value, dict) else ())} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_of_a_page_uses_public_names_alone(page: Path) -> None:
    for language, _, text in blocks(page):
        if language == "python":
            used = {node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
            names = {node.attr for node in used if isinstance(node.value, ast.Name) and node.value.id == "cvt_nas"}
            assert names <= set(cvt_nas.__all__)


def test_the_table_of_tests_names_every_file_of_them() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## What is tested where")[2]
    named = {
        name for row in re.findall(r"^\|[^|]*\|([^|]*)\|$", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert named == {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}


def test_the_readme_is_short() -> None:
    assert 120 <= len(README.read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_its_first_command_to_its_last(tutorial: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "cvt-nas"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cvt_nas.cli "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for language, title, text in blocks(tutorial):
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        command = {"bash": ["bash", "-euc", text], "python": [sys.executable, "-c", text]}.get(language)
        if command:
            ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert ran.returncode == 0, f"{text}\n{ran.stdout}\n{ran.stderr}"
