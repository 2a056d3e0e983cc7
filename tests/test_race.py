"""The race, on real Ray: placement, early stopping, divergence, interruption and resumption."""

import contextlib
import copy
import dataclasses
import errno
import io
import json
import math
import os
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import ray
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray._private import ray_constants
from ray.cluster_utils import Cluster
from rich.console import Console

from conftest import SPACES, Watch, small_digits
from cvt_nas import load_model, search
from cvt_nas.arch import cost_of
from cvt_nas.cli import main
from cvt_nas.config import AugmentConfig, Experiment, parse_experiment
from cvt_nas.data import ImageData
from cvt_nas.engine import TrainingSetup, evaluate, progress_reports
from cvt_nas.errors import CvtNasError, DataError, ResourceError, RunFolderError, SearchFailedError
from cvt_nas.follow.terminal import ConsoleProgress
from cvt_nas.launch.cluster import local_ray, start_local_ray
from cvt_nas.launch.devices import training_reports
from cvt_nas.launch.flight import kind_of_failure
from cvt_nas.launch.judges import supernet_workers
from cvt_nas.launch.private import on_loopback
from cvt_nas.launch.resources import claim_resources
from cvt_nas.launch.trial import read_test_split
from cvt_nas.launch.tune import RaceSearcher
from cvt_nas.pipeline import open_study
from cvt_nas.pipeline.phases import race_trials
from cvt_nas.propose.asha import Asha, Ranking, accuracy_ranks, pareto_ranks
from cvt_nas.propose.journal import open_journal
from cvt_nas.propose.race import Race, race_of
from cvt_nas.propose.samplers import (
    SAMPLERS,
    Progress,
    SamplerName,
    derive_seed,
    params_of,
    progress_of,
    progress_to_attrs,
)
from cvt_nas.propose.spread import Spread
from cvt_nas.propose.study import PartialTrial, Proposal, Study
from cvt_nas.results import TrialResult
from cvt_nas.results.events import EpochDone, TrialPaused, TrialStarted
from cvt_nas.run import RunFolder
from cvt_nas.space import Genome
from test_engine import tiny_arch
from test_supernet_training import SPACE

EPOCH = {"  epochs:": "  epochs: 1", "  warmup_epochs:": "  warmup_epochs: 0"}


def optuna_trials(run: RunFolder) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(run.journal_path)))
    return optuna.load_study(study_name="cvt-nas", storage=storage).trials


@pytest.fixture(scope="class")
def logical_gpus() -> Iterator[None]:
    """Eight GPUs that exist only in Ray's books."""
    start_local_ray(num_cpus=8, num_gpus=8)
    yield
    ray.shutdown()


# --- asha


def asha(
    ranking: Ranking = accuracy_ranks, *, max_epochs: int = 8, grace: int = 2, factor: int = 2, **more: Any
) -> Asha:
    return Asha(max_epochs=max_epochs, grace_period=grace, reduction_factor=factor, ranking=ranking, **more)


def test_asha_stops_the_worse_half_at_each_rung_and_decides_nowhere_else() -> None:
    rungs = asha()
    assert list(rungs.rungs) == [2, 4]
    assert rungs.decide(0, 1, [1.0]) == "go"
    assert rungs.decide(0, 2, [0.5]) == "go"  # the first on a rung has nothing to be compared with
    assert rungs.decide(1, 2, [0.6]) == "stop"
    assert rungs.decide(2, 2, [0.4]) == "go"
    assert rungs.decide(3, 2, [0.6]) == "stop"
    assert rungs.decide(4, 2, [0.45]) == "go"
    assert rungs.decide(2, 8, [1.0]) == "go"


def test_asha_keeps_about_one_in_reduction_factor() -> None:
    rungs, rng = asha(max_epochs=9, grace=1, factor=3), random.Random(0)
    num_kept = sum(rungs.decide(number, 1, [rng.random()]) == "go" for number in range(600))
    assert num_kept == pytest.approx(200, abs=46)  # four standard deviations of a binomial


def test_a_paused_trial_is_promoted_once_there_is_room_for_it() -> None:
    rungs = asha(max_epochs=9, grace=1, factor=3, mode="promote")
    assert [rungs.decide(number, 1, [loss]) for number, loss in enumerate([0.5, 0.2, 0.6])] == ["go", "pause", "pause"]
    assert rungs.promote() is None  # one of three has gone on
    assert rungs.decide(3, 1, [0.4]) == "pause", "the one that waits is better"
    assert [rungs.promote(), rungs.promote()] == [1, None]
    assert [rungs.decide(number, 1, [0.9]) for number in (4, 5, 6)] == ["pause"] * 3
    assert [rungs.promote(), rungs.promote()] == [3, None]  # the third of seven
    assert not rungs.is_paused(3)
    assert rungs.is_paused(2)


def test_a_trial_that_is_among_the_best_when_it_arrives_does_not_pause() -> None:
    rungs = asha(max_epochs=9, grace=1, factor=2, mode="promote")
    decisions = [rungs.decide(number, 1, [loss]) for number, loss in enumerate([0.5, 0.6, 0.3, 0.2, 0.1])]
    assert decisions == ["go", "pause", "go", "pause", "go"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(2, 4), st.sampled_from(["stop", "promote"]))
