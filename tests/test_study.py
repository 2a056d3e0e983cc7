"""What a study proposes, and that it proposes the same after a crash, on made-up results."""

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from conftest import small_digits
from cvt_nas.arch import cost_of
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.pipeline import open_study
from cvt_nas.propose.journal import open_journal
from cvt_nas.propose.samplers import (
    SAMPLERS,
    Progress,
    SamplerName,
    derive_seed,
    params_of,
    progress_of,
    progress_to_attrs,
)
from cvt_nas.propose.study import PartialTrial, Proposal, Study
from cvt_nas.results import TrialResult
from cvt_nas.run import RunFolder
from cvt_nas.space import Genome
from test_supernet_training import SPACE


def optuna_trials(run: RunFolder) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(run.journal_path)))
    return optuna.load_study(study_name="cvt-nas", storage=storage).trials


def result_of(experiment: Experiment, proposal: Proposal, accuracy: float) -> TrialResult:
    return TrialResult(
        number=proposal.number, arch=experiment.space.decode(proposal.genome), status="complete", epochs=3,
        accuracy=accuracy, cost=proposal.cost, curve=(accuracy,) * 3, seconds=1.0, train_seconds=1.0,
        seed=proposal.seed,
    )  # fmt: skip


def made_up_accuracy(proposal: Proposal) -> float:
    return 1 - 1 / (1 + proposal.cost.flops / 1e6)


def study_of(experiment: Experiment, path: Path, num_trials: int) -> tuple[Study, RunFolder]:
    if (path / "manifest.json").exists():
        run = RunFolder.open(path)
    else:
        run = RunFolder.create(path, experiment.manifest(seed=0, num_trials=num_trials))
    return open_study(experiment, run, num_trials=num_trials, seed=0), run


def with_sampler(sampler: str, more: str = "") -> Experiment:
    text = small_digits().replace("sampler: random", f"sampler: {sampler}")
    return parse_experiment(text + more, "study.yaml")


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_are_feasible_new_and_begin_with_the_anchors(tmp_path: Path, sampler: str) -> None:
    experiment = with_sampler(sampler, "\nconstraints: {params: {max: 150_000}, flops: {max: 1_200_000}}\n")
    num_trials = 12 if sampler == "gp" else 30  # Optuna's is slow
    study, _ = study_of(experiment, tmp_path / "run", num_trials)
    proposals = []
    while (proposal := study.ask()) is not None:
        proposals.append(proposal)
        study.tell(result_of(experiment, proposal, made_up_accuracy(proposal)))
    archs = [experiment.space.decode(proposal.genome) for proposal in proposals]
    assert [proposal.number for proposal in proposals] == list(range(num_trials))
    assert archs[0] == experiment.anchor_archs()["cvt-like"]
    assert len({arch.id for arch in archs}) == num_trials
    assert all(experiment.space.is_feasible(cost_of(arch)) for arch in archs)
    assert len({proposal.seed for proposal in proposals}) == num_trials


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_small_space_is_proposed_whole_and_nothing_twice(sampler: SamplerName) -> None:
    kept = ("embed_dim", "depth", "num_heads", "kv_stride")  # at their first option
    stages = (dataclasses.replace(s, **{name: getattr(s, name)[:1] for name in kept}) for s in SPACE.stages)
    space = dataclasses.replace(SPACE, stages=tuple(stages))
    experiment = dataclasses.replace(with_sampler(sampler), space=space)
    study = Study(
        space,
        metrics=("accuracy", "flops"),
        sampler=sampler,
        storage=InMemoryStorage(),
        num_trials=None,
        num_epochs=1,
        seed=0,
    )
    proposed = list[Genome]()
    while len(proposed) < 20 and (proposal := study.ask()) is not None:
        proposed.append(proposal.genome)
        study.tell(result_of(experiment, proposal, made_up_accuracy(proposal)))
    assert sorted(proposed) == sorted(space.all_genomes(100) or [])
    assert len(proposed) == 16


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("sampler", ["surrogate", "tpe", "nsga2", "random"])
def test_an_interrupted_study_proposes_what_an_uninterrupted_one_does(tmp_path: Path, sampler: str) -> None:
    experiment = with_sampler(sampler)

    def run(path: Path, *, reopen: bool) -> list[Genome]:
        study, folder = study_of(experiment, path, 24)
        genomes = []
        while (proposal := study.ask()) is not None:
            if reopen and proposal.number in (5, 17, 21):
                study, folder = study_of(experiment, path, 24)  # as after a crash: the trial is in flight
                again = study.ask()
                assert again == proposal
            genomes.append(proposal.genome)
            result = result_of(experiment, proposal, made_up_accuracy(proposal))
            folder.append(result)
            study.tell(result)
        return genomes

    assert run(tmp_path / "cut", reopen=True) == run(tmp_path / "whole", reopen=False)


