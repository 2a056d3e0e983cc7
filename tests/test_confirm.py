"""Further trainings of what won the race: the front by means, its uncertainty, and how a confirmation is resumed."""

import csv
import dataclasses
import io
import itertools
import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from rich.console import Console

from conftest import Watch, small_digits
from cvt_nas import load_model, search
from cvt_nas.cli import main
from cvt_nas.config import ConfirmConfig, Experiment, parse_experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.export import export
from cvt_nas.follow.terminal import ConsoleProgress
from cvt_nas.launch.devices import training_reports
from cvt_nas.pipeline.confirm import further_training, plan_of
from cvt_nas.propose.samplers import derive_seed
from cvt_nas.report import confirmation_lines, front_figure, front_frame, front_table, summary, write_report
from cvt_nas.results import (
    ConfirmPlan,
    ParetoFront,
    Status,
    TrialResult,
    confirm,
    further_number,
    is_non_dominated,
    losses_of,
    round_and_trial,
    with_memberships,
)
from cvt_nas.results.events import ConfirmationStarted, EpochDone, TrialStarted
from cvt_nas.run import RunFolder
from test_results import ALL, MANIFEST, trial


def again(first: TrialResult, round_: int, accuracy: float | None, status: Status = "complete") -> TrialResult:
    """A further training of the architecture of `first`."""
    return dataclasses.replace(
        first, number=further_number(first.number, round_), accuracy=accuracy, status=status,
        curve=() if accuracy is None else (*first.curve[:-1], accuracy),
    )  # fmt: skip


def seeds_of(first: TrialResult, *accuracies: float) -> list[TrialResult]:
    return [again(first, index, accuracy) for index, accuracy in enumerate(accuracies, start=1)]


def memberships(confirmed: Sequence[TrialResult]) -> dict[str, float | None]:
    return {r.arch_id: r.confirmation.membership for r in with_memberships(confirmed, ALL) if r.confirmation}


# few values, so that ties of means and of costs are drawn too
accuracies = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])
candidates = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.lists(accuracies, min_size=1, max_size=4)),
    min_size=1, max_size=6,
)  # fmt: skip


def made(drawn: list[tuple[int, int, list[float]]]) -> tuple[list[TrialResult], list[TrialResult]]:
    """Trials of a race, each of which looks perfect there, and their further trainings."""
    trials = [trial(number, 1.0, params, flops) for number, (params, flops, _) in enumerate(drawn)]
    further = [seeds_of(first, *values) for first, (_, _, values) in zip(trials, drawn, strict=True)]
    return trials, list(itertools.chain.from_iterable(further))


# --- means, and the front by them


@given(candidates)
def test_an_architecture_is_on_the_confirmed_front_unless_another_s_mean_dominates_its_own(drawn: Any) -> None:
    trials, further = made(drawn)
    points = [(round(sum(values) / len(values), 9), params, flops) for params, flops, values in drawn]

    def dominates(a: tuple[float, int, int], b: tuple[float, int, int]) -> bool:
        return a != b and a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2]

    assert {member.number for member in ParetoFront.of(confirm(trials, further), ALL).members} == {
        number for number, point in enumerate(points) if not any(dominates(other, point) for other in points)
    }


def test_the_mean_is_of_the_further_trainings_and_the_race_s_own_accuracy_stays_beside_it() -> None:
    first = trial(0, 0.95)
    (found,) = confirm([first, trial(1, 0.99)], seeds_of(first, 0.90, 0.91, 0.92))
    assert found.accuracy == pytest.approx(0.91)
    assert found.own_accuracy == 0.95
    assert found.confirmation is not None
    assert found.confirmation.sd == pytest.approx(0.01)
    assert found.confirmation.accuracies == (0.90, 0.91, 0.92)


@pytest.mark.parametrize("status", ["diverged", "failed", "oom"])
def test_a_further_training_that_is_lost_is_counted_and_not_averaged(status: Status) -> None:
    first, second = trial(0, 0.95), trial(1, 0.9)
    lost = again(first, 3, 0.11, status)  # what a divergence leaves is the accuracy of the epoch before it
    (found,) = confirm([first, second], [*seeds_of(first, 0.90, 0.92), lost, again(second, 1, None, status)])
    assert found.number == 0
    assert found.accuracy == pytest.approx(0.91)
    assert found.confirmation is not None
    assert found.confirmation.num_lost == 1