@example(list(range(60, 0, -1)), 3, "promote")  # each better than all before
@example(list(range(60, 0, -1)), 3, "stop")
def test_no_more_trials_pass_a_rung_than_one_in_reduction_factor(losses: list[int], factor: int, mode: Any) -> None:
    rungs, passed = asha(max_epochs=20, grace=1, factor=factor, mode=mode), set[int]()
    for number, loss in enumerate(losses):
        while (promoted := rungs.promote()) is not None:
            passed.add(promoted)
        if rungs.decide(number, 1, [float(loss)]) == "go":
            passed.add(number)
        allowed = math.ceil((number + 1) / factor)
        assert len(passed) <= (allowed if mode == "promote" else max(allowed, factor - 1))
    while (promoted := rungs.promote()) is not None:
        passed.add(promoted)
    if mode == "promote":
        assert len(passed) == math.ceil(len(losses) / factor), "nobody waits while there is room"
        waiting = sorted(losses[number] for number in range(len(losses)) if rungs.is_paused(number))
        assert len(waiting) == len(losses) - len(passed)


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_a_trial_that_has_passed_a_rung_passes_it_again(mode: Any) -> None:
    rungs = asha(max_epochs=9, grace=1, factor=3, mode=mode)
    assert rungs.decide(0, 1, [0.9]) == "go"
    for number in range(1, 6):
        rungs.decide(number, 1, [0.1])
    assert rungs.decide(0, 1, [0.9]) == "go"  # its worker died, and an older checkpoint was found
    assert not rungs.is_paused(0)


def passing(rungs: Asha, losses: list[tuple[float, float]]) -> set[int]:
    """Trials that pass the rung at epoch 2 once all have arrived."""
    passed = {number for number, loss in enumerate(losses) if rungs.decide(number, 2, loss) == "go"}
    while (number := rungs.promote()) is not None:
        passed.add(number)
    return passed


def test_the_cheap_end_survives_a_pareto_rung_and_not_one_of_accuracy_alone() -> None:
    losses = [(0.1 + 0.05 * index, 1000.0 - 100 * index) for index in range(9)]  # each cheaper and worse than the last
    losses += [(0.9, 1000.0 + index) for index in range(9)]  # dominated by all of them
    by_accuracy, together = (
        passing(asha(ranking, factor=3, mode="promote"), losses) for ranking in (accuracy_ranks, pareto_ranks)
    )
    assert 8 in together - by_accuracy
    assert not together & set(range(9, 18))
    kept = [number for number in range(18) if pareto_ranks(np.array(losses))[number] < 6]
    assert {0, 8} <= set(kept)
    assert set(kept) < set(range(9))
    assert 8 not in {number for number in range(18) if accuracy_ranks(np.array(losses))[number] < 6}


def brute_force_fronts(losses: np.ndarray) -> list[set[int]]:
    """Fronts by the definition: what nothing left dominates, again and again."""
    left, fronts = set(range(len(losses))), []
    while left:
        front = {
            i for i in left
            if not any((losses[j] <= losses[i]).all() and (losses[j] < losses[i]).any() for j in left)
        }  # fmt: skip
        fronts.append(front)
        left -= front
    return fronts


loss_tables = st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=25)


@given(loss_tables)
def test_pareto_ranks_go_front_by_front(table: list[tuple[int, ...]]) -> None:
    losses = np.array(table, dtype=float)
    ranks, begin = pareto_ranks(losses), 0
    assert sorted(ranks) == list(range(len(losses)))
    for front in brute_force_fronts(losses):
        assert {int(rank) for rank in ranks[sorted(front)]} == set(range(begin, begin + len(front)))
        begin += len(front)


@given(loss_tables, st.randoms())
def test_the_order_of_arrival_changes_no_rank(table: list[tuple[int, ...]], rng: random.Random) -> None:
    distinct = sorted(set(table))
    shuffled = rng.sample(distinct, len(distinct))
    ranks, again = pareto_ranks(np.array(distinct, dtype=float)), pareto_ranks(np.array(shuffled, dtype=float))
    assert [int(ranks[distinct.index(row)]) for row in shuffled] == again.tolist()


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_replaying_curves_puts_trials_back_on_their_rungs(mode: Any) -> None:
    live, replayed = (asha(max_epochs=12, grace=1, mode=mode) for _ in range(2))
    rng, curves, last = random.Random(0), dict[int, list[float]](), dict[int, str]()

    def train(rungs: Asha, number: int) -> None:
        """On from where it stood, as far as the rungs let it."""
        curve = curves.setdefault(number, [])
        while len(curve) < 12 and last.get(number, "go") == "go":
            curve.append(rng.random())
            if len(curve) < 12:
                last[number] = rungs.decide(number, len(curve), [1 - curve[-1], 7.0])

    for number in range(20):
        train(live, number)
        if (promoted := live.promote()) is not None and number % 2:  # others are promoted, but have not gone on yet
            last[promoted] = "go"
            train(live, promoted)
        elif promoted is not None:
            last[promoted] = "go"
    for number, curve in curves.items():
        replayed.replay(number, curve, [7.0], is_paused=last[number] == "pause", is_stopped=last[number] == "stop")
    assert replayed.rungs == live.rungs
    assert [replayed.is_paused(number) for number in curves] == [live.is_paused(number) for number in curves]
    for number in range(20, 60):  # and they decide as if nothing had happened
        loss = [rng.random(), 7.0]
        assert replayed.decide(number, 1, loss) == live.decide(number, 1, loss)
        assert replayed.promote() == live.promote()


def test_a_trial_that_waits_where_no_rung_is_any_more_waits_nowhere() -> None:
    rungs = asha(max_epochs=8, grace=1, factor=2, mode="promote")
    rungs.replay(0, (0.5, 0.6, 0.7), [7.0], is_paused=True)  # after 3 epochs, by another placing of rungs
    assert not rungs.is_paused(0)
    assert rungs.promote() is None


