"""Which trainings correct the inherited accuracies of a run, and what a query makes of them, without any training."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cvt_nas.cli import main
from cvt_nas.config import Experiment
from cvt_nas.engine import Inheritance, TrainingSetup
from cvt_nas.engine.inheritance import save_supernet
from cvt_nas.engine.supernet import supernet_of
from cvt_nas.errors import RunFolderError
from cvt_nas.pipeline.correcting import RunCorrection, trainings_of
from cvt_nas.pipeline.query import query
from cvt_nas.results import Candidate, Inherited, TrialResult, kendall, smoothed_accuracies
from cvt_nas.run import RunFolder
from cvt_nas.space import spread_over_flops
from test_inherit import with_supernet
from test_reuse import IDENTITY, OURS, Make, experiment_with, make, run, trial

__all__ = ["make", "run"]  # fixtures


def evaluated(run: RunFolder, number: int, *, num_seeds: int = 1) -> RunFolder:
    """`run`, with architectures that judged its supernet."""
    run.standalone.begin({**OURS.manifest(seed=0, num_trials=number), "data": IDENTITY.to_json()})
    for index, genome in enumerate(spread_over_flops(OURS.space, number)):
        for seed in range(num_seeds):
            run.standalone.append(trial(OURS, index + 100 * seed, genome))
    return run


def test_the_kind_of_training_with_more_architectures_corrects(run: RunFolder) -> None:
    raced = trainings_of(run, OURS, [], identity=IDENTITY, metric="accuracy")
    assert raced.kind == "trials of the race, of 3 epochs from inherited weights"
    assert raced.archs.keys() == {result.arch_id for result in run.results()}
    alone = trainings_of(evaluated(run, 20, num_seeds=2), OURS, [], identity=IDENTITY, metric="accuracy")
    assert alone.kind == "trainings from scratch, of 3 epochs"
    assert len(alone.archs) == 20
    first = OURS.space.arch_id(spread_over_flops(OURS.space, 20)[0])
    assert alone.accuracies[first] == pytest.approx(np.mean([0.7, 0.8]))


def test_a_trial_that_was_stopped_does_not_correct(make: Make) -> None:
    run = make("stopped", OURS, {3: "stopped", 5: "diverged"})
    found = trainings_of(run, OURS, [], identity=IDENTITY, metric="accuracy")
    left_out = {result.arch_id for result in run.results() if result.status != "complete"}
    assert len(left_out) == 2
    assert not left_out & found.archs.keys()


def test_trainings_of_other_runs_count_beside_those_that_judged_the_supernet(make: Make, run: RunFolder) -> None:
    other = make("scratch", experiment_with())
    found = trainings_of(evaluated(run, 20), OURS, [other], identity=IDENTITY, metric="accuracy")
    own = {OURS.space.arch_id(genome) for genome in spread_over_flops(OURS.space, 20)}
    assert found.archs.keys() == own | {result.arch_id for result in other.results()}
    with pytest.raises(RunFolderError, match="was begun by an earlier version"):
        trainings_of(run, OURS, [other], identity=None, metric="accuracy")


def test_trainings_that_are_asked_for_count_before_trials_of_the_race_if_there_are_enough(
    make: Make, run: RunFolder
) -> None:
    few, enough = (
        make(f"first {number}", experiment_with(), dict.fromkeys(range(number, 14), "stopped")) for number in (5, 6)
    )
    by_few, by_enough = (
        trainings_of(run, OURS, [other], identity=IDENTITY, metric="accuracy") for other in (few, enough)
    )
    assert (len(by_few.archs), by_few.kind[:6]) == (14, "trials")
    assert (len(by_enough.archs), by_enough.kind[:9]) == (6, "trainings")


def test_a_correction_says_how_far_ranks_moved_and_orders_by_what_it_expects() -> None:
    genomes = spread_over_flops(OURS.space, 40)
    share = np.array([genome[0] / (len(OURS.space.genes[0].options) - 1) for genome in genomes])
    logs = np.log([OURS.space.cost(genome).flops for genome in genomes])
    truth = 0.02 * logs - 0.05 * share
    inherited = truth + 0.1 * share
    correction = RunCorrection(
        space=OURS.space,
        inherited={
            genome: Inherited(accuracy=accuracy, num_images=100)
            for genome, accuracy in zip(genomes, inherited.tolist(), strict=True)
        },
        own=dict(zip(genomes[::2], truth[::2].tolist(), strict=True)),
        seed=0,
    )
    left = genomes[1::2]
    places = {genome: place for place, genome in enumerate(correction.most_accurate(left))}
    order = -np.array([places[genome] for genome in left], dtype=float)
    assert kendall(order, truth[1::2]) > kendall(inherited[1::2], truth[1::2]) + 0.2
    assert correction.change(OURS.space).startswith("the 40 ranked architectures within the limits moved by ")
    again = correction.expect({left[0]: correction.inherited[left[0]]})
    assert again == pytest.approx(correction.expect({genome: correction.inherited[genome] for genome in left})[:1])


# --- a query --------------------------------------------------------------------------------------------------------


def begun(experiment: Experiment, path: Path) -> tuple[RunFolder, TrainingSetup]:
    run = RunFolder(path)
    setup = TrainingSetup.of(experiment, run=run, data=None)
    identity = setup.open_data().identity().to_json()
    manifest = {**experiment.manifest(seed=0, num_trials=3), "data": identity, "metric": "accuracy"}
    return RunFolder.create(path, manifest), setup


@pytest.fixture
def ranked(tmp_path: Path) -> RunFolder:
    """A run whose supernet has its first weights, with twelve candidates that were ranked by it."""
    experiment, device = with_supernet(), torch.device("cpu")
    run, setup = begun(experiment, tmp_path / "ranked")
    assert setup.shared is not None
    torch.manual_seed(0)
    supernet = supernet_of(setup.shared)
    save_supernet(supernet, run.supernet.weights_path)
    inheritance = Inheritance(supernet, setup.shared.config, setup.open_data(), device)
    for number, genome in enumerate(spread_over_flops(experiment.space, 12)):
        arch = experiment.space.decode(genome)
        cost, found = experiment.space.cost(genome), dataclasses.asdict(inheritance.measure(arch))
        run.append_candidate(Candidate(number=number, arch=arch, cost=cost, seconds=1.0, **found))
    return run


def train(run: RunFolder, candidates: tuple[Candidate, ...]) -> None:
    """Appends made-up trials of candidates. Networks with a wide first stage are the best."""
    for number, candidate in enumerate(candidates):
        own = 0.9 if candidate.arch.stages[0].embed_dim == 16 else 0.5
        run.append(
            TrialResult(
                number=number, arch=candidate.arch, status="complete", epochs=2, accuracy=own, cost=candidate.cost,
                curve=(own, own), seconds=1.0, train_seconds=1.0, seed=number,
            )
        )  # fmt: skip


def test_a_query_ranks_by_accuracies_that_trainings_correct(
    ranked: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = list[str]()
    bare = query(ranked, number=6, on_note=notes.append)
    assert notes == [
        "not corrected: there are 0 trainings from scratch, of 2 epochs, and it takes 6; "
        "cvt-nas supernet evaluate trains more"
    ]
    train(ranked, ranked.candidates())
    notes.clear()
    assert query(ranked, number=6, is_corrected=False, on_note=notes.append) == bare
    assert not notes
    assert [answer.corrected for answer in bare] == [None] * 6
    assert {answer.arch.stages[0].embed_dim for answer in bare} != {16}
    answers = query(ranked, number=6, on_note=notes.append)
    (note,) = notes
    assert note.startswith("corrected by 12 trials of the race, of 2 epochs from inherited weights: the 12 ranked ")
    corrected = [answer.corrected or 0 for answer in answers]
    assert corrected == sorted(corrected, reverse=True)
    assert {answer.arch.stages[0].embed_dim for answer in answers} == {16}
    assert main(["query", str(ranked.path), "--top", "6"]) == 0
    assert f"{answers[0].arch.id}  {corrected[0]:.4f} corrected, " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["query", str(ranked.path), "--uncorrected", "--reuse", str(ranked.path)])


def test_a_run_without_a_front_points_to_its_ranked_candidates(
    ranked: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(ranked.path)]) == 0
    told = capsys.readouterr().out
    assert f"12 candidates are ranked by their inherited accuracies: cvt-nas query {ranked.path}\n" in told
    assert "cvt-nas query shows the best of 12 candidates" in (ranked.path / "report.html").read_text()
    train(ranked, ranked.candidates()[:1])
    assert main(["report", str(ranked.path)]) == 0
    assert "cvt-nas query" not in capsys.readouterr().out
    assert "cvt-nas query shows" not in (ranked.path / "report.html").read_text()


def test_where_an_earlier_version_ranked_a_part_accuracies_are_not_smoothed(ranked: RunFolder) -> None:
    candidates = ranked.candidates()
    accuracies = [each.accuracy for each in candidates]
    assert smoothed_accuracies(candidates) != accuracies
    former = dataclasses.replace(candidates[0], brier=None)
    assert Candidate.from_json(former.to_json()) == former
    assert Candidate.from_json(candidates[1].to_json()) == candidates[1]
    assert smoothed_accuracies([former, *candidates[1:]]) == accuracies


def test_a_query_takes_trainings_of_another_run(ranked: RunFolder, tmp_path: Path) -> None:
    other, _ = begun(with_supernet(weights="scratch"), tmp_path / "scratch")
    train(other, ranked.candidates()[:8])
    notes = list[str]()
    query(ranked, number=2, reuse=[other.path], on_note=notes.append)
    assert notes[0].startswith("corrected by 8 trainings from scratch, of 2 epochs: ")
