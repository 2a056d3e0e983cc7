"""Which candidate of a supernet is trained next, on made-up accuracies."""

from pathlib import Path

import numpy as np
import pytest

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment
from cvt_nas.pipeline import open_study
from cvt_nas.pipeline.inherit import heirs
from cvt_nas.propose.heirs import MIN_COMPLETE, NUM_BEST
from cvt_nas.propose.study import Study
from cvt_nas.results import Candidate, TrialResult
from cvt_nas.run import RunFolder
from cvt_nas.space import Genome, spread_over_flops
from test_inherit import with_supernet

NUM_CANDIDATES, NUM_TRIALS, NUM_ANCHORS = 40, 16, 1
pytestmark = pytest.mark.usefixtures("fast_disk")


def experiment_of(sampler: str) -> Experiment:
    return with_supernet(sampler=sampler, trials=NUM_TRIALS, candidates=NUM_CANDIDATES)


def own_accuracy(experiment: Experiment, genome: Genome) -> float:
    """Accuracy after a training: higher with more FLOPs, and lower with the last option of the first choice."""
    space = experiment.space
    return 0.6 + 0.05 * np.log10(space.cost(genome).flops) - 0.1 * genome[0] / (len(space.genes[0].options) - 1)


def run_of(experiment: Experiment, path: Path, *, num_given_up: int = 0) -> RunFolder:
    """A run with candidates. Inherited accuracies are higher, not lower, with the last option of the first choice."""
    run = RunFolder.create(path, experiment.manifest(seed=0, num_trials=NUM_TRIALS))
    space = experiment.space
    for number, genome in enumerate(spread_over_flops(space, NUM_CANDIDATES)):
        share = genome[0] / (len(space.genes[0].options) - 1)
        accuracy = own_accuracy(experiment, genome) - 0.1 + 0.2 * share
        run.append_candidate(
            Candidate(
                number=number, arch=space.decode(genome), cost=space.cost(genome), accuracy=accuracy,
                num_images=100 if number >= num_given_up else 50, seconds=1.0,
            )
        )  # fmt: skip
    return run


def study_of(experiment: Experiment, run: RunFolder) -> Study:
    return open_study(experiment, run, num_trials=NUM_TRIALS, seed=0)


def trained(experiment: Experiment, run: RunFolder, *, reopened_at: tuple[int, ...] = ()) -> list[TrialResult]:
    """The trials of a race in which every trial is trained in full."""
    study = study_of(experiment, run)
    while (proposal := study.ask()) is not None:
        if proposal.number in reopened_at:  # as after a crash, with the trial in flight
            study = study_of(experiment, run)
            assert study.ask() == proposal
        accuracy = own_accuracy(experiment, proposal.genome)
        result = TrialResult(
            number=proposal.number, arch=experiment.space.decode(proposal.genome), status="complete", epochs=2,
            accuracy=accuracy, cost=proposal.cost, curve=(accuracy - 0.02, accuracy), seconds=1.0, train_seconds=1.0,
            seed=proposal.seed, predicted=proposal.predicted,
        )  # fmt: skip
        run.append(result)
        study.tell(result)
    return list(run.results())


def archs_by_rank(experiment: Experiment, run: RunFolder) -> list[ArchConfig]:
    anchors = list(experiment.anchor_archs().values())
    ranked = [experiment.space.decode(genome) for genome in heirs(experiment, run.candidates()).values()]
    return list(dict.fromkeys([*anchors, *ranked]))


