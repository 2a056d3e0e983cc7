"""Files from elsewhere: whatever they hold, the answer is a clear error or a working object, soon."""

import contextlib
import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SPACES
from cvt_nas import load_arch, load_model
from cvt_nas.arch import arch_from_dict, arch_to_dict
from cvt_nas.cli import main
from cvt_nas.config import Experiment, load_experiment, parse_experiment
from cvt_nas.errors import ArchError, RunFolderError, SpaceFileError
from cvt_nas.model import build_model, read_weights, save_model
from cvt_nas.report import write_report
from cvt_nas.run import RunFolder
from test_engine import tiny_arch
from test_export import GELU, run_of

BASE = yaml.safe_load((SPACES / "digits.yaml").read_text())
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(min_value=10**6, max_value=10**40), st.floats(),
    st.text(max_size=20), st.lists(st.integers(-2, 70_000), max_size=20), st.lists(st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.sampled_from([[], {}, [[]], "nan", "1e3", 0, -1]),
)  # fmt: skip


def problems_of(text: str) -> list[str]:
    """Empty where it is a working experiment."""
    try:
        parse_experiment(text, "odd.yaml")
    except SpaceFileError as error:
        return list(error.problems)
    return []


def places(tree: Any, key: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for name, value in inside for place in ((*key, name), *places(value, (*key, name)))]


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_space_file_with_anything_anywhere_is_an_experiment_or_an_error_of_it(data: st.DataObject) -> None:
    tree = json.loads(json.dumps(BASE))
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(tree)))
        section = tree
        for part in path:
            section = section[part]
        section[last] = data.draw(ODD)
    problems = problems_of(yaml.dump(tree, allow_unicode=True))
    assert all(problem.startswith("odd.yaml:") for problem in problems)
    assert sum(map(len, problems)) < 20_000


@settings(max_examples=150, deadline=2000)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200))
def test_any_text_is_an_error_of_the_file(text: str) -> None:
    with pytest.raises(SpaceFileError):
        parse_experiment(text, "odd.yaml")


