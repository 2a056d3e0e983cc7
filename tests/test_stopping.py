"""What the report says of stopping: what it saved and cost, and where the next search should stop first."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conftest import small_digits
from cvt_nas.config import parse_experiment
from cvt_nas.report import rank_lines
from cvt_nas.report.figures import curves_figure
from cvt_nas.report.stopping import (
    expected_of_stopped,
    first_rung_to_trust,
    hindsight_of,
    stopping_lines,
    would_be_rungs,
)
from cvt_nas.results import TrialResult
from cvt_nas.run import RunFolder
from test_results import MANIFEST, trial

NUM_EPOCHS = 4
Curve = tuple[float, ...]


def run_of(
    path: Path,
    curve_of: Callable[[float], Curve],
    *,
    num_complete: int,
    num_stopped: int = 0,
    settings: str = "seed: 0",
) -> RunFolder:
    """A run whose curves follow from a network's FLOPs, as a share of the space's; the last ones were stopped after
    their first epoch."""
    text = small_digits(**{"  epochs:": f"  epochs: {NUM_EPOCHS}", "search:": f"search: {{trials: 20, {settings}}}"})
    experiment = parse_experiment(text, "small.yaml")
    space, rng = experiment.space, random.Random(0)
    run = RunFolder.create(path, experiment.manifest(seed=0, num_trials=20))
    for number in range(num_complete + num_stopped):
        genome = space.sample_feasible(rng)
        assert genome is not None
        cost, is_complete = space.cost(genome), number < num_complete
        curve = curve_of(cost.flops / space.cost_range[1].flops)[: NUM_EPOCHS if is_complete else 1]
        run.append(
            TrialResult(
                number=number, arch=space.decode(genome), status="complete" if is_complete else "stopped",
                epochs=len(curve), accuracy=curve[-1], cost=cost, curve=curve, seconds=1.0, train_seconds=1.0, seed=0,
            )
        )  # fmt: skip
    return run


def steady(size: float) -> Curve:
    return tuple(0.5 + 0.3 * size + 0.02 * epoch for epoch in range(NUM_EPOCHS))


def crossing(size: float) -> Curve:
    """The larger, the better in the end, and the worse until then."""
    return (*(0.5 - 0.3 * size + 0.01 * epoch for epoch in range(NUM_EPOCHS - 1)), 0.5 + 0.3 * size)


def run_of_equal_costs(path: Path, ends: Sequence[float], early: Sequence[float]) -> RunFolder:
    run = RunFolder.create(path, MANIFEST)  # of three epochs
    for number, (end, begin) in enumerate(zip(ends, early, strict=True)):
        run.append(dataclasses.replace(trial(number, end), curve=(begin, end, end)))
    return run


def test_what_a_rung_loses_is_what_the_networks_that_it_keeps_do_not_have(tmp_path: Path) -> None:
    ends = [number / 10 for number in range(1, 10)]
    in_order = would_be_rungs(run_of_equal_costs(tmp_path / "order", ends, ends), reduction_factor=3)
    reversed_ = would_be_rungs(run_of_equal_costs(tmp_path / "reversed", ends, ends[::-1]), reduction_factor=3)
    assert [rung.lost for rung in in_order] == [0, 0]
    assert [rung.lost for rung in reversed_] == pytest.approx([1 - 0.3 / 0.9, 0])
    for rungs in (in_order, reversed_):
        assert [rung.epoch for rung in rungs] == [1, 2]
        assert [rung.saved for rung in rungs] == pytest.approx([2 / 3 * 2 / 3, 2 / 3 * 1 / 3])
    assert first_rung_to_trust(in_order) == in_order[0]
    assert first_rung_to_trust(reversed_) == reversed_[1]


def test_each_rung_of_a_run_is_told_with_what_it_would_have_lost_and_saved(tmp_path: Path) -> None:
    for settings, told in (("grace_period: 2", {1, 2}), ("scheduler: none", {1})):
        run = run_of(tmp_path / settings[-4:], steady, num_complete=12, settings=settings)
        rungs = would_be_rungs(run, reduction_factor=3)
        line = stopping_lines(run, None)[-1]
        for rung in rungs:
            assert (f"at epoch {rung.epoch} " in line) == (rung.epoch in told)
        assert line.startswith(
            f"a rung at epoch 1 would have lost {rungs[0].lost:.1%} of the hypervolume of the complete trials and "
            f"saved {rungs[0].saved:.0%} of their epochs"
        )
        assert (f", one at epoch 2 {rungs[1].lost:.1%} and {rungs[1].saved:.0%}" in line) == (2 in told)


def test_rungs_of_a_scheduler_that_ranks_by_accuracy_alone_are_judged_by_that(tmp_path: Path) -> None:
    """It keeps the most accurate third, which are large here, and loses the cheap end of the front."""
    lines = {
        scheduler: stopping_lines(
            run_of(tmp_path / scheduler, steady, num_complete=12, settings=f"scheduler: {scheduler}"), None
        )[-1]
        for scheduler in ("pareto-asha", "asha")
    }
    lost = {name: float(line.split("lost ")[1].split("%")[0]) for name, line in lines.items()}
    assert lost["asha"] > lost["pareto-asha"] + 10
    assert lines["pareto-asha"].endswith("next time: search.grace_period: 1")
    assert lines["asha"].endswith("next time: search.scheduler: pareto-asha with search.grace_period: 1")


def test_where_networks_overtake_at_the_end_no_rung_is_recommended(tmp_path: Path) -> None:
    run = run_of(tmp_path / "late", crossing, num_complete=12)
    assert stopping_lines(run, hindsight_of(run))[-1].endswith(
        "next time: search.scheduler: freeze-thaw, as no rung keeps it"
    )


@pytest.mark.parametrize(
    ("settings", "kept", "lost"),
    [
        (
            "sampler: tpe",
            "search.grace_period: 1",
            "search.scheduler: freeze-thaw with search.sampler: surrogate, as no",
        ),
        (
            "scheduler: none",
            "with search.scheduler: pareto-asha, search.grace_period: 1",
            "search.scheduler: freeze-thaw",
        ),
        (
            "scheduler: freeze-thaw",
            "with search.scheduler: pareto-asha, ",
            "no rung keeps it, and freeze-thaw has none",
        ),
    ],
)
def test_what_is_advised_can_be_followed_and_is_not_what_was_done(
    tmp_path: Path, settings: str, kept: str, lost: str
) -> None:
    for name, curve_of, told in (("steady", steady, kept), ("crossing", crossing, lost)):
        run = run_of(tmp_path / name, curve_of, num_complete=12, settings=settings)
        assert told in stopping_lines(run, None)[-1]


def test_ranks_are_not_blamed_for_what_the_last_ones_lose_as_well(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", steady, num_complete=12)  # the front has all 12, of which a rung keeps 4
    first, *_ = rungs = would_be_rungs(run, reduction_factor=3)
    assert first.lost == pytest.approx(first.least)
    assert first.lost > 0.05
    assert first_rung_to_trust(rungs) == first
    assert stopping_lines(run, None)[-1].endswith(
        f"(with the ranks at the end, {first.least:.1%}: one in 3 is few); next time: search.grace_period: 1"
    )


def test_of_trials_without_hypervolume_no_rung_is_advised(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", lambda size: (0.0,) * NUM_EPOCHS, num_complete=12)
    assert stopping_lines(run, None) == []


def test_a_scheduler_without_rungs_is_neither_warned_of_nor_drawn_with_them(tmp_path: Path) -> None:
    for settings, is_told in (("scheduler: pareto-asha", True), ("scheduler: freeze-thaw", False)):
        run = run_of(tmp_path / settings[-6:], crossing, num_complete=12, settings=settings)
        assert any(line.startswith("warning: ") for line in rank_lines(run)) == is_told
        assert any("stop the wrong trials" in line for line in rank_lines(run))
        assert ("shapes" in curves_figure(run).to_dict()["layout"]) == is_told


def test_of_stopped_trials_it_says_what_they_saved_and_what_the_best_of_them_promises(tmp_path: Path) -> None:
    def curve_of(size: float) -> Curve:
        return (*steady(size)[:1], *(accuracy + 0.1 for accuracy in steady(size)[1:]))

    run = run_of(tmp_path / "run", curve_of, num_complete=12, num_stopped=4)
    expected = expected_of_stopped(hindsight_of(run))
    assert set(expected) == {12, 13, 14, 15}
    assert all(gain >= 0 for gain in expected.values())
    best = max(expected, key=lambda number: expected[number])
    assert stopping_lines(run, hindsight_of(run))[0] == (
        f"stopped after epoch 1: 4 trials, which saved 12 epochs; the most promising of them, trial {best}, is "
        f"expected to add {expected[best]:.4f} to the hypervolume"
    )


def test_of_a_few_complete_trials_nothing_is_said(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", steady, num_complete=8, num_stopped=4)
    assert hindsight_of(run) is None
    assert stopping_lines(run, None) == []
