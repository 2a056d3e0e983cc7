"""A front that is confirmed in int8: what it goes by, what it leaves out, and how it is judged and resumed."""

import dataclasses
import io
import json
import math
import statistics
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from conftest import Watch
from cvt_nas import search
from cvt_nas.arch import ArchConfig
from cvt_nas.config import ConfirmConfig, Experiment, TrainingConfig, parse_experiment
from cvt_nas.data import LoadedData, load_data
from cvt_nas.engine import TrainingSetup, progress_reports, quantised
from cvt_nas.engine.quantised import Recipe, judged_in_int8
from cvt_nas.errors import ResourceError, RunFolderError
from cvt_nas.model import CvT
from cvt_nas.model.quantising import quantise_openvino
from cvt_nas.pipeline import confirm as confirming
from cvt_nas.pipeline.confirm import check_judging, plan_of
from cvt_nas.report import (
    Comparison,
    confirmation_lines,
    front_figure,
    front_frame,
    front_table,
    run_page,
    summary,
)
from cvt_nas.results import ConfirmPlan, Int8, Judged, Judgement, TrialResult, confirm, failed_in_int8
from cvt_nas.results.events import EpochDone
from cvt_nas.run import RunFolder
from test_confirm import again, raced
from test_results import ALL, trial

CPU = torch.device("cpu")
FAULT = "onnxruntime, ENABLE_ALL: its logits differ from those in fp32 by 0.9 standard deviations, more than 0.2"
SPACE = """
format: 1
name: small
space:
  image_size: 8
  num_channels: 1
  num_classes: 10
  stages:
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: [8, 16], depth: 1, num_heads: 1, mlp_ratio: [1.0, 2.0],
       kernel_size: 3, kv_stride: 1}
objectives: {accuracy: maximize, params: minimize}
data: {dataset: digits, search_fraction: 0.25}
training: {epochs: 2, warmup_epochs: 0, lr: 3.0e-3, batch_size: 64}
search: {trials: 2, sampler: random, scheduler: none, seed: 0, confirm: {seeds: 2, top: 1, as: onnxruntime-int8}}
"""


@pytest.fixture(scope="module")
def small_space() -> Experiment:
    return parse_experiment(SPACE, "small.yaml")


@pytest.fixture(scope="module")
def images(small_space: Experiment) -> LoadedData:
    return load_data(small_space.data, root=None, image_size=8, num_channels=1, num_classes=10)


def int8(accuracy: float, *, fp32: float = 0.9, faults: tuple[str, ...] = (), **more: Any) -> Int8:
    """Figures of a network, of which onnxruntime without its fusions is a point better."""
    judged = (
        Judged(runtime="onnxruntime, ENABLE_BASIC", score=accuracy + 0.01, error=0.02, loss=fp32 - accuracy - 0.01),
        Judged(runtime="onnxruntime, ENABLE_ALL", score=accuracy, error=0.9 if faults else 0.02, loss=fp32 - accuracy),
    )
    figures: dict[str, Any] = {
        "runtime": "onnxruntime-int8", "num_calibrated": 256, "num_bytes": (4_000_000, 1_100_000), "ms": (2.0, 1.0),
        "software": "onnxruntime 1.32.0", "num_threads": 1, "faults": faults,
        "judgement": Judgement(metric="accuracy", score=fp32, num_images=360, judged=judged),
    }  # fmt: skip
    return Int8(**figures | more)


def further(first: TrialResult, round_: int, fp32: float, found: Int8 | None) -> TrialResult:
    return dataclasses.replace(again(first, round_, fp32), int8=found)


# In fp32, the front would be 0 and 1; trial 2 is worse than 1, but loses nothing by int8.
FP32 = {0: (0.95, 0.93), 1: (0.92, 0.90), 2: (0.89, 0.91)}
IN_INT8 = {0: (0.94, 0.92), 1: (0.80, 0.82), 2: (0.89, 0.91)}


def confirm_in_int8(run: RunFolder, *, failing: tuple[int, ...] = (), rounds: int = 2) -> None:
    """The first further training of the trials `failing` fails in int8."""
    run.confirmations.write_plan(ConfirmPlan(top="front", seeds=2, members=(0, 1, 2), runtime="onnxruntime-int8"))
    for index in range(rounds):
        for number, first in enumerate(run.results()[:3]):
            faults = (FAULT,) if number in failing and index == 0 else ()
            fp32 = FP32[number][index]
            run.confirmations.append(
                further(first, index + 1, fp32, int8(IN_INT8[number][index], fp32=fp32, faults=faults))
            )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return raced(tmp_path / "run")


# --- the front, and what is said of it