def test_one_seed_gives_a_mean_and_neither_a_spread_nor_a_membership() -> None:
    first, second = trial(0, 0.95), trial(1, 0.9)
    found = with_memberships(confirm([first, second], [*seeds_of(first, 0.9), *seeds_of(second, 0.7, 0.8)]), ALL)
    alone, pair = (result.confirmation for result in found)
    assert alone is not None
    assert (alone.mean, alone.sd, alone.membership) == (0.9, None, None)
    assert pair is not None
    assert pair.membership == 0  # at equal cost, and never as good as the first as it stands


def selection_errors(seed: int, *, num_seeds: int = 3, sd: float = 0.004) -> dict[str, list[float]]:
    """What estimates of a front member's accuracy miss the truth by, in one made-up race of 40 architectures."""
    rng = np.random.default_rng(seed)
    flops = np.sort(rng.integers(1_000, 100_000, size=40))
    truth = 0.9 - 0.1 / np.log10(flops) + rng.normal(0, 0.01, size=40)
    race = [
        dataclasses.replace(base, accuracy=value, curve=(value,), cost=dataclasses.replace(base.cost, flops=int(cost)))
        for base, value, cost in zip(_BASES, rng.normal(truth, sd), flops, strict=True)
    ]
    chosen = ParetoFront.of(race, ("accuracy", "flops")).members
    further = {r.number: rng.normal(truth[r.number], sd, size=num_seeds) for r in chosen}
    confirmed = confirm(race, [f for r in chosen for f in seeds_of(r, *further[r.number])])
    members = ParetoFront.of(confirmed, ("accuracy", "flops")).members
    own = {r.number: r.metric("accuracy") for r in chosen}
    return {
        "race": [own[r.number] - truth[r.number] for r in chosen],
        "mean with the race's": [
            (own[r.number] + further[r.number].sum()) / (num_seeds + 1) - truth[r.number] for r in chosen
        ],
        "mean": [r.metric("accuracy") - truth[r.number] for r in confirmed],
        "mean, of the confirmed front": [r.metric("accuracy") - truth[r.number] for r in members],
    }


_BASES = [trial(number, 0.5) for number in range(40)]


def test_further_seeds_alone_estimate_the_winners_of_a_race_without_bias_and_their_own_accuracy_does_not() -> None:
    sd, errors = 0.004, [selection_errors(seed) for seed in range(300)]
    bias, error = {}, {}
    for name in errors[0]:
        values = np.concatenate([found[name] for found in errors]) / sd
        bias[name], error[name] = values.mean(), values.std() / np.sqrt(len(values))
    assert abs(bias["mean"]) < 4 * error["mean"]
    assert bias["race"] > 0.3
    assert bias["mean with the race's"] == pytest.approx(bias["race"] / 4, abs=0.05)  # one part in four of it is left
    # the second selection, by means: optimistic too, by less than a quarter of the first
    assert 0 < bias["mean, of the confirmed front"] < bias["race"] / 4


# --- membership


@settings(max_examples=40)
@given(candidates, st.randoms())
def test_memberships_are_shares_and_no_order_changes_them(drawn: Any, rng: random.Random) -> None:
    trials, further = made(drawn)
    found = memberships(confirm(trials, further))
    assert all(share is None or 0 <= share <= 1 for share in found.values())
    rng.shuffle(trials)
    rng.shuffle(further)
    assert memberships(confirm(trials, further)) == found


@settings(max_examples=40)
@given(candidates, st.lists(st.sampled_from([0.9, 0.92, 0.95]), min_size=2, max_size=4))
def test_what_is_as_good_in_every_draw_and_costs_no_more_is_a_member_of_every_resample(drawn: Any, best: Any) -> None:
    trials, further = made([(1, 1, best), *drawn])
    assert memberships(confirm(trials, further))[trials[0].arch_id] == 1