def with_line(start: str, line: str) -> str:
    lines = (SPACES / "digits.yaml").read_text().splitlines()
    assert any(old.startswith(start) for old in lines)
    return "\n".join(line if old.startswith(start) else old for old in lines)


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "\n".join(
    f"{new}: &{new} [" + ", ".join([f"*{old}"] * 9) + "]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
WIDE = (
    """
format: 1
name: wide
space:
  image_size: 224
  num_classes: 1000
  stages:
"""
    + "".join(
        f"""
    - patch: {{kernel: [1, 3, 5, 7], stride: [1, 2], padding: 3}}
      embed_dim: [64, 128, 192, 256, 320, 384, 448, 512]
      depth: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, {depth}]
      num_heads: [1, 2, 4, 8]
      kernel_size: [1, 3, 5, 7]
      kv_stride: [1, 2]
      mlp_ratio: [1.0, 2.0, 3.0, 4.0]
      per_block: [num_heads, kernel_size, kv_stride, mlp_ratio]
"""
        for depth in (30, 60, 90)
    )
    + """
data: {dataset: imagenet}
training: {epochs: 10}
objectives: {accuracy: maximize, params: minimize, flops: minimize}
"""
)
HAND_MADE = {
    "bomb of aliases": (BOMB, "more than 20,000 values"),
    "an alias of itself": ("a: &a [*a]", "nested too deeply"),
    "deep": ("[" * 5000, "nested too deeply"),
    "deep by its indentation": ("\n".join(" " * depth + "a:" for depth in range(1000)), "nested too deeply"),
    "10 MB": ("a: " + "x" * 10_000_000, "too long for a space file"),
    "a tag that would run": (
        with_line("name:", "name: !!python/object/apply:os.system ['touch owned']"),
        "must be text",
    ),
    "keys that are lists": ("? [1, 2]\n: 3", "a key must be text"),
    "not a number": (with_line("  lr:", "  lr: .nan"), "got nan, must be a finite number"),
    "without end": (with_line("  lr:", "  lr: .inf"), "got inf, must be a finite number"),
    "negative": (with_line("  image_size:", "  image_size: -8"), "got -8, must be a whole number from 1"),
    "a number of 5,000 digits": (with_line("  epochs:", f"  epochs: {'9' * 5000}"), "must be a whole number"),
    "a number of 50 digits": (with_line("  epochs:", f"  epochs: {'9' * 50}"), "a number of 50 digits"),
    "a boolean that is none": (with_line("  lr:", "  lr: !!bool maybe"), 'got "maybe", must be a number'),
    "a number without digits": (with_line("  lr:", '  lr: !!float ""'), 'got "", must be a number'),
    "a date that is none": (with_line("name:", "name: 2026-99-99"), ""),
    "a control character": (with_line("name:", 'name: "a\\u0007b"'), "without control characters"),
    "half a surrogate": (with_line("name:", 'name: "\\ud800"'), "without control characters"),
    "a NUL": ("name: a\0b", "not YAML"),
    "a path for a name": (with_line("name:", "name: ../../etc/passwd"), "must be text that matches"),
    "images of 10^9 pixels": (
        with_line("  image_size:", "  image_size: 1000000000"),
        "must be a whole number from 1 to 65536",
    ),
    "images of three sides": (with_line("  image_size:", "  image_size: [8, 8, 8]"), "or [height, width]"),
    "too many choices": (
        with_line("      mlp_ratio:", f"      mlp_ratio: {[1.0 + i / 9 for i in range(99)]}"),
        "at most 16",
    ),
}


@pytest.mark.parametrize(("text", "message"), HAND_MADE.values(), ids=HAND_MADE)
def test_a_hostile_space_file_is_a_clear_error_at_once(text: str, message: str) -> None:
    started = time.thread_time()
    problems = problems_of(text)
    assert any(message in problem for problem in problems) if message else not problems
    assert sum(map(len, problems)) < 20_000
    assert time.thread_time() - started < 2
    assert not Path("owned").exists()


READ = """
import sys, time
from cvt_nas.config import load_experiment
from cvt_nas.errors import SpaceFileError
started = time.process_time()
try:
    load_experiment(sys.argv[1])
    was_read = True
except SpaceFileError:
    was_read = False
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(was_read, time.process_time() - started, peak)
"""


def test_a_space_of_many_architectures_is_read_in_seconds_and_little_memory(tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text(WIDE)
    (tmp_path / "bomb.yaml").write_text(BOMB)
    (tmp_path / "long.yaml").write_text("a: " + "x" * 10_000_000)
    (tmp_path / "bytes.yaml").write_bytes(bytes(range(256)))
    for name, is_one in (("wide", True), ("bomb", False), ("long", False), ("bytes", False)):
        found = subprocess.run(
            [sys.executable, "-c", READ, str(tmp_path / f"{name}.yaml")], capture_output=True, text=True, check=True
        )
        was_read, seconds, kib = found.stdout.split()
        assert was_read == str(is_one), name
        assert float(seconds) < 2, name
        assert int(kib) < 500 * 1024, name
    assert load_experiment(tmp_path / "wide.yaml").space.size > 10**30


# --- architectures and weights


class Pickled:
    """Runs a command where it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._path}",)


def test_a_crafted_pickle_does_not_run(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    content = pickle.dumps({"model": Pickled(owned)}, protocol=2)
    (tmp_path / "weights.pth").write_bytes(content)
    torch.save({"model": Pickled(owned)}, tmp_path / "zipped.pth")
    save_model(build_model(tiny_arch()), tmp_path / "model")
    (tmp_path / "model/model.safetensors").write_bytes(content * 3000)
    for path in ("weights.pth", "zipped.pth", "model"):
        with pytest.raises(ArchError):
            read_weights(tmp_path / path)
    assert not owned.exists()


def test_an_architecture_larger_than_its_weights_takes_no_memory(tmp_path: Path) -> None:
    save_model(build_model(tiny_arch()), tmp_path)
    tree = arch_to_dict(tiny_arch())
    tree["stages"][1]["embed_dim"] = 2**20
    (tmp_path / "arch.json").write_text(json.dumps(tree))
    with pytest.raises(ArchError, match="too small for the network of"):  # whose weights would take 60 TB
        load_model(tmp_path)


@settings(max_examples=200, deadline=1000)
@given(st.data())
def test_an_architecture_file_with_anything_anywhere_is_one_or_an_error(data: st.DataObject) -> None:
    tree = arch_to_dict(load_arch("cvt-13"))
    *path, last = data.draw(st.sampled_from(places(tree)))
    section = tree
    for part in path:
        section = section[part]
    section[last] = data.draw(ODD)
    with contextlib.suppress(ArchError):
        assert arch_from_dict(tree).id


# --- run folders


def test_nothing_in_a_run_folder_is_run_or_becomes_markup(finished_run: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    subprocess.run(["cp", "-r", str(finished_run.path), str(run.path)], check=True)
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["name"] = "</script><script>alert(1)</script><!--<script>"
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    write_report(run)
    for page in run.path.glob("*.html"):
        text = page.read_text()
        assert "<script>alert" not in text
        assert "<!--" not in text


def test_a_status_is_one_that_there_is(finished_run: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    subprocess.run(["cp", "-r", str(finished_run.path), str(run.path)], check=True)
    first, *others = (run.path / "trials.jsonl").read_text().splitlines()
    odd = json.loads(first) | {"status": "</option></select><meta http-equiv=refresh>"}
    (run.path / "trials.jsonl").write_text("\n".join([json.dumps(odd), *others]) + "\n")
    with pytest.raises(RunFolderError, match=r"trials.jsonl:1: .*status: Input should be 'complete'"):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("test.jsonl", {"arch_id": ["a"]}),
        ("latency.jsonl", {"arch_id": {}, "p10_ms": "soon"}),
        (
            "int8.jsonl",
            {
                "arch_id": "a",
                "for": "onnxruntime-int8",
                "metric": "accuracy",
                "score": "nan",
                "num_images": 1,
                "judged": [],
                "num_calibrated": 0,
                "num_bytes": None,
                "ms": None,
                "runtime": "x",
                "num_threads": 1,
            },
        ),
    ],
)
def test_a_record_of_the_front_with_a_line_of_another_kind_is_one_line(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, line: dict[str, Any]
) -> None:
    subprocess.run(["cp", "-r", str(finished_run.path), str(tmp_path / "run")], check=True)
    (tmp_path / "run" / name).write_text(json.dumps(line) + "\n")
    assert main(["report", str(tmp_path / "run")]) == 2
    assert re.fullmatch(rf"cvt-nas: \S+{name}:1: is no line of such a record: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", '"nan"'])
@pytest.mark.parametrize(
    ("name", "key"), [("trials.jsonl", "accuracy"), ("test.jsonl", "test_accuracy"), ("manifest.json", "seed")]
)
def test_a_number_that_is_not_finite_is_refused_with_its_line(
    small: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, key: str, number: str
) -> None:
    run = run_of(GELU, small, tmp_path / "run")
    run.append_test_accuracy(0, GELU.id, 0.5, 10)
    text = (run.path / name).read_text()
    (run.path / name).write_text(re.sub(rf'"{key}": [\d.]+', f'"{key}": {number}', text))
    where = f"{name}" if name == "manifest.json" else f"{name}:1"
    for verb in (["report"], ["export", "--to", str(tmp_path / "m")], ["compare", "--to", str(tmp_path / "c.html")]):
        if name == "test.jsonl" and verb[0] == "compare":
            continue
        assert main([verb[0], str(run.path), *verb[1:]]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"cvt-nas: {run.path}/{where}: ")
        assert error.count("\n") == 1


def test_the_name_of_a_run_is_no_markup_of_the_terminal(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    subprocess.run(["cp", "-r", str(finished_run.path), str(tmp_path / "run")], check=True)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest | {"name": "[/bold][red]a :smile:"}))
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "[/bold][red]a :smile:" in capsys.readouterr().out


DAMAGED = [
    ("manifest.json", "[]"), ("manifest.json", "{}"), ("manifest.json", "\xff"), ("trials.jsonl", "[]\n"),
    ("trials.jsonl", '{"number": 0}\n'), ("trials.jsonl", "\xff\n"),
    ("trials.jsonl", '{"number": "0"}\n'), ("confirm.json", "{}"), ("confirm.json", "\x80"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "name", "content"),
    [
        (verb, name, content)
        for verb in (["report"], ["export", "--to", "there"], ["query"])
        for name, content in DAMAGED
        if verb != ["query"] or name == "manifest.json"  # a query reads candidates instead of trials
    ],
)
def test_a_damaged_run_folder_is_one_line(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture, verb: list[str], name: str, content: str
) -> None:
    subprocess.run(["cp", "-r", str(finished_run.path), str(tmp_path / "run")], check=True)
    (tmp_path / "run" / name).write_bytes(content.encode("latin-1"))
    assert (
        main(
            [verb[0], str(tmp_path / "run"), *(str(tmp_path / part) if part == "there" else part for part in verb[1:])]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("cvt-nas: ")
    assert error.count("\n") == 1