# --- study


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna waits for the disk several times a trial, and tests of what is proposed need not."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


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
        space, metrics=("accuracy", "flops"), sampler=sampler, storage=InMemoryStorage(), num_trials=None, seed=0
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


def test_a_trial_that_has_passed_a_rung_is_not_judged_there_again_after_a_crash(tmp_path: Path) -> None:
    experiment = with_sampler("random")
    study, run = study_of(experiment, tmp_path / "run", 5)
    proposals = [proposal for _ in range(4) if (proposal := study.ask()) is not None]
    first, *others = [
        PartialTrial(proposal=proposal, curve=(0.1 if proposal.number == 0 else 0.9,), seconds=3.0, train_seconds=2.0)
        for proposal in proposals
    ]
    study.report(first)  # it was the first to arrive, so it went on
    for better in others:
        study.pause(better)  # and killed here
    study, run = study_of(experiment, tmp_path / "run", 5)
    searcher = RaceSearcher(race_of(experiment, study, run.results()), experiment, run, run.append, queue.Queue())
    assert searcher.suggest("again")["number"] == 0
    assert searcher.goes_on("again", {"curve": [0.1], "epoch": 1})


def test_a_race_of_a_run_that_recorded_no_rungs_has_those_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = small_digits(**{"  epochs:": "  epochs: 8", "search:": "search: {sampler: random, reduction_factor: 3}"})
    experiment, found = parse_experiment(text, "old.yaml"), list[Any]()
    _, run = study_of(experiment, tmp_path / "run", 5)
    manifest = {name: value for name, value in run.manifest.items() if name != "rungs"}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("cvt_nas.pipeline.phases.run_trials", lambda search, race, keep: iter([found.append(race)]))
    search: Any = SimpleNamespace(experiment=experiment, run=run, num_trials=5, seed=0)
    assert next(race_trials(search)) is None
    assert list(found[0].asha.rungs) == [1, 3]


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
            experiment.space, metrics=experiment.objectives, sampler="random", num_trials=3, seed=0,
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


def test_progress_counts_an_architecture_that_was_tried_again_once(tmp_path: Path) -> None:
    experiment = with_sampler("random")
    study, run = study_of(experiment, tmp_path / "run", 4)
    for status in ("failed", "complete"):
        proposal = study.ask()
        assert proposal is not None
        run.append(lost(experiment, proposal, status) if status == "failed" else result_of(experiment, proposal, 0.5))
    printed = io.StringIO()
    shown = ConsoleProgress.of(run, Console(file=printed, width=200), num_trials=4, deadline=None)
    assert dict(shown._figures())["trials"] == "1/4"
    shown(dataclasses.replace(run.results()[0], number=8, reason="[it] broke"))
    assert printed.getvalue().splitlines()[0] == "trial 8 failed: [it] broke"
    shown(dataclasses.replace(run.results()[0], number=9, status="complete", accuracy=0.4, curve=(0.4,) * 3))
    assert dict(shown._figures())["trials"] == "2/4"
    assert "lost" not in dict(shown._figures())


@pytest.mark.parametrize(
    ("one", "two", "are_alike"),
    [
        ("RuntimeError: no kernel at 0x7f2a", "RuntimeError: no kernel at 0x91bb", True),
        ("FileNotFoundError: /data/a/3.jpg is gone", "FileNotFoundError: /data/b/17.jpg is gone", True),
        ("the worker process died, 4 times", "the worker process died", False),
        ("no report within 20 s, 4 times", "no report within 21 s, 5 times", True),
        ("RuntimeError: a", "RuntimeError: b", False),
    ],
)
def test_failures_are_alike_whatever_numbers_and_paths_they_name(
    small: Experiment, tmp_path: Path, one: str, two: str, are_alike: bool
) -> None:
    proposal = study_of(small, tmp_path / "run", 1)[0].ask()
    assert proposal is not None
    kinds = {kind_of_failure(dataclasses.replace(lost(small, proposal, "failed"), reason=why)) for why in (one, two)}
    assert (len(kinds) == 1) == are_alike
    out_of_memory = lost(small, proposal, "oom")
    assert kind_of_failure(out_of_memory) == kind_of_failure(dataclasses.replace(out_of_memory, reason="2 GiB"))


def searcher_of(experiment: Experiment, path: Path) -> tuple[RaceSearcher, queue.Queue[Any], RunFolder]:
    study, run = study_of(experiment, path, 8)
    events = queue.Queue[Any]()
    race = Race(study, None, experiment.objectives)
    return RaceSearcher(race, experiment, run, run.append, events), events, run


@pytest.mark.usefixtures("fast_disk")
def test_a_search_whose_first_trials_run_out_of_memory_ends_and_a_resumed_one_where_all_do_again(
    tmp_path: Path,
) -> None:
    experiment = with_sampler("random")
    for attempt in range(2):
        searcher, events, run = searcher_of(experiment, tmp_path / "run")
        for number in range(3):
            trial_id = f"{attempt}-{number}"
            searcher.suggest(trial_id)
            reason = f"CUDA out of memory. Tried to allocate {number + 1}.00 GiB"
            searcher.on_trial_complete(trial_id, {"status": "oom", "epoch": 0, "reason": reason})
        assert searcher.suggest("one more") is None, "it would go first in the resumed one, as one in flight"
        errors = [event for event in list(events.queue) if isinstance(event, SearchFailedError)]
        assert [str(error) for error in errors] == [
            "the first 3 trials all failed: CUDA out of memory. Tried to allocate 3.00 GiB"
        ]
        assert len(run.results()) == 3
        assert len(run.ended()) == 3 * (attempt + 1)