@pytest.mark.usefixtures("fast_disk")
def test_a_study_whose_trials_pause_proposes_the_same_wherever_it_is_interrupted(tmp_path: Path) -> None:
    experiment = with_sampler("surrogate")

    def curve_of(proposal: Proposal) -> tuple[float, ...]:
        """Its end has little to do with its beginning, so that what is trained on tells something new."""
        rng = random.Random(f"{proposal.genome}")
        return (0.3 + 0.3 * rng.random(), 0.6, 0.6 + 0.3 * rng.random())

    def partial(proposal: Proposal) -> PartialTrial:
        return PartialTrial(proposal=proposal, curve=curve_of(proposal)[:1], seconds=1.0, train_seconds=1.0)

    def run(path: Path, *, reopen: bool) -> list[Genome]:
        study, folder = study_of(experiment, path, 40)
        genomes, waiting = list[Genome](), list[Proposal]()
        while (proposal := study.ask()) is not None:
            genomes.append(proposal.genome)
            study.pause(partial(proposal))
            waiting.append(proposal)
            if proposal.number >= 2 and proposal.number % 3 != 1:  # one of those that wait goes on, and ends
                promoted = max(waiting, key=lambda waits: curve_of(waits)[0])
                waiting.remove(promoted)
                study.report(partial(promoted))
                result = dataclasses.replace(
                    result_of(experiment, promoted, curve_of(promoted)[-1]), curve=curve_of(promoted)
                )
                folder.append(result)
                study.tell(result)
            if reopen:
                study, folder = study_of(experiment, path, 40)
        return genomes

    assert run(tmp_path / "cut", reopen=True) == run(tmp_path / "whole", reopen=False)


def test_a_result_that_was_recorded_before_a_crash_is_told_to_optuna_after_it(tmp_path: Path) -> None:
    experiment = with_sampler("random")
    study, run = study_of(experiment, tmp_path / "run", 5)
    proposal = study.ask()
    assert proposal is not None
    run.append(result_of(experiment, proposal, 0.5))  # and killed here
    study, run = study_of(experiment, tmp_path / "run", 5)
    assert [trial.state for trial in optuna_trials(run)] == [TrialState.COMPLETE]
    following = study.ask()
    assert following is not None
    assert following.number == 1
    assert len(run.results()) == 1


def test_an_anchor_whose_proposal_was_torn_by_a_crash_is_proposed_again(tmp_path: Path) -> None:
    experiment = with_sampler("tpe")
    study, _ = study_of(experiment, tmp_path / "run", 5)
    (anchor,) = experiment.anchors.values()
    study._study.enqueue_trial(params_of(experiment.space, anchor), user_attrs={"anchor": "cvt-like"})
    study._study.ask()  # and killed before it drew a choice
    study, _ = study_of(experiment, tmp_path / "run", 5)
    assert (proposal := study.ask()) is not None
    assert proposal.genome == anchor


def test_a_paused_trial_is_known_after_a_crash(tmp_path: Path) -> None:
    experiment = with_sampler("random")
    study, _ = study_of(experiment, tmp_path / "run", 5)
    proposals = [study.ask(), study.ask()]
    assert proposals[0] is not None
    assert proposals[1] is not None
    paused = PartialTrial(proposal=proposals[0], curve=(0.25,), seconds=3.0, train_seconds=2.0)
    running = dataclasses.replace(paused, proposal=proposals[1])
    study.pause(paused)
    study.report(running)  # and killed here
    study, _ = study_of(experiment, tmp_path / "run", 5)
    assert list(study.paused()) == [paused]
    assert list(study.interrupted()) == [running]
    study.report(paused)  # and killed again, with both in flight
    study, _ = study_of(experiment, tmp_path / "run", 5)
    assert list(study.paused()) == []
    assert list(study.interrupted()) == [paused, running]
    study, _ = study_of(experiment, tmp_path / "run", 5)
    assert [study.ask(), study.ask()] == proposals  # where nobody takes them over


