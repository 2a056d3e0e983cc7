"""How far a run's rungs can be trusted, and what the report says of it."""

import csv
import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import small_digits
from cvt_nas.config import parse_experiment
from cvt_nas.report import front_frame, rank_lines, summary, trials_frame, write_report
from cvt_nas.results import TrialResult, rank_correlations, rung_epochs
from cvt_nas.run import RunFolder
from test_results import MANIFEST, trial

Curve = tuple[float, ...]


def trials(curves: Sequence[Curve], flops: Sequence[int] | None = None) -> list[TrialResult]:
    costs = range(1, len(curves) + 1) if flops is None else flops
    return [
        dataclasses.replace(trial(number, curve[-1], flops=cost), curve=curve, epochs=len(curve))
        for number, (curve, cost) in enumerate(zip(curves, costs, strict=True))
    ]


def run_of(path: Path, results: Sequence[TrialResult], rungs: Sequence[int] | None = (1, 2)) -> RunFolder:
    run = RunFolder.create(path / "run", MANIFEST if rungs is None else {**MANIFEST, "rungs": list(rungs)})
    for result in results:
        run.append(result)
    return run


@given(st.integers(1, 400), st.integers(1, 20), st.integers(2, 5))
def test_rungs_stand_a_factor_apart_and_never_at_the_end(epochs: int, grace: int, factor: int) -> None:
    rungs = rung_epochs(epochs, grace_period=grace, reduction_factor=factor)
    assert all(later == factor * earlier for earlier, later in itertools.pairwise(rungs))
    assert rungs[:1] == ((grace,) if grace < epochs else ())
    assert all(factor * rung <= epochs for rung in rungs[1:]), "what it saves is worth what it costs"
    assert not rungs or factor**2 * rungs[-1] > epochs, "one more would be too late"


@pytest.mark.parametrize(
    ("epochs", "grace", "factor", "rungs"),
    [
        (300, 10, 3, (10, 30, 90)),
        (270, 10, 3, (10, 30, 90)),  # a third of it exactly
        (269, 10, 3, (10, 30)),
        (8, 1, 3, (1,)),
        (18, 2, 3, (2, 6)),
        (300, 150, 3, (150,)),  # asked for
        (300, 300, 3, ()),
    ],
)
def test_no_rung_but_the_first_stands_where_most_of_the_training_is_over(
    epochs: int, grace: int, factor: int, rungs: tuple[int, ...]
) -> None:
    assert rung_epochs(epochs, grace_period=grace, reduction_factor=factor) == rungs


def test_a_run_goes_on_with_the_rungs_of_its_time() -> None:
    text = small_digits(**{"  epochs:": "  epochs: 8", "search:": "search: {grace_period: 1, reduction_factor: 3}"})
    experiment = parse_experiment(text, "rungs.yaml")
    manifest = experiment.manifest(seed=0, num_trials=8)
    assert experiment.rungs_of(manifest) == experiment.rungs == (1,)
    assert experiment.rungs_of({**manifest, "rungs": [1, 2, 4]}) == (1, 2, 4)
    del manifest["rungs"]  # as before rungs were recorded, when every power stood that is below the epochs
    assert experiment.rungs_of(manifest) == (1, 3)


distinct = st.lists(st.integers(0, 10**6), min_size=9, max_size=20, unique=True)


@settings(deadline=None)  # the first call imports scipy.stats
@given(distinct, st.randoms())
def test_tau_is_the_share_of_pairs_in_order_less_that_of_the_others(last: list[int], rng: random.Random) -> None:
    early = rng.sample(range(100), len(last))
    found = rank_correlations(trials([(e / 100, e / 100, f / 10**6) for e, f in zip(early, last, strict=True)]), [1])[0]
    signs = [
        1 if (a[0] - b[0]) * (a[1] - b[1]) > 0 else -1
        for a, b in itertools.combinations(zip(early, last, strict=True), 2)
    ]
    assert found.tau == pytest.approx(sum(signs) / len(signs))
    assert found.num_trials == len(last)


def test_below_nine_complete_trials_nothing_is_said() -> None:
    results = trials([(0.1 + 0.01 * n, 0.5, 0.6 + 0.01 * n) for n in range(9)])
    assert len(rank_correlations(results, [1, 2])) == 2
    stopped = dataclasses.replace(results[0], status="stopped", curve=(0.1,))
    assert rank_correlations([*results[1:], stopped], [1, 2]) == ()


def test_accuracies_that_are_all_equal_are_no_rank() -> None:
    found = rank_correlations(trials([(0.5, 0.6, 0.1 * n) for n in range(9)]), [1])[0]
    assert (found.tau, found.is_random) == (0.0, True)


def test_ranks_that_last_are_reported_without_a_warning(tmp_path: Path) -> None:
    run = run_of(tmp_path, trials([(0.3 + 0.01 * n, 0.5 + 0.01 * n, 0.7 + 0.01 * n) for n in range(10)]))
    assert rank_lines(run) == [
        f"accuracy after epoch {epoch}: its ranks of the 10 complete trials have Kendall's tau 1.00 with those of the "
        f"end (p < 0.001)"
        for epoch in (1, 2)
    ]