@pytest.mark.usefixtures("fast_disk")
def test_a_trial_that_waits_for_gpus_that_are_gone_begins_again_on_those_that_are_left(tmp_path: Path) -> None:
    experiment, gpus, events = with_sampler("random"), [4], queue.Queue[Any]()
    study, run = study_of(experiment, tmp_path / "run", 1)
    searcher = RaceSearcher(
        Race(study, None, experiment.objectives), experiment, run, run.append, events, gpus_per_trial=1,
        spread=Spread(num_gpus=lambda: gpus[0], gpus_per_trial=1, batch_size=64),
    )  # fmt: skip
    first = searcher.suggest("more")
    assert (first["number"], first["gpus"]) == (0, 4), "there is no other trial"
    assert not searcher.waits_in_vain("more")
    gpus[0] = 2  # a node died
    assert searcher.waits_in_vain("more")
    searcher.on_trial_complete("more")  # as Tune says of one that it stops before it had a worker
    again = searcher.suggest("again")
    assert (again["number"], again["gpus"]) == (0, 2)
    assert not searcher.waits_in_vain("again")
    assert not run.results()


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("Traceback\n  File x\nOSError: Truncated\n\n", "OSError: Truncated"),
        ("Traceback\n  File x\nValueError: one\n  two\n", "ValueError: one"),
        ("\n", "no reason was given"),
    ],
)
def test_a_failed_trial_has_a_reason(tmp_path: Path, log: str, reason: str) -> None:
    searcher, _, run = searcher_of(with_sampler("random"), tmp_path / "run")
    searcher.suggest("one")
    run.error_path(0).parent.mkdir()
    run.error_path(0).write_text(log)
    searcher.on_trial_complete("one", error=True)
    searcher.suggest("two")
    searcher.on_trial_complete("two", {"status": "oom", "epoch": 0, "reason": ""})
    assert [result.reason for result in run.results()] == [reason, "no reason was given"]


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


# --- resources


def test_more_than_there_is_is_refused_before_anything_starts(small: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"--cpus 4096: this machine has \d+"):
        search(small, out=tmp_path / "run", cpus=4096)
    with pytest.raises(ResourceError, match=r"--gpus 64: this machine has \d+"):
        search(small, out=tmp_path / "run", gpus=64)
    assert not (tmp_path / "run").exists()
    assert not ray.is_initialized()


@pytest.mark.usefixtures("logical_gpus")
class TestWithLogicalGpus:
    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"gpus": 9}, "--gpus 9: the cluster has 8"),
            (
                {"gpus": 8, "gpus_per_trial": 1.5},
                "--gpus-per-trial: got 1.5, must be a fraction below 1 or a whole number",
            ),
            ({"gpus": 2, "gpus_per_trial": 4}, "--gpus-per-trial 4: more than the 2 of --gpus"),
            ({"gpus_per_trial": 16}, "--gpus-per-trial 16: no node has more than 8"),
            ({"gpus": 0, "gpus_per_trial": 1}, "--gpus-per-trial: got 1 with --gpus 0; drop one of the two"),
            ({"gpus": 0, "gpus_per_trial": "auto"}, "--gpus-per-trial: got auto with --gpus 0; drop one of the two"),
            ({"cpus": 9}, "--cpus 9: the cluster has 8"),
        ],
    )
    def test_what_a_cluster_cannot_give_is_refused(self, asked: dict[str, Any], message: str) -> None:
        with pytest.raises(ResourceError, match=message), claim_resources(**asked):
            pass

    @pytest.mark.parametrize("gpus_per_trial", [0.3, 0.35, 0.4, 0.5, 0.7, 1, 2, 3, 5, 8])
    def test_a_supernet_is_trained_by_one_worker_a_gpu_however_trials_share_them(self, gpus_per_trial: float) -> None:
        with claim_resources(gpus_per_trial=gpus_per_trial) as resources:
            assert supernet_workers(resources, batch_size=128) == (8, 1)
        with claim_resources(gpus=6, cpus=3, gpus_per_trial=min(gpus_per_trial, 6)) as resources:
            assert supernet_workers(resources, batch_size=128) == (6, 0.5)

    def test_slots_follow_from_gpus_and_share_the_cpus(self) -> None:
        def slots(**asked: Any) -> tuple[int, float, int]:
            with claim_resources(**asked) as resources:
                return resources.num_slots, resources.cpus_per_trial, resources.num_workers

        assert slots() == (8, 1, 1)
        assert slots(gpus=4) == slots(gpus=4, gpus_per_trial="auto") == (4, 1, 1)
        assert slots(gpus=8, gpus_per_trial=0.25) == (32, 0.25, 1)
        assert slots(gpus=8, gpus_per_trial=0.3) == (24, 1 / 3, 1)
        assert slots(gpus=8, gpus_per_trial=2) == (4, 2, 2)
        assert slots(gpus=0, cpus=3) == (3, 1, 1)

    @pytest.mark.slow
    def test_eight_gpus_run_eight_trials_side_by_side_each_on_its_own(self, tmp_path: Path) -> None:
        experiment = parse_experiment(
            small_digits(**EPOCH, **{"search:": "search: {trials: 8, sampler: random, scheduler: none}"}), "eight.yaml"
        )
        started: list[str] = []
        watch = Watch(lambda event: started.append(type(event).__name__))
        run = search(experiment, out=tmp_path / "run", gpus=8, device="cpu", progress=watch)
        assert sorted(result.device for result in run.results()) == [f"gpu {index}" for index in range(8)]
        assert started[:8] == ["TrialStarted"] * 8

    @pytest.mark.slow
    def test_a_trial_with_two_gpus_trains_on_two_workers(self, tmp_path: Path) -> None:
        experiment = parse_experiment(
            small_digits(**{"search:": "search: {trials: 1, sampler: random, scheduler: none}"}), "two.yaml"
        )
        run = search(experiment, out=tmp_path / "run", gpus=4, gpus_per_trial=2, device="cpu")
        assert [(result.status, result.device) for result in run.results()] == [("complete", "2 gpus")]
        assert all(len(result.curve) == 3 for result in run.results())