@settings(max_examples=40)
@given(candidates, st.lists(accuracies, min_size=2, max_size=4))
def test_what_is_worse_in_every_draw_and_costs_more_is_a_member_of_no_resample(drawn: Any, best: Any) -> None:
    trials, further = made([(9, 9, [0.05, 0.02]), *drawn])
    assert memberships(confirm(trials, further))[trials[0].arch_id] == 0


def test_a_membership_is_the_share_of_all_resamples_that_there_are() -> None:
    seeds = ((0.90, 0.93), (0.91, 0.92), (0.88, 0.95))
    trials, further = made([(5, 5, list(values)) for values in seeds])
    all_means = [
        np.mean(draw, axis=1) for draw in itertools.product(*(itertools.product(values, repeat=2) for values in seeds))
    ]
    exact = np.mean([is_non_dominated(-means.round(12)[:, None]) for means in all_means], axis=0)
    found = memberships(confirm(trials, further))
    for result, share in zip(trials, exact, strict=True):
        assert found[result.arch_id] == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 1_000))


# --- what is trained again


@given(st.integers(0, 999_999), st.integers(1, 50))
def test_the_number_of_a_further_training_tells_its_trial_and_its_round(number: int, round_: int) -> None:
    assert round_and_trial(further_number(number, round_)) == (round_, number)
    assert round_and_trial(number) == (0, number)


def test_a_plan_goes_round_by_round() -> None:
    plan = ConfirmPlan(top="front", seeds=2, members=(7, 3))
    assert plan.numbers == [1_000_007, 1_000_003, 2_000_007, 2_000_003]


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.5, 0.7, 0.9]), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=12
    ),
    st.integers(1, 15),
)
def test_the_first_so_many_are_taken_front_by_front(drawn: Any, top: int) -> None:
    trials = [trial(number, *point) for number, point in enumerate(drawn)]
    trials.append(trial(len(trials), 1.0, 1, 1, status="stopped"))
    chosen = set(plan_of(trials, ALL, ConfirmConfig(top=top)).members)
    assert len(chosen) == min(top, len(drawn))
    left = trials[:-1]
    while chosen:
        front = {left[index].number for index in np.flatnonzero(is_non_dominated(losses_of(left, ALL)))}
        assert front <= chosen or chosen <= front
        chosen -= front
        left = [result for result in left if result.number not in front]


def test_the_front_is_planned_with_the_most_accurate_first() -> None:
    trials = [trial(0, 0.8, 1, 1), trial(1, 0.7, 2, 2), trial(2, 0.9, 3, 3)]
    assert plan_of(trials, ALL, ConfirmConfig()).members == (2, 0)
    assert plan_of([trial(0, 0.5, status="stopped")], ALL, ConfirmConfig()).members == ()


def test_every_further_training_has_a_seed_of_its_own_that_depends_on_nothing_else(small: Experiment) -> None:
    rng = random.Random(0)
    trials = {
        number: dataclasses.replace(trial(number, 0.9), arch=small.space.decode(small.space.sample(rng)))
        for number in range(20)
    }

    def seeds(numbers: Sequence[int]) -> dict[int, int]:
        found = {}
        for number in numbers:
            again = trials[round_and_trial(number)[1]]
            proposal = further_training(again, number, small.space, seed=0)
            assert small.space.decode(proposal.genome) == again.arch
            found[proposal.number] = proposal.seed
        return found

    everything = seeds(ConfirmPlan(top="front", seeds=3, members=tuple(trials)).numbers)
    in_the_race = {derive_seed(0, number, "training") for number in trials}
    assert len(set(everything.values()) | in_the_race) == 60 + 20
    assert seeds([3_000_004, 1_000_019]) == {number: everything[number] for number in (3_000_004, 1_000_019)}


# --- the run folder, and what is shown of it


def raced(path: Path) -> RunFolder:
    """Three members of a race's front, and a trial that the race found just below them."""
    run = RunFolder.create(path, MANIFEST)
    for result in (trial(0, 0.95, 90, 90), trial(1, 0.90, 50, 50), trial(2, 0.80, 10, 10), trial(3, 0.79, 20, 20)):
        run.append(result)
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return raced(tmp_path / "run")


