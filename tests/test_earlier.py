"""Searches that learn from earlier runs: what they keep, refuse, and tell of it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from conftest import small_digits
from cvt_nas import search
from cvt_nas.arch import cost_of
from cvt_nas.cli import main
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.errors import CvtNasError, RunFolderError
from cvt_nas.pipeline import open_study
from cvt_nas.propose.beliefs import Trust
from cvt_nas.propose.earlier import (
    Source,
    beliefs_of,
    check_same_sources,
    entries_of,
    keep_sources,
    read_sources,
)
from cvt_nas.report import run_page
from cvt_nas.report.believing import History, beginning_lines, belief_lines, histories_of_beliefs
from cvt_nas.results import TrialResult
from cvt_nas.run import RunFolder
from test_results import MANIFEST
from test_stopping import run_of, steady

NUM_EPOCHS = 3


def space_file(search_settings: str) -> str:
    return small_digits(**{"  epochs:": f"  epochs: {NUM_EPOCHS}", "search:": f"search: {{{search_settings}}}"})


def experiment_of(search_settings: str = "trials: 12, scheduler: none, seed: 0") -> Experiment:
    return parse_experiment(space_file(search_settings), "small.yaml")


def begin(path: Path, experiment: Experiment, sources: list[Source]) -> RunFolder:
    run = RunFolder(path)
    keep_sources(sources, run)
    run.begin({**experiment.manifest(seed=0, num_trials=12), "learn_from": entries_of(sources, experiment)})
    return run


def train(experiment: Experiment, run: RunFolder, number: int, *, sign: float = 1.0) -> list[str]:
    """Asks for so many trials, one after the other, and records what they reach; returns their architectures."""
    study, archs = open_study(experiment, run, num_trials=12, seed=0), []
    for _ in range(number):
        proposal = study.ask()
        assert proposal is not None
        size = proposal.cost.flops / experiment.space.cost_range[1].flops
        curve = tuple(0.5 + sign * (accuracy - 0.5) for accuracy in steady(size)[:NUM_EPOCHS])
        result = TrialResult(
            number=proposal.number, arch=experiment.space.decode(proposal.genome), status="complete",
            epochs=NUM_EPOCHS, accuracy=curve[-1], cost=proposal.cost, curve=curve, seconds=1.0, train_seconds=1.0,
            seed=proposal.seed,
        )  # fmt: skip
        run.append(result)
        study.tell(result)
        archs.append(result.arch_id)
    return archs


def test_a_search_goes_on_by_what_it_keeps_of_an_earlier_run_that_is_gone(tmp_path: Path) -> None:
    earlier, experiment = run_of(tmp_path / "earlier", steady, num_complete=40), experiment_of()
    sources = read_sources([earlier.path], metric="accuracy")
    whole, cut = (begin(tmp_path / name, experiment, sources) for name in ("whole", "cut"))
    shutil.rmtree(earlier.path)
    archs = train(experiment, whole, 10)
    assert train(experiment, cut, 4) + train(experiment, cut, 2) + train(experiment, cut, 4) == archs
    cold = begin(tmp_path / "cold", experiment, [])
    assert train(experiment, cold, 10) != archs


def test_a_run_tells_how_much_it_believed_and_when_it_stopped(tmp_path: Path) -> None:
    earlier, experiment = run_of(tmp_path / "earlier", steady, num_complete=40), experiment_of()
    sources = read_sources([earlier.path], metric="accuracy")
    right, wrong = (begin(tmp_path / name, experiment, sources) for name in ("right", "wrong"))
    train(experiment, right, 11)
    train(experiment, wrong, 11, sign=-1.0)
    (believed,), (not_believed,) = histories_of_beliefs(right), histories_of_beliefs(wrong)
    assert list(believed.steps) == [5, 10, 11]
    assert believed.stopped_after is None
    agreement, other = believed.steps[11].agreement, not_believed.steps[11].agreement
    assert agreement is not None
    assert other is not None
    assert agreement > 0.8 > 0.1 > other
    assert not_believed.stopped_after is not None
    (line,) = belief_lines(histories_of_beliefs(wrong))
    assert line.startswith(f"learned from {earlier.path}: ")
    assert line.endswith(f"it was given up after {not_believed.stopped_after} trials")
    page = run_page(wrong)
    assert line in page
    assert f"{not_believed.steps[10].agreement:.2f}</td>" in page


def test_a_belief_has_stopped_when_it_stays_away() -> None:
    def stopped(*agreements: float) -> int | None:
        steps = zip((5, 10, 20), agreements, strict=True)
        trusts = {number: Trust(weight=0.5, sd=0.1, agreement=agreement) for number, agreement in steps}
        return History(name="x", steps=trusts).stopped_after

    assert [stopped(0.5, 0.4, 0.3), stopped(0.5, 0.0, 0.3), stopped(0.5, 0.05, -0.5)] == [None, None, 10]


def test_a_fixed_stride_is_not_that_of_a_linear_projection_which_has_none(tmp_path: Path) -> None:
    earlier, experiment = run_of(tmp_path / "earlier", steady, num_complete=5), experiment_of()
    stages = [
        dataclasses.replace(stage, projection=("linear", "dw_bn"), kv_stride=(2,), kernel_size=(3,))
        for stage in experiment.space.stages
    ]
    experiment = dataclasses.replace(experiment, space=dataclasses.replace(experiment.space, stages=tuple(stages)))
    run = begin(tmp_path / "run", experiment_of(), read_sources([earlier.path], metric="accuracy"))
    fixed = beliefs_of(experiment, run).fixed
    for stage in range(3):
        assert (fixed[f"stage{stage}.kv_stride"], fixed[f"stage{stage}.kernel_size"]) == (2, 3)


def test_networks_are_compared_by_their_costs_for_the_images_of_this_search(tmp_path: Path) -> None:
    earlier, experiment = run_of(tmp_path / "earlier", steady, num_complete=5), experiment_of()
    larger = dataclasses.replace(experiment, space=dataclasses.replace(experiment.space, image_size=16))
    sources = read_sources([earlier.path], metric="accuracy")
    run = begin(tmp_path / "run", experiment, sources)
    (found,) = beliefs_of(larger, run).runs
    own = [trial.cost.flops for trial in sources[0].trials]
    assert all(cost.flops / flops > 3 for cost, flops in zip(found.costs, own, strict=True))


@pytest.mark.parametrize("case", ["no run", "empty", "few", "twice", "metric"])
def test_what_cannot_be_learned_from_is_refused(case: str, tmp_path: Path) -> None:
    place = tmp_path / "earlier"
    places, message = [place], f"--learn-from {place}: "
    if case == "no run":
        message = f"{place} holds no run"
    elif case == "empty":
        RunFolder.create(place, MANIFEST)
        message += "has no trial with an accuracy"
    elif case == "few":
        run_of(place, steady, num_complete=3, num_stopped=1)
        message += "got 4 trials with an accuracy, must be at least 5"
    elif case == "twice":
        run_of(place, steady, num_complete=5)
        (tmp_path / "link").symlink_to(place)
        places, message = [place, tmp_path / "link"], f"--learn-from {tmp_path / 'link'}: is named twice"
    else:
        RunFolder.create(place, {**MANIFEST, "metric": "macro_f1"})
        message += "maximised macro_f1, and this search maximises accuracy"
    with pytest.raises(RunFolderError, match=message):
        read_sources(places, metric="accuracy")


def edit(path: Path, old: str, new: str) -> None:
    """Replaces the first `old` in a file, as a user would by hand."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of five trials in full, of four epochs, and one that was stopped after one."""
    return run_of(tmp_path_factory.mktemp("sound") / "run", steady, num_complete=5, num_stopped=1)