# --- search


def test_a_missing_data_set_costs_no_run_folder(tmp_path: Path) -> None:
    text = small_digits(**{"data:": "data: {dataset: cifar10}"})
    with pytest.raises(DataError):
        search(parse_experiment(text, "cifar.yaml"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("two_cpus")
class TestOnTwoCpus:
    def test_a_search_ends_with_every_trial_recorded_as_what_it_was(self, finished_run: RunFolder) -> None:
        results, trials = finished_run.results(), optuna_trials(finished_run)
        assert [result.number for result in results] == list(range(8))
        assert {result.status for result in results} == {"complete", "stopped"}
        expected = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
        for result, trial in zip(results, trials, strict=True):
            assert trial.state == expected[result.status]
            assert trial.user_attrs["arch_id"] == result.arch_id
            assert trial.user_attrs["curve"] == list(result.curve)
            assert len(result.curve) == result.epochs
            assert result.epochs == 3 if result.status == "complete" else result.epochs < 3
            if result.status == "complete":
                assert trial.values == [result.accuracy, result.cost.params, result.cost.flops]
        assert len({result.arch_id for result in results}) == 8

    def test_only_complete_trials_leave_weights_and_none_leaves_a_checkpoint(self, finished_run: RunFolder) -> None:
        complete = {result.arch_id for result in finished_run.results() if result.status == "complete"}
        assert {path.name for path in (finished_run.path / "models").iterdir()} == complete
        assert not list((finished_run.path / "checkpoints").iterdir())
        assert not finished_run.tune_path.exists()

    def test_the_test_split_is_read_once_for_each_member_of_the_front(self, finished_run: RunFolder) -> None:
        lines = (finished_run.path / "test.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["arch_id"] for line in lines) == sorted(
            member.arch_id for member in finished_run.front().members
        )
        assert {json.loads(line)["num_images"] for line in lines} == {360}

    def test_weights_that_a_worker_cannot_read_are_an_error_of_one_line(
        self, small: Experiment, finished_run: RunFolder, tmp_path: Path
    ) -> None:
        run = RunFolder(shutil.copytree(finished_run.path, tmp_path / "run"))
        members = run.front().members
        shutil.rmtree(run.model_path(members[-1].arch_id))
        with claim_resources(gpus=0, cpus=2) as resources, pytest.raises(CvtNasError) as error:
            read_test_split(members, TrainingSetup.of(small, run=run, data=None), resources)
        assert members[-1].arch_id in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_run_with_the_same_seed_and_one_worker_is_the_same(self, small: Experiment, tmp_path: Path) -> None:
        runs = [search(small, out=tmp_path / name, cpus=1, trials=2) for name in ("one", "two")]
        timed = {"seconds": 0, "train_seconds": 0, "spent": None}
        for one, two in zip(runs[0].results(), runs[1].results(), strict=True):
            assert dataclasses.replace(one, **timed) == dataclasses.replace(two, **timed)

    def test_a_search_in_which_every_trial_diverges_goes_on_to_its_end_and_exits_with_1_and_the_reason(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        space = tmp_path / "diverging.yaml"
        space.write_text(small_digits(**{"  lr:": "  lr: 1.0e+9\n  optimizer: sgd"}))
        arguments = ["search", "--space", str(space), "--out", str(tmp_path / "run"), "--cpus", "1", "--trials", "2"]
        assert main([*arguments, "--json"]) == 1
        printed, run = capsys.readouterr(), RunFolder.open(tmp_path / "run")
        assert re.fullmatch(
            r"cvt-nas: 2 trials, none complete: 2 diverged "
            r"\((most often: )?loss not finite in epoch \d, after it was rolled back 3 times\)",
            printed.err.splitlines()[-1],
        )
        assert json.loads(printed.out)["statuses"] == {"diverged": 2}
        assert re.match(r"expected: .*; first front after .*\nbottleneck: network; more cores", printed.err)
        assert run.manifest["plan"]["hours"] > 0
        assert [result.status for result in run.results()] == ["diverged"] * 2
        assert all("loss not finite in epoch" in str(result.reason) for result in run.results())
        assert [trial.state for trial in optuna_trials(run)] == [TrialState.FAIL] * 2
        assert not run.front().members
        assert main([*arguments, "--resume"]) == 1
        assert len(run.ended()) == 2, "what diverged would do so again"
        assert "expected: " not in capsys.readouterr().err, "how much of it is over is not known"

    def test_a_trial_that_raises_ends_as_failed_with_its_traceback(self, tmp_path: Path, small: Experiment) -> None:
        run_path = tmp_path / "run"
        blocked = run_path / "checkpoints"
        run_path.mkdir()
        blocked.write_text("a file where the checkpoints' folder should be")
        run = search(small, out=run_path, cpus=1, trials=1)
        assert [result.status for result in run.results()] == ["failed"]
        assert "FileExistsError" in str(run.results()[0].reason)
        assert "Traceback" in run.error_path(0).read_text()

    @pytest.mark.slow
    @pytest.mark.parametrize("full", ["trials.jsonl", "study.journal"])
    def test_a_disk_that_fills_up_ends_the_search_with_its_name_and_nothing_is_lost(
        self, small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
    ) -> None:
        path, is_full, sync = tmp_path / "run", threading.Event(), os.fsync

        def sync_or_fail(file: int) -> None:
            if is_full.is_set() and Path(f"/proc/self/fd/{file}").readlink() == path / full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(file)

        def fill(event: Any) -> None:
            if isinstance(event, TrialResult):
                is_full.set()

        monkeypatch.setattr(os, "fsync", sync_or_fail)
        with pytest.raises(
            RunFolderError, match=r"nothing can be written any more: .*No space left on device.*--resume"
        ):
            search(small, out=path, cpus=2, trials=4, progress=Watch(fill))
        known = RunFolder(path).results()
        is_full.clear()
        assert known
        results = search(small, out=path, cpus=2, trials=4, resume=True).results()
        assert [result.number for result in results] == list(range(4))
        assert set(known) <= set(results)

    def test_a_time_budget_ends_the_search_in_order(self, small: Experiment, tmp_path: Path) -> None:
        started = time.monotonic()
        run = search(small, out=tmp_path / "run", cpus=1, trials=500, time_budget=6)
        assert time.monotonic() - started < 90
        assert len(run.results()) < 500
        assert not run.test_accuracies(), "the test split is for the front of a finished search"
        states = [trial.state for trial in optuna_trials(run)]
        assert TrialState.RUNNING in states, "trials in flight stay open for --resume"

    def test_paused_trials_are_promoted_from_their_checkpoints_across_an_interruption(self, tmp_path: Path) -> None:
        line = "search: {trials: 10, sampler: random, mode: promote, grace_period: 1, reduction_factor: 2, seed: 1}"
        experiment = parse_experiment(small_digits(**{"search:": line}), "promote.yaml")
        stop, paused, promoted, epochs = threading.Event(), set[int](), set[int](), Counter[tuple[int, int]]()

        def follow(event: Any) -> None:
            if isinstance(event, TrialPaused):
                paused.add(event.number)
                if len(paused) == 3:
                    stop.set()
            if isinstance(event, TrialStarted) and event.number in paused:
                promoted.add(event.number)
            if isinstance(event, EpochDone):
                epochs[event.number, event.epoch] += 1

        run = search(experiment, out=tmp_path / "run", cpus=2, stop=stop, progress=Watch(follow))
        ended = {result.number for result in run.results()}
        in_flight = {trial.number for trial in optuna_trials(run) if trial.state == TrialState.RUNNING}
        assert paused - ended <= in_flight, "what is paused stays open"
        assert run.rungs == (1,)
        manifest = json.loads((run.path / "manifest.json").read_text())
        (run.path / "manifest.json").write_text(json.dumps({**manifest, "rungs": [1, 2]}))  # of an earlier version
        run = search(experiment, out=run.path, cpus=2, resume=True, progress=Watch(follow))
        results = run.results()
        assert [result.number for result in results] == list(range(10))
        assert {result.status for result in results} == {"complete", "stopped"}
        assert promoted, "one of ten went on after a pause"
        assert {result.epochs for result in results} == {1, 2, 3}, "it goes on with the rungs that it began with"
        assert all(results[number].epochs > 1 for number in promoted)
        trained_once = {number for number in range(10) if number not in in_flight or number in paused}
        assert all(count == 1 for (number, _), count in epochs.items() if number in trained_once)
        assert all(result.train_seconds > 0 for result in results)
        assert not list((run.path / "checkpoints").iterdir())
        assert run.test_accuracies().keys() == {member.arch_id for member in run.front().members}

    def test_resume_refuses_another_experiment_or_seed(self, finished_run: RunFolder, small: Experiment) -> None:
        other = parse_experiment(small_digits(**{"  epochs:": "  epochs: 4"}), "other.yaml")
        with pytest.raises(RunFolderError, match="was started from another version of the space file"):
            search(other, out=finished_run.path, resume=True)
        with pytest.raises(RunFolderError, match="--seed 5: .* was started with seed 0; leave it out"):
            search(small, out=finished_run.path, resume=True, seed=5)
        with pytest.raises(RunFolderError, match="holds a run already, with 8 of its trials done"):
            search(small, out=finished_run.path, cpus=2)


# --- interruption, from the command line


def start_search(space: Path, out: Path, *more: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    limits = [] if "--address" in more else ["--cpus", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "cvt_nas.cli", "search", "--space", str(space), "--out", str(out), *limits, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal to it is not one to us
        env={**(os.environ if env is None else env), "PYTHONWARNINGS": "ignore"},
    )


def wait_for_results(
    run: Path, num_results: int, process: subprocess.Popen[str], end: Callable[[], object] | None = None
) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        record = run / "trials.jsonl"
        if record.exists() and len(record.read_text().splitlines()) >= num_results:
            return
        time.sleep(0.1)
    pytest.fail(f"no {num_results} results: {process.communicate(timeout=60) if end is None else end()}")


@pytest.mark.slow  # a drill does more of it
def test_a_search_that_is_interrupted_again_and_again_keeps_its_results_and_goes_on(tmp_path: Path) -> None:
    space, out = tmp_path / "small.yaml", tmp_path / "run"
    space.write_text(small_digits(**{"search:": "search: {trials: 10, sampler: random, scheduler: none}"}))
    kept: tuple[TrialResult, ...] = ()
    for how in (signal.SIGINT, signal.SIGTERM):
        process = start_search(space, out, *(["--resume"] if kept else []))
        wait_for_results(out, len(kept) + 2, process)
        process.send_signal(how)
        _, error = process.communicate(timeout=120)
        if how != signal.SIGKILL:
            assert process.returncode == 130
            again = f"cvt-nas search --space {space} --out {out} --resume"
            assert f"of 10 trials are done and kept. Go on with: {again}" in error
        before, kept = kept, RunFolder.open(out).results()
        assert set(before) < set(kept)
    process = start_search(space, out, "--resume", "--json")
    output, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    results = RunFolder.open(out).results()
    assert set(kept) <= set(results)
    assert [result.number for result in results] == list(range(10))
    assert json.loads(output)["trials"] == 10
    assert {trial.state for trial in optuna_trials(RunFolder.open(out))} <= {TrialState.COMPLETE, TrialState.PRUNED}


# --- a cluster


def test_a_search_joins_a_cluster_of_two_nodes_by_its_address(tmp_path: Path) -> None:
    line = "search: {trials: 2, sampler: random, scheduler: none}"
    experiment = parse_experiment(small_digits(**EPOCH, **{"search:": line}), "small.yaml")
    with on_loopback():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            run = search(experiment, out=tmp_path / "run", address=cluster.address)
        finally:
            cluster.shutdown()
    resources = run.manifest["resources"]
    assert (resources["num_nodes"], resources["num_slots"]) == (2, 2)
    assert [result.number for result in run.results()] == [0, 1]


def test_an_address_where_no_cluster_answers_is_one_line(small: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"--address 127.0.0.1:1: no Ray cluster answers \("):
        search(small, out=tmp_path / "run", address="127.0.0.1:1")
    assert not (tmp_path / "run").exists()


# --- several workers

ON_TWO: dict[str, Any] = {"seed": 0, "num_devices": 2, "cpus_per_device": 1, "use_gpus": False}


@pytest.mark.slow
def test_two_workers_train_as_one_with_the_whole_batch(small: Experiment, tmp_path: Path) -> None:
    # without augmentation, which each worker draws for itself, and without batch norm, whose statistics are of a
    # worker's share of the batch
    # and by SGD: where gradients are about 0, Adam makes a step of the sign of what is left by rounding
    plain = dataclasses.replace(small.training, augment=AugmentConfig(), optimizer="sgd", lr=0.05)
    setup = TrainingSetup(
        training=plain,
        data=small.data,
        data_root=None,
        image_size=8,
        num_channels=1,
        num_classes=10,
        run=RunFolder(tmp_path / "two"),
    )
    arch = tiny_arch("linear")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    by_itself = dataclasses.replace(setup, run=RunFolder(tmp_path / "one"))
    alone = list(progress_reports(arch, by_itself, number=0, device=torch.device("cpu"), seed=0))
    with local_ray(num_cpus=2, num_gpus=0):
        together = list(training_reports(arch, setup, number=0, **ON_TWO))
    assert [report["accuracy"] for report in together] == pytest.approx(
        [report["accuracy"] for report in alone], abs=0.006
    )
    one, two = (load_model(each.run.model_path(arch.id)) for each in (by_itself, setup))
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_what_two_workers_keep_is_what_they_evaluated(small: Experiment, tmp_path: Path) -> None:
    setup = TrainingSetup.of(small, run=RunFolder(tmp_path), data=None)
    arch = tiny_arch()
    with local_ray(num_cpus=2, num_gpus=0):
        *_, last = training_reports(arch, setup, number=0, **ON_TWO)
    model = load_model(setup.run.model_path(arch.id))
    found = evaluate(model, setup.open_data(), "search", training=small.training, device=torch.device("cpu"))
    assert found == pytest.approx(last["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_memory_that_runs_out_on_one_worker_ends_all_and_leaves_room_for_another_try(
    small: Experiment, tmp_path: Path
) -> None:
    class Full(TrainingSetup):
        """For the second worker alone."""

        def open_data(self) -> ImageData:
            if torch.distributed.get_rank() == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().open_data()

    class FullInMidEpoch(TrainingSetup):
        """For the second worker alone, once, where all go through their images."""

        def open_data(self) -> ImageData:
            data, marker = super().open_data(), self.run.path / "was-full"
            batches = data.train_batches

            def until_it_is_full(**options):  # no types: what travels to the worker does not know their names
                for number, batch in enumerate(batches(**options)):
                    if number == 3 and torch.distributed.get_rank() == 1 and not marker.exists():
                        marker.touch()
                        raise torch.OutOfMemoryError("CUDA out of memory")
                    yield batch

            data = copy.copy(data)
            data.train_batches = until_it_is_full
            return data

    setup = Full.of(small, run=RunFolder(tmp_path), data=None)
    with local_ray(num_cpus=2, num_gpus=0):
        (report,) = training_reports(tiny_arch(), setup, number=0, **ON_TWO)
        assert (report["status"], report.get("reason")) == ("oom", "CUDA out of memory")
        again = TrainingSetup.of(small, run=RunFolder(tmp_path), data=None)
        reports = list(training_reports(tiny_arch(), again, number=0, **ON_TWO))
        fuller = FullInMidEpoch.of(small, run=RunFolder(tmp_path), data=None)
        halved = list(training_reports(tiny_arch(), fuller, number=1, **ON_TWO))
    share = small.training.batch_size // 2
    for found, at_once in ((reports, share), (halved, share // 2)):
        assert [report["status"] for report in found] == ["running"] * small.training.epochs
        assert {report.get("micro_batch") for report in found} == {at_once}
    assert "device memory ran out" in str(halved[-1].get("reason"))


@contextlib.contextmanager
def ray_head() -> Iterator[tuple[str, str, dict[str, str]]]:
    """A head that `ray start` started: its address, that for Ray's client, and the environment to join it in."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, client_port = one.getsockname()[1], two.getsockname()[1]
    environment = {**os.environ, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0", "PYTHONWARNINGS": "ignore"}
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
         f"--ray-client-server-port={client_port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
         "--disable-usage-stats"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (answers(port) and answers(client_port)):
            time.sleep(0.2)
        yield f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}", environment
    finally:
        head.terminate()
        head.wait(30)


def answers(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow  # the client's search is one, too
def test_the_command_searches_on_a_head_that_ray_start_started(tmp_path: Path) -> None:
    space, out = tmp_path / "small.yaml", tmp_path / "run"
    space.write_text(small_digits(**{"search:": "search: {trials: 2, sampler: random, scheduler: none}"}))
    with ray_head() as (address, _, environment):
        process = start_search(space, out, "--address", address, env=environment)
        output, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert [result.status for result in RunFolder.open(out).results()] == ["complete"] * 2
    assert "Pareto front" in output
    assert "trials 2/2" in error


@pytest.mark.slow
def test_a_search_through_ray_s_client_stops_in_order_and_goes_on(tmp_path: Path) -> None:
    space, out = tmp_path / "small.yaml", tmp_path / "run"
    space.write_text(small_digits(**{"search:": "search: {trials: 5, sampler: random, scheduler: none}"}))
    with ray_head() as (_, address, environment):
        process = start_search(space, out, "--address", address, env=environment)
        wait_for_results(out, 1, process)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 130, error
        assert f"of 5 trials are done and kept. Go on with: cvt-nas search --space {space} --out {out} " in error
        kept = RunFolder.open(out).results()
        assert 1 <= len(kept) < 5
        process = start_search(space, out, "--address", address, "--resume", env=environment)
        output, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    results = RunFolder.open(out).results()
    assert set(kept) <= set(results)
    assert [(result.number, result.status) for result in results] == [(number, "complete") for number in range(5)]
    assert "Pareto front" in output
    assert "trials 5/5" in error


# what stands in for SLURM's commands and, to stay on this machine's loopback, around Ray's
SHIMS = {
    "srun": 'while [[ $1 == -* ]]; do case $1 in -w | -x) shift 2 ;; *) shift ;; esac; done; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "127.0.0.1\\n127.0.0.1\\n"; else echo "$@" >> "$REQUEUED"; fi',
    "ray": (
        'if [ "$1" = start ]; then set -- "$@" --node-ip-address=127.0.0.1 --num-cpus=1 --disable-usage-stats; fi\n'
        f"exec {sys.executable} -c 'import sys\n"
        "from ray._private import ray_constants, services\n"
        'ray_constants.ENABLE_RAY_CLUSTER = sys.argv[1:3] == ["start", "--address"]\n'
        "services.resolve_ip_for_localhost = lambda host: host\n"
        "from ray.scripts.scripts import main\n"
        'main()\' "$@"'
    ),
    "cvt-nas": f'exec {sys.executable} -m cvt_nas.cli "$@"',
}


@pytest.mark.slow
def test_the_slurm_script_of_the_docs_searches_on_two_nodes_stops_before_its_time_is_over_and_queues_again(
    tmp_path: Path,
) -> None:
    text = (SPACES.parent / "docs" / "guides" / "clusters.md").read_text()
    script = text[text.index("#!/bin/bash") :].split("```")[0]
    (tmp_path / "bin").mkdir()
    for name, body in SHIMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "cvt13.yaml").write_text(
        small_digits(**{"search:": "search: {trials: 6, sampler: random, scheduler: none}"})
    )
    out, requeued = tmp_path / "cvt13", tmp_path / "requeued"
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "REQUEUED": str(requeued), "PYTHONWARNINGS": "ignore",
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    }  # fmt: skip

    def start_job() -> subprocess.Popen[str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        job = tmp_path / "job.sh"
        job.write_text(script.replace("/shared/cvt13", str(out)).replace("6379", port))
        return subprocess.Popen(
            ["bash", str(job)], cwd=tmp_path, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def end_job(job: subprocess.Popen[str], seconds: float) -> str:
        """Waits for the script; then all that it left is killed, as SLURM does."""
        try:
            job.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        return job.communicate()[0]

    job = start_job()
    wait_for_results(out, 1, job, end=lambda: end_job(job, 0))
    os.kill(job.pid, signal.SIGTERM)  # to the script alone, by `--signal=B:TERM@300`
    said = end_job(job, 120)
    assert requeued.read_text() == "requeue 7\n", said
    assert "of 6 trials are done and kept" in said
    kept = RunFolder.open(out).results()
    assert 1 <= len(kept) < 6
    job = start_job()
    said = end_job(job, 240)
    assert job.returncode == 0, said
    run = RunFolder.open(out)
    assert set(kept) <= set(run.results())
    assert [result.number for result in run.results()] == list(range(6))
    assert run.manifest["resources"]["num_nodes"] == 2