def confirm_run(run: RunFolder, *, members: tuple[int, ...] = (0, 1, 2), rounds: int = 2) -> None:
    """The most accurate trial was lucky: trained again, it is no better than the second. One training is lost."""
    again_in = {0: (0.90, 0.88), 1: (0.91, 0.89), 2: (0.80, None)}
    run.confirmations.write_plan(ConfirmPlan(top="front", seeds=2, members=(0, 1, 2)))
    for round_ in range(1, rounds + 1):
        for number in members:
            accuracy = again_in[number][round_ - 1]
            status: Status = "diverged" if accuracy is None else "complete"
            run.confirmations.append(again(run.results()[number], round_, accuracy, status))


def test_the_front_of_a_confirmed_run_is_by_means_and_of_confirmed_architectures_alone(run: RunFolder) -> None:
    assert [member.number for member in run.front().members] == [0, 1, 2]
    confirm_run(run)
    front = run.front().members
    assert [(member.number, member.accuracy) for member in front] == [(1, 0.90), (2, 0.80)]
    assert run.pick("best").number == 1
    assert [(result.number, result.own_accuracy) for result in run.confirmed()] == [(0, 0.95), (1, 0.90), (2, 0.80)]
    assert run.find(run.results()[0].arch_id).accuracy == pytest.approx(0.89)
    assert run.results()[0].accuracy == 0.95, "the record stays as it was"
    assert run.confirmations.missing() == []


def test_the_front_stays_the_race_s_until_each_architecture_of_the_plan_was_trained_again(run: RunFolder) -> None:
    before = run.front()
    confirm_run(run, members=(0, 1), rounds=1)
    assert run.front() == before
    assert run.confirmations.missing() == [1_000_002, 2_000_000, 2_000_001, 2_000_002]
    run.confirmations.append(again(run.results()[2], 1, 0.8))
    assert [member.accuracy for member in run.front().members] == [0.91, 0.80]
    assert run.confirmations.missing() == [2_000_000, 2_000_001, 2_000_002]


def test_a_confirmation_of_which_nothing_is_left_leaves_the_race_s_front(run: RunFolder) -> None:
    before = run.front()
    run.confirmations.write_plan(ConfirmPlan(top="front", seeds=1, members=(0, 1, 2)))
    for result in run.results()[:3]:
        run.confirmations.append(again(result, 1, None, "failed"))
    assert run.front() == before
    assert confirmation_lines(run) == [
        "not confirmed: 3 of 3 further trainings have ended, 3 of them without an accuracy; accuracy is of the race's "
        "one training, which was selected for being high"
    ]


OLD_COLUMNS = "arch_id accuracy params flops test_accuracy number epochs seconds seed arch".split()
NEW_COLUMNS = ["accuracy_sd", "seeds", "seeds_lost", "membership"]


def test_a_run_without_confirmations_looks_as_it_always_did(run: RunFolder) -> None:
    assert list(front_frame(run).columns) == OLD_COLUMNS
    assert set(summary(run)) == {"run", "metric", "trials", "statuses", "front", "hypervolume", "rungs"}
    assert set(summary(run)["front"][0]) == {"arch_id", "number", "accuracy", "test_accuracy", "params", "flops"}  # type: ignore[index]
    assert [column.header for column in front_table(run).columns] == ["arch", "accuracy", "test", "params", "FLOPs", ""]
    assert [trace.name for trace in traces(run)] == ["complete, 3 epochs", "Pareto front", "best, knee"]
    assert all(trace.error_y.array is None for trace in traces(run))
    assert confirmation_lines(run) == []


def traces(run: RunFolder) -> Sequence[Any]:
    return list(front_figure(run, "flops").data)


def test_the_table_of_a_confirmed_front_has_its_spread_after_the_old_columns(run: RunFolder) -> None:
    confirm_run(run)
    write_report(run)
    with (run.path / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*OLD_COLUMNS, *NEW_COLUMNS]
    assert [float(row["accuracy"]) for row in rows] == [0.90, 0.80]
    assert float(rows[0]["accuracy_sd"]) == pytest.approx(0.02 / np.sqrt(2))
    assert [(row["seeds"], row["seeds_lost"]) for row in rows] == [("2", "0"), ("1", "1")]
    assert 0.5 < float(rows[0]["membership"]) <= 1
    assert (rows[1]["accuracy_sd"], rows[1]["membership"]) == ("", "")