def test_the_front_goes_by_means_in_int8_of_the_runtime_as_it_is_used(run: RunFolder) -> None:
    confirm_in_int8(run)
    assert [(m.number, m.accuracy) for m in run.front().members] == [(0, 0.93), (2, 0.90)]
    assert run.pick("best").number == 0
    assert run.pick("params<60").number == 2
    found = {m.number: m.confirmation for m in run.confirmed()}
    assert found[1] is not None
    assert (found[1].mean, found[1].fp32_mean) == (0.81, 0.91)
    assert run.front_score_name == "accuracy in int8, onnxruntime"
    box = run.box.normalise(run.front().members, ALL)
    assert box[:, 0].tolist() == pytest.approx([0.07, 0.10]), "the hypervolume is of accuracies in int8"


def test_without_as_figures_in_int8_have_no_part_in_the_front(run: RunFolder) -> None:
    confirm_in_int8(run)
    run.confirmations.write_plan(ConfirmPlan(top="front", seeds=2, members=(0, 1, 2)))
    assert [(m.number, m.accuracy) for m in run.front().members] == [(0, 0.94), (1, 0.91), (2, 0.90)]
    assert run.front_score_name == "accuracy"


def test_an_architecture_that_fails_in_int8_once_is_left_out_and_told_with_its_figures(run: RunFolder) -> None:
    confirm_in_int8(run, failing=(2,))
    assert [m.number for m in run.front().members] == [0, 1]
    (left_out,) = failed_in_int8(run.results(), run.confirmations.results())
    assert [training.number for training in left_out.failed] == [1_000_002]
    line = (
        f"trial 2 ({run.results()[2].arch_id}) failed in int8 in 1 of 2 further trainings, and is left out of the "
        f"front: {FAULT} (0.8900 in fp32; 0.9000 in onnxruntime, ENABLE_BASIC; 0.8900 in onnxruntime, ENABLE_ALL)"
    )
    assert confirmation_lines(run)[1:] == [line]
    assert line in run_page(run)
    told = json.loads(json.dumps(summary(run)))["confirmation"]
    assert told["as"] == "onnxruntime-int8"
    (failed,) = told["failed_in_int8"]
    assert failed["number"] == 2
    assert [training["int8"].get("faults", []) for training in failed["trainings"]] == [[FAULT], []]


def test_a_front_of_which_all_fail_in_int8_stays_that_of_the_race_and_says_so(run: RunFolder) -> None:
    before = run.front()
    confirm_in_int8(run, failing=(0, 1, 2))
    assert run.front() == before
    assert run.front_score_name == "accuracy"
    first, *left_out = confirmation_lines(run)
    assert first.startswith("not confirmed: 6 of 6 further trainings have ended, and int8 failed for 3 architectures; ")
    assert "accuracy is in fp32, of the race's one training" in first
    assert len(left_out) == 3


def test_a_further_training_that_was_not_judged_as_the_plan_asks_has_not_ended(run: RunFolder) -> None:
    confirm_in_int8(run)
    whole = run.confirmations.results()
    run.confirmations.write_plan(ConfirmPlan(top="front", seeds=2, members=(0, 1, 2), runtime="openvino-int8"))
    assert run.confirmations.results() == ()
    assert len(run.confirmations.missing()) == 6
    assert run.confirmed() == ()
    lost = again(run.results()[0], 1, None, "diverged")
    run.confirmations.append(lost)
    assert run.confirmations.results() == (lost,), "there is no network to judge"
    run.confirmations.write_plan(ConfirmPlan(top="front", seeds=2, members=(0, 1, 2), runtime="onnxruntime-int8"))
    assert run.confirmations.results()[1:] == whole[1:], "what was judged so before counts again"
    run.confirmations.append(again(run.results()[1], 1, None, "failed"))
    assert run.confirmations.results()[1:] == whole[1:], "an attempt that failed replaces nothing"


def test_the_plan_takes_the_runtime_of_the_settings() -> None:
    written: dict[str, Any] = {"as": "openvino-int8"}
    assert plan_of([trial(0, 0.5)], ALL, ConfirmConfig(**written)).runtime == "openvino-int8"


@pytest.mark.parametrize("error", [0.02, math.inf])
def test_figures_are_read_as_they_were_written_but_an_infinite_error_is_unknown(run: RunFolder, error: float) -> None:
    judgement = dataclasses.replace(int8(0.5).judgement, judged=(Judged(runtime="onnxruntime", error=error),))
    found = int8(0.5, faults=("why",), judgement=judgement, ms=None, num_bytes=None)
    run.int8.append("abc", int8(0.4))
    run.int8.append("abc", found)
    (read,) = run.int8.by_arch()["abc"].values()
    assert read.judgement.judged[0].error == (None if math.isinf(error) else error)
    assert dataclasses.replace(read, judgement=judgement) == found
    result = dataclasses.replace(trial(0, 0.5), int8=int8(0.4))
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_damaged_line_of_figures_is_named(run: RunFolder) -> None:
    (run.path / "int8.jsonl").write_text('{"arch_id": "a", "for": "onnxruntime"}\n')
    with pytest.raises(RunFolderError, match=r"int8\.jsonl:1: is no line of such a record"):
        run.int8.by_arch()


