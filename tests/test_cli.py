"""The command line, called in this process, on one finished search."""

import ast
import csv
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import SPACES, small_digits
from cvt_nas import load_arch, load_model
from cvt_nas.arch import save_arch
from cvt_nas.cli import main
from cvt_nas.cli.arguments import build_parser
from cvt_nas.cli.output import command, nothing_found
from cvt_nas.cli.searching import resuming
from cvt_nas.config import Experiment, load_experiment
from cvt_nas.errors import StorageError
from cvt_nas.model import probe_error
from cvt_nas.results import Status
from cvt_nas.run import RunFolder, cache_folder
from test_export import run_of


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip()


def test_importing_the_command_line_is_fast_and_loads_no_torch() -> None:
    code = (
        "import sys, time; t = time.process_time(); import cvt_nas.cli; "
        "print(time.process_time() - t, not {'torch', 'ray', 'optuna', 'pydantic', 'pandas'} & set(sys.modules))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, lean = min(run.stdout.split() for run in runs)
    assert float(seconds) < 0.2
    assert lean == "True"


def test_profile_prints_the_names_that_scripts_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(printed(capsys, "profile", "cvt-13", "--image-size", "384", "--json"))
    assert result["image_size"] == 384
    assert (result["params"], result["flops"]) == (19_997_480, 16_323_590_016)
    assert [set(stage) >= {"params", "flops"} for stage in result["stages"]] == [True] * 3
    assert sum(stage["params"] for stage in result["stages"]) < result["params"]
    assert len(result["arch_id"]) == 10
    assert [(model["name"], model["accuracy"]) for model in result["published"]] == [
        ("CvT-13", 0.83),
        ("CvT-13", 0.833),
    ]


def test_profile_for_people_shows_each_stage_and_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "profile", "cvt-13").splitlines()
    assert "stage 1: 28x28 tokens, width 192, depth 2, heads 3, mlp 4, kernel 3, kv stride 2, dw_bn" in lines[1]
    assert "19,997,480 and 4,584,569,216" in lines[3]
    assert "4.08G FLOPs" in lines[4]
    assert lines[5:] == [
        "published: 20 M params, 4.5 G FLOPs, 81.6 % top-1 on ImageNet (ImageNet-1k, arXiv:2103.15808 Table 3)"
    ]