def test_the_summary_of_a_confirmed_front_holds_what_is_off_it_too(run: RunFolder) -> None:
    confirm_run(run)
    result = json.loads(json.dumps(summary(run)))
    assert set(result["front"][0]) >= set(NEW_COLUMNS)
    assert (result["confirmation"]["planned"], result["confirmation"]["ended"]) == (6, 6)
    off = next(c for c in result["confirmation"]["confirmed"] if c["arch_id"] == run.results()[0].arch_id)
    assert (off["accuracy"], off["own_accuracy"]) == (pytest.approx(0.89), 0.95)
    assert 0 < off["membership"] < 1, "it may be on the front all the same"


def test_the_table_for_a_terminal_shows_means_with_their_spread(run: RunFolder) -> None:
    confirm_run(run)
    table = front_table(run)
    assert [column.header for column in table.columns] == [
        "arch", "accuracy", "front", "test", "params", "FLOPs", "",
    ]  # fmt: skip
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["0.9000 ± 0.0141", "0.8000"]
    assert cells[2] == ["100%", "-"]
    assert cells[-1] == ["best, knee", "1 lost"]
    text = Console(width=80, file=io.StringIO(), record=True)
    text.print(table)
    assert "…" not in text.export_text(), "it fits 80 columns"
    assert confirmation_lines(run) == [
        "confirmed by 2 further seeds each: 6 of 6 further trainings have ended, 1 of them without an accuracy; "
        "accuracy is their mean ± standard deviation, without the race's own; 'front' is the share of bootstrap "
        "resamples with the architecture on it; 'test' is of the race's weights, which are what is exported"
    ]


def test_a_plot_of_a_confirmed_front_has_error_bars_where_there_is_a_spread(run: RunFolder) -> None:
    confirm_run(run)
    by_name = {trace.name: trace for trace in traces(run)}
    front = by_name["Pareto front of further trainings, mean ± standard deviation"]
    assert list(front.y) == [0.80, 0.90]
    assert [None if sd is None else round(sd, 4) for sd in front.error_y.array] == [None, 0.0141]
    assert list(by_name["further trainings, off the front"].y) == [pytest.approx(0.89)]
    assert sorted(by_name["complete, 3 epochs, one training"].y) == [0.79, 0.80, 0.90, 0.95]
    assert "further trainings: 1, 1 lost; 0.8000 in the race" in front.text[0]


# --- on the way


@pytest.mark.parametrize("keep", [True, False])
def test_a_training_keeps_its_weights_only_if_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Experiment, keep: bool
) -> None:
    kept, setup = list[bool](), TrainingSetup.of(small, run=RunFolder(tmp_path), data=None)
    monkeypatch.setattr(
        "cvt_nas.launch.devices.progress_reports", lambda *_, keep_model, **__: kept.append(keep_model) or ()
    )
    arch = trial(0, 0.5).arch
    training_reports(arch, setup, number=0, seed=0, num_devices=1, cpus_per_device=1, use_gpus=False, keep_model=keep)
    assert kept == [keep]


def test_the_progress_line_counts_further_trainings_apart_from_the_race_s_trials(run: RunFolder) -> None:
    text = io.StringIO()
    follow = ConsoleProgress(
        Console(file=text, width=200), results=run.results(), metrics=ALL, box=run.box, num_trials=4, num_epochs=3,
        deadline=None,
    )  # fmt: skip
    first = run.results()[0]
    with follow:
        follow(ConfirmationStarted(num_planned=6, ended=(again(first, 1, 0.9),)))
        follow(TrialStarted(number=2_000_000, arch=first.arch, seed=1))
        follow(again(first, 2, None, "diverged"))
        follow(TrialStarted(number=2_000_001, arch=first.arch, seed=1))
    assert "trials 4, further trainings of the best 2/6, running 1, lost 1" in text.getvalue()
    follow(EpochDone(number=2_000_001, epoch=1, accuracy=0.5))
    panel = Console(file=io.StringIO(), width=200, record=True)
    panel.print(follow._panel())
    assert "trial 1 again, 2" in panel.export_text()