def lost(experiment: Experiment, proposal: Proposal, status: Any) -> TrialResult:
    result = result_of(experiment, proposal, 0.0)
    return dataclasses.replace(result, status=status, accuracy=None, curve=(), epochs=0, reason="it broke")


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("sampler", ["random", "surrogate", "tpe", "nsga2"])
def test_what_failed_is_tried_again_by_a_resumed_study_the_anchor_first_and_then_by_number(
    tmp_path: Path, sampler: str
) -> None:
    experiment, num_trials = with_sampler(sampler), 24
    (anchor,) = experiment.anchors.values()
    study, run = study_of(experiment, tmp_path / "run", num_trials)
    ends = {0: "oom", 1: "failed", 3: "diverged", 5: "failed", 20: "stopped"}
    genomes = dict[int, Genome]()
    while (proposal := study.ask()) is not None:
        genomes[proposal.number] = proposal.genome
        status = ends.get(proposal.number, "complete")
        result = lost(experiment, proposal, status) if status != "complete" else result_of(experiment, proposal, 0.5)
        run.append(result)
        study.tell(result)
    assert genomes[0] == anchor
    assert study.is_done, "what fails is not tried again by the process that saw it fail"

    study, run = study_of(experiment, tmp_path / "run", num_trials)
    assert not study.is_done
    first, second = study.ask(), study.ask()
    assert first is not None
    assert second is not None
    assert [first.genome, second.genome] == [genomes[0], genomes[1]]
    assert [first.number, second.number] == [24, 25]
    assert first.seed != derive_seed(0, 0, "training")
    run.append(result_of(experiment, first, 0.9))
    study.tell(result_of(experiment, first, 0.9))
    study.report(PartialTrial(proposal=second, curve=(0.3,), seconds=1.0, train_seconds=1.0))  # and killed here

    study, run = study_of(experiment, tmp_path / "run", num_trials)
    assert [trial.proposal.number for trial in study.interrupted()] == [25]
    third = study.ask()
    assert third is not None
    assert (third.number, third.genome) == (26, genomes[5])
    assert study.ask() is None
    for proposal, status in ((second, "complete"), (third, "failed")):
        result = result_of(experiment, proposal, 0.7) if status == "complete" else lost(experiment, proposal, status)
        run.append(result)
        study.tell(result)
    assert study.is_done

    assert len(run.results()) == num_trials
    assert len(run.ended()) == num_trials + 3
    assert Counter(result.status for result in run.results()) == {
        "complete": 21, "diverged": 1, "stopped": 1, "failed": 1,
    }  # fmt: skip
    assert run.find(experiment.space.arch_id(genomes[0])).number == 24
    assert run.find(experiment.space.arch_id(genomes[5])).number == 26
    study, run = study_of(experiment, tmp_path / "run", num_trials)
    again = study.ask()
    assert again is not None, "and once more by the next"
    assert (again.number, again.genome) == (27, genomes[5])
    assert study.ask() is None


