"""What the surrogate says of a trial when it proposes it: recorded, kept, and judged."""

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cvt_nas.bench import load_table
from cvt_nas.config import Experiment
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import NUM_INITIAL, Surrogate
from cvt_nas.report.predictions import (
    calibrations,
    predicted_trials,
    prediction_lines,
    predictions_section,
    promising,
)
from cvt_nas.report.random_search import estimate_random_search
from cvt_nas.results import Prediction, TrialResult, hypervolume
from cvt_nas.run import RunFolder
from pages import made_up_run
from test_study import made_up_accuracy, optuna_trials, result_of, study_of, with_sampler


@pytest.mark.usefixtures("fast_disk")
def test_a_proposal_has_what_the_surrogate_said_and_keeps_it_through_a_crash(tmp_path: Path) -> None:
    experiment = with_sampler("surrogate")
    study, run = study_of(experiment, tmp_path / "run", 30)
    last = None
    for number in range(NUM_INITIAL + 2):
        last = study.ask()
        assert last is not None
        assert (last.predicted is None) == (number < NUM_INITIAL)
        if number < NUM_INITIAL + 1:
            study.tell(result_of(experiment, last, made_up_accuracy(last)))
            run.append(
                dataclasses.replace(result_of(experiment, last, made_up_accuracy(last)), predicted=last.predicted)
            )
    assert last is not None
    again, _ = study_of(experiment, tmp_path / "run", 30)  # as if the process had been killed
    resumed = next(iter(again.interrupted()))
    assert resumed.proposal == last
    assert resumed.proposal.predicted is not None
    assert optuna_trials(run)[last.number].user_attrs["predicted"] == resumed.proposal.predicted.to_json()
    assert [result.predicted is not None for result in run.results()] == [
        n >= NUM_INITIAL for n in range(NUM_INITIAL + 1)
    ]


@pytest.mark.usefixtures("fast_disk")
def test_no_other_sampler_predicts_anything(tmp_path: Path) -> None:
    experiment = with_sampler("random")
    study, _ = study_of(experiment, tmp_path / "run", NUM_INITIAL + 2)
    while (proposal := study.ask()) is not None:
        assert proposal.predicted is None
        study.tell(result_of(experiment, proposal, made_up_accuracy(proposal)))


def test_a_prediction_is_of_the_trials_before_it_alone(digits: Experiment) -> None:
    """And its noise is what a repeated training would add: with more noise in what is seen, it is larger."""
    rng, space = random.Random(0), digits.space
    genomes = [genome for _ in range(30) if (genome := space.sample_feasible(rng)) is not None]

    def observed(sd: float) -> list[Observation]:
        noise = np.random.default_rng(0).normal(0, sd, len(genomes))
        accuracies = [1 - 1 / (1 + space.cost(g).flops / 1e6) + float(n) for g, n in zip(genomes, noise, strict=True)]
        return [Observation(genome=g, curve=(a,), status="complete") for g, a in zip(genomes, accuracies, strict=True)]

    quiet, loud = (
        Surrogate(space, costs=["flops"], num_epochs=1, seed=0).predict(observed(sd), genomes[:1])[0]
        for sd in (0.001, 0.03)
    )
    assert quiet.accuracy == pytest.approx(observed(0.001)[0].curve[0], abs=0.02)
    assert quiet.noise_sd < loud.noise_sd
    assert loud.measured_sd() == pytest.approx(math.hypot(loud.sd, loud.noise_sd))