def test_trainings_correct_which_candidates_are_trained_next(tmp_path: Path) -> None:
    experiment = experiment_of("surrogate")
    run = run_of(experiment, tmp_path / "run")
    order = archs_by_rank(experiment, run)
    trials = trained(experiment, run)
    assert trials[0].arch == order[0] == next(iter(experiment.anchor_archs().values()))
    assert {trial.arch for trial in trials} <= {order[0], *(candidate.arch for candidate in run.candidates())}
    last = len(experiment.space.genes[0].options) - 1

    def share_of_last(archs: list[ArchConfig]) -> float:
        return float(np.mean([experiment.space.encode(arch)[0] == last for arch in archs]))

    chosen = [trial.arch for trial in trials[MIN_COMPLETE:]]
    assert share_of_last(chosen) < share_of_last(order[MIN_COMPLETE:NUM_TRIALS]) - 0.2
    assert [trial.predicted is not None for trial in trials] == [n >= MIN_COMPLETE for n in range(NUM_TRIALS)]


def test_the_cheapest_of_the_best_candidates_are_trained_first(tmp_path: Path) -> None:
    experiment = experiment_of("surrogate")
    run = run_of(experiment, tmp_path / "run")
    best = archs_by_rank(experiment, run)[NUM_ANCHORS : NUM_ANCHORS + NUM_BEST]
    flops = {candidate.arch: candidate.cost.flops for candidate in run.candidates()}
    first = [trial.arch for trial in trained(experiment, run)[NUM_ANCHORS:MIN_COMPLETE]]
    assert first == sorted(best, key=flops.__getitem__)[: MIN_COMPLETE - NUM_ANCHORS]


def test_more_workers_than_best_candidates_train_the_next_ones_by_rank(tmp_path: Path) -> None:
    experiment = experiment_of("surrogate")
    run = run_of(experiment, tmp_path / "run")
    study, order = study_of(experiment, run), archs_by_rank(experiment, run)
    proposals = [study.ask() for _ in range(NUM_TRIALS)]  # none of them ends
    archs = [experiment.space.decode(proposal.genome) for proposal in proposals if proposal is not None]
    assert set(archs[: NUM_ANCHORS + NUM_BEST]) == set(order[: NUM_ANCHORS + NUM_BEST])
    assert archs[NUM_ANCHORS + NUM_BEST :] == order[NUM_ANCHORS + NUM_BEST : NUM_TRIALS]


def test_what_is_expected_of_a_candidate_that_is_not_trained_follows_the_trainings_of_others(tmp_path: Path) -> None:
    experiment = experiment_of("surrogate")
    run = run_of(experiment, tmp_path / "run")
    trials = trained(experiment, run)
    for trial in trials[-4:]:
        assert trial.predicted is not None
        inherited = next(each.accuracy for each in run.candidates() if each.arch == trial.arch)
        own = trial.metric("accuracy")
        assert abs(trial.predicted.accuracy - own) < 0.3 * abs(inherited - own)


def test_a_race_of_heirs_that_was_interrupted_chooses_as_one_that_was_not(tmp_path: Path) -> None:
    experiment = experiment_of("surrogate")
    whole, cut = (
        trained(experiment, run_of(experiment, tmp_path / name), reopened_at=at)
        for name, at in (("whole", ()), ("cut", (3, 7, 12)))
    )
    assert [trial.arch_id for trial in cut] == [trial.arch_id for trial in whole]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_other_samplers_train_candidates_in_the_order_of_what_they_inherit(tmp_path: Path, sampler: str) -> None:
    experiment = experiment_of(sampler)
    run = run_of(experiment, tmp_path / "run")
    assert [trial.arch for trial in trained(experiment, run)] == archs_by_rank(experiment, run)[:NUM_TRIALS]


def test_a_candidate_that_was_given_up_is_trained_only_if_no_other_is_left(tmp_path: Path) -> None:
    experiment = experiment_of("surrogate")
    run = run_of(experiment, tmp_path / "run", num_given_up=NUM_CANDIDATES - 10)
    given_up = {candidate.arch for candidate in run.candidates() if candidate.num_images == 50}
    late = [trial.number for trial in trained(experiment, run) if trial.arch in given_up]
    assert len(late) >= NUM_TRIALS - 10 - NUM_ANCHORS
    assert min(late) >= 10