def test_space_prints_size_range_and_share(capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(printed(capsys, "space", str(SPACES / "cvt13.yaml"), "--json"))
    assert set(result) == {"name", "size", "params", "flops", "flops_without_attention", "feasible_fraction"}
    assert result["name"] == "cvt13"
    assert result["params"]["min"] < 19_997_480 < result["params"]["max"]
    assert 0.5 < result["feasible_fraction"] < 1


def test_space_counts_flops_with_and_without_attentions_products(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "space", str(SPACES / "cvt13_nas.yaml"))
    assert "FLOPs 3.14G to 6.67G" in found
    assert "without attention's two products" in found  # the paper's least, from its own count: 2.59 G
    assert "2.63G in the smallest, 4.64G in the largest" in found


def test_report_rebuilds_everything_from_the_record(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("manifest.json", "trials.jsonl", "test.jsonl"):
        (copy / name).write_bytes((finished_run.path / name).read_bytes())
    result = json.loads(printed(capsys, "report", str(copy), "--json"))
    assert set(result) == {"run", "metric", "trials", "statuses", "front", "hypervolume", "rungs"}
    assert result["trials"] == 8
    for name in ("pareto.csv", "pareto_flops.html", "pareto_params.html"):
        assert (copy / name).read_bytes() == (finished_run.path / name).read_bytes()


def test_the_table_of_the_front_begins_with_the_best(finished_run: RunFolder) -> None:
    with (finished_run.path / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["arch_id", "accuracy", "params", "flops"]
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(0 < float(row["test_accuracy"]) <= 1 for row in rows)
    assert [row["arch_id"] for row in rows] == [member.arch_id for member in finished_run.front().members]


def test_a_plot_shows_the_architecture_of_each_point(finished_run: RunFolder) -> None:
    page = (finished_run.path / "pareto_flops.html").read_text()
    for result in finished_run.results():
        assert result.arch_id in page
    assert "kv stride" in page
    assert 'src="plotly.min.js"' in page
    assert (finished_run.path / "plotly.min.js").stat().st_size > 1_000_000


def test_report_for_people_says_what_to_run_next(finished_run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    output = printed(capsys, "report", str(finished_run.path))
    assert "best" in output
    assert output.splitlines()[-1] == f"next: cvt-nas export {finished_run.path} --pick knee --to my_model"


def words_of(command: str) -> list[str]:
    """As a shell reads it."""
    found = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return found.stdout.split("\0")[:-1]


@pytest.mark.parametrize("name", ["it's a $HOME [bold] :smile: größe", "file://"])
def test_what_is_said_to_run_next_can_be_pasted(
    finished_run: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    place = tmp_path / ("a run" if name == "file://" else name)
    shutil.copytree(finished_run.path, place)
    run = f"file://{place}" if name == "file://" else str(place)
    lines = printed(capsys, "report", run).splitlines()
    program, *words = words_of(lines[-1].removeprefix("next: "))
    assert program == "cvt-nas"
    monkeypatch.chdir(tmp_path)
    printed(capsys, *words)
    assert load_model(tmp_path / "my_model").arch
    plots = words_of(lines[-2].removeprefix("plots: ").replace(", ", " "))
    assert plots[0] == f"{run}/report.html"
    stopped = next(result for result in finished_run.results() if result.status == "stopped")
    message = refused(capsys, "export", run, "--pick", stopped.arch_id, "--to", str(tmp_path / "m"))
    words = words_of(message.partition("train it in full: ")[2])
    assert words == ["cvt-nas", "train", f"{run}:{stopped.arch_id}", "--out", "DIR"]


@pytest.mark.parametrize(
    ("ended", "is_time_over", "line"),
    [
        ([("diverged", "loss not finite in epoch 1")] * 6, False,
         "6 trials, none complete: 6 diverged (loss not finite in epoch 1)"),
        ([("diverged", "a"), ("failed", "b"), ("diverged", "a"), ("stopped", None)], False,
         "4 trials, none complete: 2 diverged, 1 failed, 1 stopped (most often: a)"),
        ([("stopped", None)], False, "1 trial, none complete: 1 stopped"),
        ([], True, "the time budget ended before any trial was complete: no trial has ended"),
        ([("oom", "c")], True,
         "the time budget ended before any trial was complete: 1 trial, none complete: 1 oom (c)"),
    ],
)  # fmt: skip
def test_a_search_that_found_nothing_says_how_many_trials_it_had_and_why(
    finished_run: RunFolder, ended: list[tuple[Status, str]], is_time_over: bool, line: str
) -> None:
    one = finished_run.results()[0]
    results = [dataclasses.replace(one, status=status, reason=reason) for status, reason in ended]
    assert nothing_found(results, is_time_over=is_time_over) == line


def test_every_text_file_is_read_and_written_as_utf_8_whatever_the_locale() -> None:
    package, found = Path(__file__).parent.parent / "cvt_nas", list[str]()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            is_builtin = (
                isinstance(node.func, ast.Name) and name == "open" and not any("b" in mode for mode in modes[-1:])
            )
            if (name in ("read_text", "write_text") or is_builtin) and "encoding" not in {k.arg for k in node.keywords}:
                found.append(f"{path.relative_to(package)}:{node.lineno}")
    assert not found


PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("locale", [PLAIN | {"PYTHONIOENCODING": "ascii"}, PLAIN, {"PYTHONIOENCODING": "latin-1"}])
def test_a_locale_without_unicode_prints_what_it_can(
    finished_run: RunFolder, tmp_path: Path, locale: dict[str, str]
) -> None:
    place = tmp_path / "größe ≥ 1"
    shutil.copytree(finished_run.path, place)
    found = subprocess.run(
        [sys.executable, "-W", "error", "-m", "cvt_nas.cli", "report", str(place)],
        env=os.environ | locale, capture_output=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert b"Traceback" not in found.stderr
    assert b"Pareto front" in found.stdout
    assert b"cvt-nas export" in found.stdout
    page = (place / "report.html").read_text(encoding="utf-8")
    assert "größe ≥ 1" in page


def test_a_long_temporary_folder_gives_way_to_a_short_one_with_a_note(tmp_path: Path) -> None:
    long = tmp_path / ("t" * 90)
    long.mkdir()
    found = subprocess.run(
        [sys.executable, "-m", "cvt_nas.cli", "profile", "cvt-13", "--json"],
        env=os.environ | {"TMPDIR": str(long)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(found.stdout)["params"] == 19_997_480
    assert found.stderr == f"note: TMPDIR {long} is too long for sockets: /tmp is used instead\n"


def test_a_home_that_cannot_be_written_gives_way_to_a_folder_of_the_user_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder == cache_folder() == tmp_path / f"cvt-nas-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/file/home/.cache/cvt-nas cannot be written: {folder} is used instead"
    ]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    folder.rmdir()
    folder.symlink_to(tmp_path)  # as another user could have made it
    with pytest.raises(StorageError, match="set XDG_CACHE_HOME to a folder that can"):
        cache_folder()


def test_a_folder_that_cannot_be_written_is_one_line(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *about: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "replace", refuse)  # root may write anywhere
    assert main(["report", str(finished_run.path)]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"cvt-nas: {finished_run.path}/pareto.csv: cannot be written: Permission denied\n"
    assert "Pareto front" in printed.out, "of a run that one may only read"


@pytest.mark.parametrize("pick", ["knee", "flops<1e12"])
def test_an_export_loads_in_one_line_and_answers_as_the_trained_model(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], pick: str
) -> None:
    to = tmp_path / "model"
    result = json.loads(printed(capsys, "export", str(finished_run.path), "--pick", pick, "--to", str(to), "--json"))
    model = load_model(to)
    assert model.arch.id == result["arch_id"]
    assert probe_error(model, finished_run.model_path(result["arch_id"])) < 1e-5, "not 0: threads sum in another order"
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert {path.name for path in to.iterdir()} == {"arch.json", "model.safetensors", "preprocessing.json", "README.md"}
    card = (to / "README.md").read_text()
    assert f"{result['params']:,}" in card
    assert f"{result['accuracy']:.4f}" in card


def test_an_exported_model_reaches_the_accuracy_of_its_record(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cvt_nas.config import DataConfig, TrainingConfig
    from cvt_nas.data import load_data
    from cvt_nas.engine import evaluate

    result = json.loads(
        printed(capsys, "export", str(finished_run.path), "--pick", "best", "--to", str(tmp_path / "m"), "--json")
    )
    data = load_data(
        DataConfig(dataset="digits", search_fraction=0.25), root=None, image_size=8, num_channels=1, num_classes=10
    )
    accuracy = evaluate(
        load_model(tmp_path / "m"), data, "search", training=TrainingConfig(epochs=1), device=torch.device("cpu")
    )
    assert accuracy == pytest.approx(result["accuracy"], abs=1 / 360)


def test_an_export_whose_logits_differ_fails_and_leaves_nothing(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, to = tmp_path / "copy", tmp_path / "model"
    best = finished_run.pick("best")
    source = finished_run.model_path(best.arch_id)
    target = RunFolder(copy).model_path(best.arch_id)
    target.mkdir(parents=True)
    for name in ("manifest.json", "trials.jsonl"):
        (copy / name).write_bytes((finished_run.path / name).read_bytes())
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(target / "model.safetensors")
    weights["head.bias"] = weights["head.bias"] + 0.01
    save_file(weights, target / "model.safetensors")
    message = refused(capsys, "export", str(copy), "--pick", "best", "--to", str(to))
    assert f"{best.arch_id}: its logits differ by 0.01 from those of the trained model" in message
    assert not to.exists()


def test_an_export_of_a_stopped_trial_says_how_to_train_it(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = next(result for result in finished_run.results() if result.status == "stopped")
    message = refused(capsys, "export", str(finished_run.path), "--pick", stopped.arch_id, "--to", str(tmp_path / "m"))
    assert message == (
        f"cvt-nas: {stopped.arch_id}: its training ended as 'stopped' after epoch {stopped.epochs} and left no "
        f"weights; train it in full: cvt-nas train {finished_run.path}:{stopped.arch_id} --out DIR"
    )


def test_an_export_does_not_write_into_a_folder_that_holds_something(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("keep me")
    message = refused(capsys, "export", str(finished_run.path), "--to", str(tmp_path))
    assert message == f"cvt-nas: --to {tmp_path}: is not empty; name a new folder"


def test_train_trains_one_architecture_of_a_run_in_full_and_its_result_exports(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = next(result for result in finished_run.results() if result.status == "stopped")
    out, to = tmp_path / "trained", tmp_path / "model"
    arch = f"{finished_run.path}:{stopped.arch_id}"
    result = json.loads(printed(capsys, "train", arch, "--out", str(out), "--epochs", "2", "--gpus", "0", "--json"))
    assert result["front"][0]["arch_id"] == stopped.arch_id
    assert RunFolder.open(out).results()[0].epochs == 2
    printed(capsys, "export", str(out), "--pick", "best", "--to", str(to))
    assert load_model(to).arch == stopped.arch


def test_train_of_a_named_architecture_asks_for_its_images_and_of_another_for_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "train", "cvt-13") == (
        "cvt-nas: imagenet: give the folder that holds train/ and val/ by --data DIR"
    )
    save_arch(load_arch("cvt-13"), tmp_path / "arch.json")
    assert refused(capsys, "train", str(tmp_path)) == (
        f"cvt-nas: {tmp_path}: name the file whose data and training are to be used by --space FILE"
    )


def test_train_refuses_an_architecture_that_the_data_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_arch(load_arch("cvt-13"), tmp_path / "arch.json")
    message = refused(capsys, "train", str(tmp_path / "arch.json"), "--space", str(SPACES / "digits.yaml"))
    assert message == "cvt-nas: num_channels: the architecture has 3, the file digits has 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("profile", "cvt-14"),
            "cvt-14: neither one of cvt-13, cvt-21, cvt-w24, cvt-13-cifar nor a file arch.json; did you mean 'cvt-13'?",
        ),
        (("profile", "nowhere:abc"), "nowhere:abc: nowhere holds no run"),
        (("report", "nowhere"), "nowhere holds no run: no manifest.json in it"),
        (("space", "nowhere.yaml"), "nowhere.yaml: cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_exits_with_2_and_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert refused(capsys, *arguments) == f"cvt-nas: {message}"


LONG = "a" * 300


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (f"check {LONG}", "read: File name too long"),
        (f"profile {LONG}", "read: File name too long"),
        (f"report {LONG}", "read: File name too long"),
        (f"query {LONG}", "read: File name too long"),
        (f"eval {LONG}", "read: File name too long"),
        (f"eval file --arch {LONG}", "read: File name too long"),
        (f"train arch.json --space space.yaml --init {LONG}", "read: File name too long"),
        (f"train arch.json --space space.yaml --gpus 0 --out {LONG}", "written: File name too long"),
        (f"search --space space.yaml --cpus 1 --gpus 0 --out {LONG}", "written: File name too long"),
        (f"export run --to {LONG}", "written: File name too long"),
        (f"compare run --to {LONG}", "written: File name too long"),
        ("compare run --to run", "written: Is a directory"),
        ("compare run --to file/page.html", "written: File exists"),
        ("compare run --to /proc/no/page.html", "written: No such file or directory"),
        ("export run --to file/model", "written: Not a directory"),
        ("train arch.json --space space.yaml --gpus 0 --out file/run", "written: Not a directory"),
        ("export run --to loop/model", "written: Too many levels of symbolic links"),
        ("space run", "read: Is a directory"),
    ],
)
def test_a_path_that_is_none_is_one_line_that_says_whether_it_is_read_or_written(
    small: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    command: str, what: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run_of(small.space.smallest, small, tmp_path / "run")
    save_arch(small.space.smallest, tmp_path / "arch.json")
    (tmp_path / "space.yaml").write_text(small_digits())
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    message = refused(capsys, *command.split())
    assert message.startswith("cvt-nas: ")
    assert message.endswith(f": cannot be {what}")
    assert "\n" not in message


@pytest.mark.parametrize(
    "command",
    [
        "train arch.json --space space.yaml --gpus 0 --epochs 1 --out {}",
        "export run --pick best --to {}",
        "query run --to {}",
        "compare run --to {}/page.html",
        "eval {model} --data digits --to {}",
        "predict {model} photo.png --to {}/answers.csv",
        "init digits --no-measure --to {}/space.yaml",
        "pack photos --short-side 8 --to {}",
        "measure local --space space.yaml --to {}/table.json",
        "measure {} --space space.yaml",
        "bench --table cvt-bench --budget 1 --plot {}/page.html",
    ],
)
def test_what_writes_to_disk_alone_refuses_a_url_before_its_work(
    small: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run = run_of(small.space.smallest, small, tmp_path / "run")
    save_arch(small.space.smallest, tmp_path / "arch.json")
    (tmp_path / "space.yaml").write_text(small_digits())
    before = set(tmp_path.rglob("*"))
    words = command.format("s3://bucket/new", model=run.model_path(small.space.smallest.id)).split()
    message = refused(capsys, *words).splitlines()[-1]
    assert message.endswith(": cannot be written: only a search writes to a URL; give a path")
    assert "s3:/" in message
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("errno_", "line"), [
    (errno.EACCES, "cvt-nas: mine/arch.json: cannot be read: Permission denied"),
    (errno.ESTALE, "cvt-nas: mine/arch.json: cannot be read: Stale file handle"),
])  # fmt: skip
def test_what_cannot_be_read_is_not_said_to_be_unwritable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, errno_: int, line: str
) -> None:
    def refuse(path: Path) -> bool:
        raise OSError(errno_, os.strerror(errno_), str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # root may read anything
    assert refused(capsys, "profile", "mine/arch.json") == line


def test_an_error_of_a_file_that_nobody_named_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object) -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/usr/lib/ours")

    monkeypatch.setattr("cvt_nas.config.load_experiment", fail)
    with pytest.raises(FileNotFoundError):
        main(["space", "x.yaml"])


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [(["profile", "cvt-13"], ""), (["profile", "cvt-13"], "1"), (["report", "nowhere"], ""), (["--help"], "")],
)
def test_where_nobody_reads_on_the_command_ends_in_silence(words: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    is_message = words[0] == "report"
    found = subprocess.run(
        [sys.executable, "-m", "cvt_nas.cli", *words],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.DEVNULL if is_message else writer,
        stderr=writer if is_message else subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (found.returncode, found.stderr or b"") == (1, b"")


def test_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        found = subprocess.run(
            [sys.executable, "-m", "cvt_nas.cli", "profile", "cvt-13"],
            env=os.environ | {"PYTHONUNBUFFERED": ""}, stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert (found.returncode, found.stderr) == (
        2, b"cvt-nas: the output cannot be written: No space left on device\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "name"),
    [(["check", ""], "an argument"), (["eval", "w.pth", "--data", ""], "--data"),
     (["eval", "w.pth", "--data="], "--data"), (["compare", "a", "--to", ""], "--to")],
)  # fmt: skip
def test_an_empty_word_is_not_the_current_folder(
    capsys: pytest.CaptureFixture[str], words: list[str], name: str
) -> None:
    assert refused(capsys, *words) == f"cvt-nas: {name}: is empty, as of a variable that is not set"


def test_a_run_whose_name_begins_with_a_dash_can_be_pasted(
    small: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(small.space.smallest, small, tmp_path / "-run")
    monkeypatch.chdir(tmp_path)
    lines = printed(capsys, "report", "--", "-run").splitlines()
    assert lines[-1] == "next: cvt-nas export ./-run --pick knee --to my_model"
    assert lines[-2].startswith("plots: ./-run/report.html, ")


@pytest.mark.parametrize("name", ["plain", "it's", "a\nb", "\x1b[31m \\ 'x'"])
def test_a_word_with_control_characters_can_be_pasted_into_bash(name: str) -> None:
    found = subprocess.run(["bash", "-c", f"printf %s {command(name)}"], capture_output=True, text=True, check=True)
    assert found.stdout == name
    assert command(name).isprintable()


def test_eval_of_a_run_asks_for_images_or_for_one_of_its_models(
    small: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(small.space.smallest, small, tmp_path / "run")
    assert refused(capsys, "eval", str(run.path)) == (
        f"cvt-nas: {run.path}: is a run; name one of its models, as {run.path}:best"
    )
    run.amend_manifest(dataset="imagefolder")
    assert refused(capsys, "eval", f"{run.path}:best") == (
        f"cvt-nas: {run.path}:best: name the images by --data DIR, or a data set by its name"
    )


def test_eval_of_a_folder_of_checkpoints_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "model.safetensors").write_bytes(b"")
    assert f"; give one of its folders: {tmp_path}/checkpoint-500" in refused(
        capsys, "eval", str(tmp_path), "--data", "digits"
    )


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("profile microsoft/cvt-21-384-22k", "cvt-21"), ("profile CvT-W24-384x384", "cvt-w24"),
        ("profile CvT-13-224x224-IN-1k.pth", "cvt-13"), ("profile cvt-13-cifr", "cvt-13-cifar"),
        ("check CIFAR10", "cifar10"), ("check Digits", "digits"), ("check fashion_mnist", "fashion-mnist"),
    ],
)  # fmt: skip
def test_another_spelling_is_asked_for(capsys: pytest.CaptureFixture[str], command: str, name: str) -> None:
    assert refused(capsys, *command.split()).endswith(f"; did you mean {name!r}?")


def test_eval_of_the_name_of_a_network_asks_for_weights(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cvt-13", "CvT-13"):
        assert refused(capsys, "eval", name).startswith(f"cvt-nas: {name}: is an architecture; give its weights")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpus", "-1"), "argument --gpus: got '-1', must be a whole number"),
        (("--seed", "4294967296"), "argument --seed: got '4294967296', must be below 2 ** 32"),
        (("--trials", "0"), "argument --trials: got '0', must be at least 1"),
        (("--time-budget", "8"), "argument --time-budget: got '8', must be a time above 0 like 90s, 30m, 8h or 2d"),
    ],
)
def test_a_flag_with_a_wrong_value_says_what_would_be_right(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["search", "--space", "x.yaml", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_text_is_no_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x80\x02}q\x00.")
    assert refused(capsys, "profile", str(tmp_path / "model.bin")).startswith(
        f"cvt-nas: {tmp_path / 'model.bin'}: not JSON: 'utf-8' codec can't decode byte 0x80"
    )


def test_the_command_that_goes_on_is_the_one_that_was_given() -> None:
    given = ["--data", "my images", "--gpus", "0", "--trials", "9", "--address", "auto", "--seed", "3", "--tensorboard"]
    options = build_parser().parse_args(["search", "--space", "x.yaml", "--time-budget", "8h", *given])
    assert resuming(options, "results/x") == (
        "cvt-nas search --space x.yaml --out results/x --resume --data 'my images' --gpus 0 --trials 9 --address auto "
        "--tensorboard"
    )


def test_a_search_that_a_time_budget_ended_offers_a_greater_one() -> None:
    options = build_parser().parse_args(["search", "--space", "x.yaml", "--time-budget", "90s"])
    again = resuming(options, "results/x", time_budget=90.0)
    assert again == "cvt-nas search --space x.yaml --out results/x --resume --time-budget 180s"
    assert build_parser().parse_args(again.split()[1:]).time_budget == 180


def test_a_command_that_goes_on_can_be_pasted_whatever_its_paths_begin_with() -> None:
    given = ["search", "--space=-s.yaml", "--out=-run", "--data=-d", "--wandb=--p"]
    options = build_parser().parse_args(given)
    again = build_parser().parse_args(words_of(resuming(options, "-run"))[1:])
    assert again.resume
    assert {**vars(again), "resume": False} == vars(options)


def test_a_training_without_a_result_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "steep.yaml"
    space.write_text(small_digits(**{"  lr:": "  lr: 1.0e+18\n  optimizer: sgd"}))
    save_arch(load_experiment(space).space.smallest, tmp_path / "arch.json")
    arguments = [
        "train",
        str(tmp_path / "arch.json"),
        "--space",
        str(space),
        "--out",
        str(tmp_path / "run"),
        "--gpus",
        "0",
    ]
    assert main(arguments) == 1, "as a search whose trials all diverge"
    assert capsys.readouterr().err == (
        "cvt-nas: the training ended: loss not finite in epoch 1, after it was rolled back 3 times\n"
    )


def test_ctrl_c_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cvt_nas.config.load_experiment", interrupted)
    assert main(["space", "x.yaml"]) == 130
    assert capsys.readouterr().err == "cvt-nas: interrupted\n"


def test_a_space_file_with_mistakes_lists_them_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "bad.yaml"
    space.write_text(small_digits(**{"  lr:": "  lr: 3e-3\n  momentun: 0.9"}))
    lines = refused(capsys, "search", "--space", str(space), "--out", str(tmp_path / "run")).splitlines()
    assert len(lines) == 2
    assert all(str(space) in line for line in lines)
    assert not (tmp_path / "run").exists()