@pytest.fixture(scope="module")
def recorded(digits: Experiment, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return made_up_run(tmp_path_factory.mktemp("recorded") / "run", digits, 30)


def test_a_record_keeps_a_prediction(recorded: RunFolder) -> None:
    result = dataclasses.replace(recorded.results()[0], predicted=Prediction(accuracy=0.5, sd=0.1, noise_sd=0.02))
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    with pytest.raises(ValueError, match="predicted"):
        TrialResult.from_json(result.to_json() | {"predicted": {"accuracy": "high"}})


def test_calibration_counts_what_lies_inside(recorded: RunFolder) -> None:
    """Off by 0, 1, 2 and 3 standard deviations: the intervals end at 0.67, 1.28 and 1.96, or 1.5 times that."""
    complete = [result for result in recorded.results() if result.status == "complete"][:4]
    results = [
        dataclasses.replace(
            result, predicted=Prediction(accuracy=result.metric("accuracy") + 0.01 * off, sd=0.01, noise_sd=0.0)
        )
        for off, result in enumerate(complete)
    ]
    found = calibrations(results)
    assert [(each.level, each.inside, each.number) for each in found] == [(0.5, 1, 4), (0.8, 2, 4), (0.95, 2, 4)]
    assert [each.inside_stretched for each in found] == [2, 2, 3]


def test_of_exact_predictions_the_shares_are_those_of_the_intervals(recorded: RunFolder) -> None:
    rng, complete = np.random.default_rng(0), next(r for r in recorded.results() if r.status == "complete")
    results = [
        dataclasses.replace(
            complete, predicted=Prediction(accuracy=complete.metric("accuracy") + e, sd=0.006, noise_sd=0.008)
        )
        for e in rng.normal(0, 0.01, 4000).tolist()
    ]
    for each in calibrations(results):
        assert each.inside / each.number == pytest.approx(each.level, abs=0.025)


def test_who_was_stopped_is_told_with_what_was_expected_of_him(digits: Experiment, tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", digits, 30)
    best = run.front().best
    assert best is not None
    stopped = [dataclasses.replace(r, cost=best.cost) for r in run.results() if r.status == "stopped"]
    good, *bad = (
        dataclasses.replace(result, predicted=Prediction(accuracy=accuracy, sd=0.01, noise_sd=0.01))
        for result, accuracy in zip(stopped, [0.99] + [0.01] * len(stopped), strict=False)
    )
    assert promising([good, *bad], run.front()) == {good.number}
    assert prediction_lines([good, *bad], run.front(), "accuracy") == [
        f"{len(stopped)} trials it proposed were stopped; as predicted, 1 of them would stand on the present front: "
        f"{good.number}"
    ]


def test_the_page_shows_what_the_record_says_was_expected(digits: Experiment, tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", digits, 30)
    said = [None if r.number < 10 else Prediction(accuracy=0.8, sd=0.01, noise_sd=0.01) for r in run.results()]
    results = [dataclasses.replace(result, predicted=p) for result, p in zip(run.results(), said, strict=True)]
    (run.path / "trials.jsonl").write_text("".join(json.dumps(result.to_json()) + "\n" for result in results))
    run = RunFolder.open(run.path)
    assert [result.number for result in predicted_trials(run)] == list(range(10, 30))
    section = predictions_section(run, predicted_trials(run))
    complete = [result for result in results if result.status == "complete" and result.predicted is not None]
    assert f"of {len(complete)})</td>" in section


def test_a_run_without_predictions_has_no_such_section(recorded: RunFolder) -> None:
    assert predictions_section(recorded, predicted_trials(recorded)) == ""


def test_by_the_surrogate_s_estimate_random_search_finds_about_what_it_finds_on_a_table() -> None:
    """On CvT-Bench, whose accuracies are all known: 60 networks are seen, and 20 trainings are simulated."""
    table = load_table("cvt-bench")
    rng = random.Random(0)
    seen = rng.sample(table.genomes, 60)
    accuracy = {genome: float(table.true_accuracies()[table.rows[genome]]) for genome in table.genomes}
    surrogate = Surrogate(table, costs=["params", "flops"], num_epochs=1, seed=0)
    observations = [Observation(genome=genome, curve=(accuracy[genome],), status="complete") for genome in seen]
    estimate = estimate_random_search(
        surrogate, table, observations, ended=[(1, genome) for genome in seen[:20]], num_epochs=1
    )
    assert estimate is not None

    def true_volume(genomes: Sequence[tuple[int, ...]]) -> float:
        return hypervolume(np.column_stack([[1 - accuracy[g] for g in genomes], surrogate.scaled_costs(genomes)]))

    first = max(seen[:20], key=lambda genome: true_volume([genome]))
    truth = [true_volume([first, *rng.sample(table.genomes, 19)]) for _ in range(200)]
    assert estimate.trainings[-1] == 20
    assert estimate.low[-1] < estimate.median[-1] < estimate.high[-1]
    assert estimate.median[-1] == pytest.approx(float(np.median(truth)), abs=0.005)
    assert estimate.search[-1] == pytest.approx(true_volume(seen[:20]), abs=0.005)