def test_a_search_that_is_stopped_while_it_confirms_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space, out = tmp_path / "small.yaml", tmp_path / "run"
    space.write_text(small_digits(**{"search:": "search: {trials: 4, confirm: {seeds: 2}}"}))

    def stopped(experiment: Experiment, *, out: Path, stop: threading.Event, **more: Any) -> RunFolder:
        run = raced(out)
        confirm_run(run, members=(0, 1), rounds=1)
        stop.set()
        return run

    monkeypatch.setattr("cvt_nas.pipeline.search", stopped)
    assert main(["search", "--space", str(space), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == (
        f"4 trials and 2 of 6 further trainings are done and kept. Go on with: cvt-nas search --space {space} --out "
        f"{out} --resume"
    )
    assert "not confirmed: 2 of 6 further trainings have ended; accuracy is of the race's one training" in captured.out


# --- through Ray


def model_files(run: RunFolder) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted((run.path / "models").rglob("*"))
        if path.is_file()
    }


def optuna_trials(run: RunFolder) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(run.journal_path)))
    return optuna.load_study(study_name="cvt-nas", storage=storage).trials


@pytest.mark.slow  # 90 seconds
@pytest.mark.usefixtures("two_cpus")
def test_a_confirmation_is_added_to_a_finished_run_is_interrupted_and_goes_on(
    tmp_path: Path, finished_run: RunFolder
) -> None:
    run = RunFolder.open(Path(shutil.copytree(finished_run.path, tmp_path / "run")))
    line = "search: {trials: 8, sampler: random, grace_period: 1, reduction_factor: 2, seed: 0, "
    line += "confirm: {top: 2, seeds: 2}}"
    confirming = parse_experiment(small_digits(**{"search:": line}), "small.yaml")
    record, files, trials = (run.path / "trials.jsonl").read_bytes(), model_files(run), optuna_trials(run)
    tested = run.test_accuracies()
    epochs: Counter[tuple[int, int]] = Counter()
    stop, cut = threading.Event(), list[int]()

    def until_the_second_round(event: Any) -> None:
        if isinstance(event, EpochDone):
            epochs[event.number, event.epoch] += 1
            if event.number >= 2_000_000 and event.epoch == 1:
                cut.append(event.number)
                stop.set()

    run = search(confirming, out=run.path, cpus=2, resume=True, stop=stop, progress=Watch(until_the_second_round))
    kept = run.confirmations.results()
    assert kept
    assert run.confirmations.missing()
    assert run.test_accuracies() == tested, "the test split is for a front that is confirmed in full"

    def count(event: Any) -> None:
        if isinstance(event, EpochDone):
            epochs[event.number, event.epoch] += 1

    calm = threading.Event()
    run = search(confirming, out=run.path, cpus=2, resume=True, stop=calm, progress=Watch(count))
    assert not calm.is_set(), "a search that ends by itself stops nobody"
    further, plan = run.confirmations.results(), run.confirmations.plan()
    assert plan is not None
    assert sorted(plan.numbers) == [result.number for result in further]
    assert set(kept) <= set(further), "what had ended is kept"
    assert {epochs[number, 1] for number in cut} == {1}, "it goes on from its checkpoint"
    assert [(result.status, result.epochs) for result in further] == [("complete", 3)] * 4
    assert len({result.seed for result in (*further, *run.results())}) == 4 + 8
    assert len({result.curve for result in further}) == 4

    assert (run.path / "trials.jsonl").read_bytes() == record
    assert optuna_trials(run) == trials, "Optuna is not told"
    assert model_files(run) == files, "weights stay those of the race"
    assert not list((run.path / "checkpoints").iterdir())
    front = run.front()
    assert set(run.test_accuracies()) == {*tested, *(member.arch_id for member in front.members)}
    assert len((run.path / "test.jsonl").read_text().splitlines()) == len(run.test_accuracies())
    assert [len(m.confirmation.accuracies) for m in front.members if m.confirmation] == [2] * len(front.members)

    best = export(run, "best", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert best.confirmation is not None
    assert (
        f"mean over 2 further trainings | {best.accuracy:.4f}, standard deviation {best.confirmation.sd:.4f} |" in card
    )
    assert f"for which they were selected | {best.own_accuracy:.4f} |" in card
    assert load_model(tmp_path / "model").arch == best.arch