def test_tables_and_the_summary_name_the_runtime_and_hold_both_accuracies(run: RunFolder) -> None:
    confirm_in_int8(run)
    first = run.results()[0]
    run.int8.append(first.arch_id, int8(0.935, fp32=0.95))
    frame = front_frame(run)
    assert frame["accuracy"].tolist() == [0.93, 0.90]
    assert frame["accuracy_as"].tolist() == ["onnxruntime-int8"] * 2
    assert frame["fp32_accuracy"].tolist() == [0.94, 0.90]
    assert frame["own_int8_accuracy"].tolist()[0] == 0.935
    assert math.isnan(frame["own_int8_accuracy"].tolist()[1]), "it was not measured"
    assert (frame["fp32_mb"][0], frame["int8_mb"][0], frame["int8_ms"][0]) == (4.0, 1.1, 1.0)
    assert summary(run)["front"][0]["accuracy_as"] == "onnxruntime-int8"  # type: ignore[index]
    table = front_table(run)
    assert str(table.title).endswith("accuracy in int8, onnxruntime / params / flops")
    assert [column.header for column in table.columns][:4] == ["arch", "accuracy, int8", "front", "test"]
    assert list(table.columns[1].cells) == ["0.9300 ± 0.0141", "0.9000 ± 0.0141"]
    text = Console(width=80, file=io.StringIO(), record=True)
    text.print(table)
    assert "…" not in text.export_text(), "it fits 80 columns"
    assert "standard deviation in int8, onnxruntime, on 360 images of the search split" in confirmation_lines(run)[0]


def test_a_plot_names_the_runtime_on_its_axis_and_fp32_where_trials_are_of_the_race(run: RunFolder) -> None:
    confirm_in_int8(run)
    figure: Any = front_figure(run, "flops")
    assert figure.layout.yaxis.title.text == "Accuracy in int8, onnxruntime on the search split"
    assert {trace.name for trace in figure.data} >= {
        "complete, 3 epochs, one training, fp32",
        "Pareto front of further trainings in int8, mean ± standard deviation",
    }


def test_runs_whose_fronts_go_by_fp32_and_by_int8_do_not_compare(tmp_path: Path, run: RunFolder) -> None:
    for seed, each in enumerate((run, other := raced(tmp_path / "other"))):
        each.amend_manifest(dataset="digits", seed=seed, fingerprint="f")
    confirm_in_int8(run)
    with pytest.raises(RunFolderError, match="go by accuracy and by accuracy in int8, onnxruntime do not compare"):
        Comparison.of([run, other])
    confirm_in_int8(other)
    assert Comparison.of([run, other]).score_name == "accuracy in int8, onnxruntime"


# --- how it is judged


def arch_of(experiment: Experiment) -> ArchConfig:
    return experiment.space.smallest


def setup_of(experiment: Experiment, folder: Path) -> TrainingSetup:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return TrainingSetup.of(experiment, run=RunFolder(folder), data=None)


def test_a_worker_that_dies_while_it_judges_goes_on_with_that_and_trains_nothing_again(
    small_space: Experiment, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "number": 0, "device": CPU, "seed": 3, "keep_model": False, "judge_as": "onnxruntime-int8",
    }  # fmt: skip
    setup = setup_of(small_space, tmp_path / "run")
    killed = progress_reports(arch_of(small_space), setup, **options)
    trained = [next(killed), next(killed)]
    killed.close()  # before the network was judged
    assert [(report["epoch"], "int8" in report) for report in trained] == [(1, False), (2, False)]
    last, judged = progress_reports(arch_of(small_space), setup, **options, num_known=2)
    assert (last["curve"], last["train_seconds"]) == (trained[1]["curve"], trained[1]["train_seconds"])
    found = Int8.from_json(json.loads(judged.get("int8", "")))
    assert found.faults == ()
    assert found.judgement.score == pytest.approx(last["accuracy"]), "all images of a small split are judged"
    assert found.accuracy == pytest.approx(last["accuracy"], abs=0.05)
    assert (found.num_calibrated, found.judgement.num_images) == (256, 360)
    assert not (tmp_path / "run" / "models").exists()