def test_a_rung_that_decides_at_random_is_warned_of_with_one_that_does_not(tmp_path: Path) -> None:
    early = [4, 2, 9, 1, 7, 0, 5, 8, 3, 6]
    results = trials(
        [(0.01 * e, 0.5 + 0.01 * n, 0.7 + 0.01 * n) for n, e in enumerate(early)],
        flops=[5, 3, 9, 1, 8, 2, 6, 10, 4, 7],  # as the early ones: what they rank is cost
    )
    lines = rank_lines(run_of(tmp_path, results, rungs=[1]))
    assert lines[1] == (
        "warning: the ranks after epoch 1 cannot be told from random ones; a scheduler that goes by them may stop the "
        "wrong trials. Better: search.grace_period: 2, or search.scheduler: freeze-thaw"
    )
    assert len(lines) == 2


def test_large_networks_that_learn_slower_are_warned_of(tmp_path: Path) -> None:
    # the larger, the better in the end, and the worse at first
    results = trials([(0.5 - 0.01 * n, 0.55 - 0.01 * n, 0.6 + 0.01 * n) for n in range(10)])
    lines = rank_lines(run_of(tmp_path, results, rungs=[1]))
    assert lines[1] == (
        "warning: the ranks after epoch 1 cannot be told from random ones and underrate large networks, which overtake "
        "small ones later (tau 1.00 of FLOPs with ranks gained, p < 0.001); a scheduler that goes by them may stop the "
        "wrong trials. Better: search.scheduler: freeze-thaw"
    )


@pytest.mark.parametrize("seed", range(3))
def test_noise_alone_is_no_crossing_of_curves(seed: int) -> None:
    rng = random.Random(seed)
    warned = 0
    for _ in range(200):
        truth = [rng.gauss(0.7, 0.02) for _ in range(20)]
        curves = [(t + rng.gauss(0, 0.01), t, t + rng.gauss(0, 0.01)) for t in truth]
        warned += rank_correlations(trials(curves, flops=rng.sample(range(10**6), 20)), [1])[0].curves_cross
    assert warned <= 22, "5 % of 200, and four standard deviations"


def test_every_epoch_is_in_the_table_of_ranks_and_rungs_in_the_summary(tmp_path: Path) -> None:
    run = run_of(tmp_path, trials([(0.3 + 0.01 * n, 0.5 + 0.01 * n, 0.7 + 0.01 * n) for n in range(10)]), rungs=[2])
    write_report(run)
    with (run.path / "ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["rung"]) for row in rows] == [("1", "False"), ("2", "True")]
    assert [float(row["tau"]) for row in rows] == pytest.approx([1.0, 1.0])
    assert [found["epoch"] for found in json.loads(json.dumps(summary(run)))["rungs"]] == [2]


def test_a_run_of_an_earlier_version_has_no_lines(tmp_path: Path) -> None:
    results = trials([(0.3 + 0.01 * n, 0.5, 0.7 + 0.01 * n) for n in range(10)])
    assert rank_lines(run_of(tmp_path, results, rungs=None)) == []


@pytest.mark.parametrize("helps", [True, False])
def test_what_trials_inherit_is_a_rung_before_the_first(tmp_path: Path, helps: bool) -> None:
    order = range(10) if helps else [4, 2, 9, 1, 7, 0, 5, 8, 3, 6]
    alone = trials(
        [(0.3 + 0.01 * n, 0.5 + 0.01 * n, 0.7 + 0.01 * n) for n in range(10)], flops=[5, 3, 9, 1, 8, 2, 6, 10, 4, 7]
    )
    results = [
        dataclasses.replace(result, inherited=0.2 + 0.01 * place) for result, place in zip(alone, order, strict=True)
    ]
    run = run_of(tmp_path, results, rungs=[2])
    lines = rank_lines(run)
    assert lines[0].startswith("inherited accuracy: its ranks of the 10 complete trials have Kendall's tau ")
    assert lines[-1].startswith("accuracy after epoch 2: ")
    if helps:
        assert len(lines) == 2
    else:
        assert lines[1:-1] == [
            "warning: the ranks by inherited accuracy cannot be told from random ones; the supernet may have chosen "
            "the wrong candidates: cvt-nas supernet evaluate tells whether it can be trusted"
        ]
    write_report(run)
    with (run.path / "ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["rung"]) for row in rows] == [("0", "True"), ("1", "False"), ("2", "True")]
    assert [found["epoch"] for found in json.loads(json.dumps(summary(run)))["rungs"]] == [0, 2]
    assert trials_frame(run)["inherited"].tolist() == [result.inherited for result in results]
    members = front_frame(run)
    assert members["inherited"].tolist() == [results[number].inherited for number in members["number"]]