EPOCHS = "--learn-from {}: epochs in its manifest: got {}, must be a whole number from 1 to 100,000"
LENGTH = "--learn-from {}: trial 0: curve: got 4 epochs of a complete trial, and the manifest has epochs {}; "


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        *(
            ("manifest.json", '"epochs": 4', f'"epochs": {value}', EPOCHS.format("{}", told))
            for value, told in (
                ("0", "0"), ("-1", "-1"), ('"4"', "'4'"), ("4.0", "4.0"), ("true", "True"), ("999999", "999999"),
            )
        ),
        ("manifest.json", '"epochs": 4', '"epochs": 3', LENGTH.format("{}", 3)),
        ("manifest.json", '"epochs": 4', '"epochs": 9', LENGTH.format("{}", 9)),
        ("manifest.json", '"epochs": 4', '"epochs": null', "{}/manifest.json: epochs: "),
        ("manifest.json", '"epochs": 4', '"epochs": NaN', "{}/manifest.json: cannot be read: got NaN"),
        ("manifest.json", '"epochs": 4', '"epoch": 4', "{}/manifest.json: lacks epochs"),
        ("manifest.json", '"epochs": 4', f'"epoch": {"[" * 100_000}', "{}/manifest.json: cannot be read: is nested"),
        ("trials.jsonl", '"number": 1,', '"number": 0,', "--learn-from {}: trial 0: is in its record twice, and would"),
        ("trials.jsonl", '"curve": [0', f'"curve": [1{"0" * 308}', "--learn-from {}: trial 0: curve: got 1e+308, "),
        ("trials.jsonl", '"curve": [0', '"curve": [-0', "--learn-from {}: trial 0: curve: got -0."),
        ("trials.jsonl", '"curve": [0', '"curve": [55', "--learn-from {}: trial 0: curve: got 55."),
        ("trials.jsonl", '"curve": [', '"curve": [0.5, ', "{}/trials.jsonl:1: is no line of such a record: ValueErr"),
        ("trials.jsonl", '"curve": [', '"curve": ["0.5", ', "{}/trials.jsonl:1: is no line of such a record: "),
        ("trials.jsonl", '"curve"', '"latency_ms": 1e308, "curve"', "{}/trials.jsonl:1: is no line of such a record: "),
        ("trials.jsonl", '"curve"', f'"curve": {"[" * 100_000}', "{}/trials.jsonl:1: damaged: is nested too deeply"),
    ],
    ids=lambda value: value[:24],
)  # fmt: skip
def test_a_record_that_cannot_be_true_is_refused_with_its_place(
    sound: RunFolder, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    place = shutil.copytree(sound.path, tmp_path / "run")
    edit(place / file, old, new)
    with pytest.raises(RunFolderError) as refused:
        read_sources([place], metric="accuracy")
    assert str(refused.value).startswith(message.format(place))


def test_a_search_goes_on_with_no_number_of_epochs_that_cannot_be_true(sound: RunFolder, tmp_path: Path) -> None:
    experiment = experiment_of()
    run = begin(tmp_path / "run", experiment, read_sources([sound.path], metric="accuracy"))
    edit(run.path / "manifest.json", '"epochs": 4', '"epochs": 0')
    with pytest.raises(RunFolderError, match=rf"learns from, {sound.path}: epochs in its manifest: got 0"):
        beliefs_of(experiment, run)


def test_costs_of_an_earlier_run_are_counted_again_and_not_believed(sound: RunFolder, tmp_path: Path) -> None:
    place = shutil.copytree(sound.path, tmp_path / "run")
    for line in (place / "trials.jsonl").read_text().splitlines():
        params = json.loads(line)["params"]
        edit(place / "trials.jsonl", f'"params": {params}', '"params": 0')
    (source,) = read_sources([place], metric="accuracy")
    experiment = experiment_of()
    too_small = dataclasses.replace(source.trials[0].arch, image_size=64)
    stages = (dataclasses.replace(too_small.stages[0], patch_kernel=33), *too_small.stages[1:])
    odd = dataclasses.replace(source.trials[0], arch=dataclasses.replace(too_small, stages=stages))
    source = dataclasses.replace(source, trials=(odd, *source.trials[1:]))  # cannot take the images of the search
    (found,) = beliefs_of(experiment, begin(tmp_path / "next", experiment, [source])).runs
    assert found.costs[0] == cost_of(odd.arch)
    assert found.costs[1].params == cost_of(source.trials[1].arch).params > 0


def test_a_search_whose_copy_of_an_earlier_run_was_cut_does_not_go_on(tmp_path: Path) -> None:
    earlier, experiment = run_of(tmp_path / "earlier", steady, num_complete=6), experiment_of()
    run = begin(tmp_path / "run", experiment, read_sources([earlier.path], metric="accuracy"))
    path = run.earlier_path(0)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(RunFolderError, match=r"0\.jsonl: has 4 trials, and the search began with 6"):
        beliefs_of(experiment, run)


def test_an_earlier_run_that_tells_nothing_changes_nothing_and_is_not_said_to_be_given_up(tmp_path: Path) -> None:
    earlier, experiment = run_of(tmp_path / "earlier", lambda size: (0.5,) * 4, num_complete=14), experiment_of()
    warm = begin(tmp_path / "warm", experiment, read_sources([earlier.path], metric="accuracy"))
    cold = begin(tmp_path / "cold", experiment, [])
    assert train(experiment, warm, 10) == train(experiment, cold, 10)
    (line,) = belief_lines(histories_of_beliefs(warm))
    assert line.startswith(f"learned from {earlier.path}: told nothing: ")
    assert line in run_page(warm)


def test_the_first_lines_say_which_earlier_run_has_too_few_trials_to_tell_anything(tmp_path: Path) -> None:
    few, many = (run_of(tmp_path / f"of {number}", steady, num_complete=number) for number in (7, 40))
    sources = read_sources([few.path, many.path], metric="accuracy")
    run = begin(tmp_path / "run", experiment_of(), sources)
    assert beginning_lines(run.manifest) == [
        f"{few.path}: 7 trials do not predict each other yet, so they tell nothing; the search goes on without them",
        f"learns from 40 trials of {many.path}",
    ]
    by_earlier_version = {"learn_from": [source.to_json() for source in sources]}
    assert beginning_lines(by_earlier_version)[0] == f"learns from 7 trials of {few.path}"
    train(experiment_of(), run, 3)
    assert [history.told_nothing for history in histories_of_beliefs(run)] == [True, False]


def test_a_search_that_goes_on_is_told_of_no_other_runs(tmp_path: Path) -> None:
    earlier, experiment = run_of(tmp_path / "earlier", steady, num_complete=5), experiment_of()
    run = begin(tmp_path / "run", experiment, read_sources([earlier.path], metric="accuracy"))
    check_same_sources(run, [])
    (tmp_path / "link").symlink_to(earlier.path)
    for same in (earlier.path, tmp_path / "run" / ".." / "earlier", tmp_path / "link"):
        check_same_sources(run, [same])
    with pytest.raises(RunFolderError, match=rf"began with {earlier.path}; leave it out"):
        check_same_sources(run, [tmp_path / "other"])


def test_a_sampler_that_does_not_learn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CvtNasError, match="--learn-from: the surrogate learns"):
        search(experiment_of("trials: 2, sampler: random"), out=tmp_path / "run", learn_from=[tmp_path])


def test_a_real_search_begins_with_what_an_earlier_one_taught(
    finished_run: RunFolder, two_cpus: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "small.yaml").write_text(text := space_file("trials: 3, scheduler: none, seed: 0"))
    experiment, run = parse_experiment(text, "small.yaml"), RunFolder(tmp_path / "run")
    places = ["--space", str(tmp_path / "small.yaml"), "--out", str(run.path), "--learn-from", str(finished_run.path)]
    assert main(["search", *places, "--cpus", "1", "--gpus", "0"]) == 0
    (told,) = run.manifest["learn_from"]
    assert told["place"] == str(finished_run.path)
    assert told["trials"] == len(beliefs_of(experiment, run).runs[0].curves) > 0
    assert [result.status for result in run.results()] == ["complete"] * 3
    (history,) = histories_of_beliefs(run)
    assert history.steps
    assert history.told_nothing == (told["skill"] == 0)
    assert f"note: {beginning_lines(run.manifest)[0]}\n" in capsys.readouterr().err