def test_heirs_that_failed_are_tried_again_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    experiment = with_sampler("random")
    archs = [experiment.space.sample_feasible(random.Random(seed)) for seed in range(3)]
    first = {f"candidate {index}": genome for index, genome in enumerate(archs) if genome is not None}

    def study(names: list[str], run: RunFolder) -> Study:
        return Study(
            experiment.space, metrics=experiment.objectives, sampler="random", num_trials=3, num_epochs=2, seed=0,
            storage=open_journal(run.journal_path, run.store), anchors={name: first[name] for name in names},
            recorded=run.results(),
        )  # fmt: skip

    run = RunFolder.create(tmp_path / "run", experiment.manifest(seed=0, num_trials=3))
    one = study(list(first), run)
    while (proposal := one.ask()) is not None:
        run.append(lost(experiment, proposal, "failed"))
        one.tell(lost(experiment, proposal, "failed"))
    two, order = study(list(first)[::-1], run), []
    while (proposal := two.ask()) is not None:
        order.append(proposal.genome)
    assert order == [experiment.space.canonical(genome) for genome in list(first.values())[::-1]]


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_epoch_adds_no_more_to_the_journal_late_in_a_training_than_early(tmp_path: Path, sampler: str) -> None:
    experiment = with_sampler(sampler)
    study, run = study_of(experiment, tmp_path / "run", 30)
    proposal, rng, sizes = study.ask(), random.Random(0), list[int]()
    assert proposal is not None
    curve = tuple(rng.random() for _ in range(300))
    for epoch in range(1, 301):
        before = run.journal_path.stat().st_size
        study.report(PartialTrial(proposal=proposal, curve=curve[:epoch], seconds=epoch / 3, train_seconds=epoch / 7))
        sizes.append(run.journal_path.stat().st_size - before)
    assert max(sizes) < 2_000
    assert sum(sizes) < 150_000
    assert sum(sizes[200:]) < 1.2 * sum(sizes[:100])
    study, _ = study_of(experiment, tmp_path / "run", 30)  # as after a crash
    assert [trial.curve for trial in study.interrupted()] == [curve]


@given(st.lists(st.floats(0, 1), max_size=70), st.integers(0, 70), st.booleans())
def test_a_curve_is_read_back_wherever_the_writing_of_an_epoch_was_cut(
    curve: list[float], known: int, is_paused: bool
) -> None:
    attrs = progress_to_attrs(Progress(curve=tuple(curve[:known])), {})
    written = progress_to_attrs(Progress(curve=tuple(curve), seconds=3.0, is_paused=is_paused), attrs)
    for cut in range(len(written)):
        partly = attrs | dict(list(written.items())[:cut])
        assert progress_of(optuna.trial.create_trial(value=1, user_attrs=partly)).curve == tuple(curve[:known])
    found = progress_of(optuna.trial.create_trial(value=1, user_attrs=attrs | written))
    assert found == Progress(curve=tuple(curve), seconds=3.0, is_paused=is_paused)


def test_a_journal_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    experiment = with_sampler("random")
    study, _ = study_of(experiment, tmp_path / "run", 5)
    proposals = [study.ask(), study.ask()]
    for number, is_paused in enumerate((True, False)):
        kept = {"curve": [0.25] * 20, "seconds": 3.0, "train_seconds": 2.0, "is_paused": is_paused}
        study._study._storage.set_trial_user_attr(study._study._storage.get_trial_id_from_study_id_trial_number(
            study._study._study_id, number
        ), "progress", kept)  # fmt: skip
    study, _ = study_of(experiment, tmp_path / "run", 5)
    for proposal, found in zip(proposals, (*study.paused(), *study.interrupted()), strict=True):
        assert proposal is not None
        assert found == PartialTrial(proposal=proposal, curve=(0.25,) * 20, seconds=3.0, train_seconds=2.0)


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("sampler", ["random", "surrogate"])
def test_a_space_that_is_used_up_ends_the_study(tmp_path: Path, sampler: str) -> None:
    text = f"""
format: 1
name: tiny
space:
  image_size: 8
  num_channels: 1
  num_classes: 10
  stages:
    - {{patch: {{kernel: 3, stride: 2}}, embed_dim: [8, 16], depth: [1, 2], num_heads: 1, kv_stride: [1, 2, 3]}}
data: {{dataset: digits}}
training: {{epochs: 1}}
search: {{trials: 100, sampler: {sampler}}}
"""
    experiment = parse_experiment(text, "tiny.yaml")
    study, _ = study_of(experiment, tmp_path / "run", 100)
    num_proposed = 0
    while (proposal := study.ask()) is not None:
        num_proposed += 1
        study.tell(result_of(experiment, proposal, made_up_accuracy(proposal)))
    assert num_proposed == experiment.space.size == 12
    assert study.is_done