def test_int8_is_judged_by_the_metric_of_the_run(small_space: Experiment, images: LoadedData) -> None:
    torch.manual_seed(0)
    training = TrainingConfig(epochs=0, metric="balanced_accuracy")
    found = judged_in_int8(CvT(arch_of(small_space)), "onnxruntime-int8", images, training, is_timed=True)
    assert found.judgement.metric == "balanced_accuracy"
    assert found.num_bytes is not None
    assert found.num_bytes[1] < found.num_bytes[0] / 2
    assert found.ms is not None
    assert min(found.ms) > 0


def test_a_network_that_a_library_destroys_has_faults_and_one_that_cannot_be_quantised_too(
    small_space: Experiment, images: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def destroy(source: Path, to: Path, batches: Any) -> None:
        quantise_openvino(source, to, batches, model_type=None, preset=None, advanced_parameters=None)

    def fail(*_: object) -> None:
        raise RuntimeError("no such operator")

    torch.manual_seed(0)
    model, plain = CvT(small_space.space.largest), TrainingConfig(epochs=0)
    for quantise, said in ((destroy, "its logits differ"), (fail, "it cannot be quantised: no such operator")):
        recipe = Recipe(quantise=quantise, file="model.xml")
        monkeypatch.setattr(quantised, "RECIPES", {"openvino-int8": recipe})
        found = judged_in_int8(model, "openvino-int8", images, plain)
        assert any(said in fault for fault in found.faults)
        assert 0 <= found.judgement.score <= 1, "fp32 is judged all the same"


def test_a_file_that_opens_only_without_fusions_has_a_fault() -> None:
    basic, fused = int8(0.5).judgement.judged
    unopened = Judged(runtime=fused.runtime, why="no such fusion")
    judgement = dataclasses.replace(int8(0.5).judgement, judged=(basic, unopened))
    assert quantised._with_unopened(int8(0.5, judgement=judgement)).faults == (
        "onnxruntime, ENABLE_ALL: cannot open it: no such fusion",
    )
    assert quantised._with_unopened(int8(0.5)).faults == ()


def test_a_runtime_that_is_not_installed_is_refused_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = parse_experiment(SPACE.replace("onnxruntime-int8", "openvino-int8"), "small.yaml")
    check_judging(experiment)
    find = confirming.check_installed.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nncf" else find(name))
    with pytest.raises(ResourceError, match=r"search.confirm.as: openvino-int8 needs nncf: pip install 'cvt-nas\[open"):
        search(experiment, out=tmp_path / "run", cpus=1)
    assert not (tmp_path / "run").exists()


# --- through Ray


@pytest.mark.usefixtures("two_cpus")
def test_a_search_that_is_stopped_while_it_judges_goes_on_and_judges_nothing_twice(
    small_space: Experiment, tmp_path: Path
) -> None:
    stop, epochs = threading.Event(), Counter[tuple[int, int]]()

    def until_a_further_training_is_over(event: Any) -> None:
        if isinstance(event, EpochDone):
            epochs[event.number, event.epoch] += 1
            if event.number > 1_000_000 and event.epoch == 2:
                stop.set()

    watch = Watch(until_a_further_training_is_over)
    run = search(small_space, out=tmp_path / "run", cpus=1, gpus=0, stop=stop, progress=watch)
    assert run.confirmations.missing()
    assert run.int8.by_arch() == {}
    run = search(
        small_space, out=run.path, cpus=1, gpus=0, resume=True, progress=Watch(until_a_further_training_is_over)
    )
    plan, ended = run.confirmations.plan(), run.confirmations.results()
    assert plan is not None
    assert sorted(plan.numbers) == [result.number for result in ended]
    assert len((run.path / "confirm.jsonl").read_text().splitlines()) == len(plan.numbers)
    assert {epochs[number, 1] for number in plan.numbers} == {1}, "what was judged goes on from its last epoch"
    accuracies = [result.int8.accuracy or 0.0 for result in ended if result.int8 is not None]
    assert len(accuracies) == 2
    assert [member.accuracy for member in run.front().members] == [pytest.approx(statistics.fmean(accuracies))]
    of_race = [trial for trial in run.results() if trial.number in plan.members]
    assert set(run.int8.by_arch()) == {trial.arch_id for trial in of_race}
    for trial_ in of_race:
        figures = run.int8.by_arch()[trial_.arch_id]["onnxruntime-int8"]
        assert figures.judgement.score == pytest.approx(trial_.accuracy), "of the weights of the race"
        assert figures.ms is not None
    records = [(run.path / name).read_bytes() for name in ("confirm.jsonl", "int8.jsonl")]
    search(small_space, out=run.path, cpus=1, gpus=0, resume=True)
    assert [(run.path / name).read_bytes() for name in ("confirm.jsonl", "int8.jsonl")] == records
    assert confirm(run.results(), ended, "onnxruntime-int8")
