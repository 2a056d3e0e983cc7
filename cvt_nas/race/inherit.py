"""Before a race with `weights: supernet`: the supernet is trained, and candidates are ranked by what they inherit.

Ranking takes seconds an architecture, too little to begin a trial for: a worker holds the supernet and the images as
long as there are candidates, and has its next one before it is done with the last.
"""

import dataclasses
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
import torch

from cvt_nas.arch import ArchConfig, Cost, arch_from_dict, arch_to_dict
from cvt_nas.config import Experiment
from cvt_nas.data import save_preprocessing
from cvt_nas.distributed import ending_in, get_from_workers, train_supernet_on_workers
from cvt_nas.engine import TrainingSetup, open_inheritance, prepare_device
from cvt_nas.errors import SearchFailedError, StorageError
from cvt_nas.model import save_model
from cvt_nas.race.asha import pareto_ranks
from cvt_nas.race.events import RankingStarted, SupernetEpochDone
from cvt_nas.race.journal import open_journal
from cvt_nas.race.resources import Resources
from cvt_nas.race.samplers import derive_seed
from cvt_nas.race.study import Study
from cvt_nas.results import ROOM, Candidate, Metric, RunFolder, TrialResult, exists
from cvt_nas.space import ArchSpace, Genome

NUM_SCREENING_IMAGES = 2_048
_IN_HAND = 2  # candidates of a worker, so that it does not wait for the next one's proposal
_MAX_RESTARTS = 3  # of a worker
_LEAST_SHARE = 32  # images of a batch, on which batch norm still has something to go by


def train_shared_weights(
    run: RunFolder,
    setup: TrainingSetup,
    resources: Resources,
    *,
    seed: int,
    stop: threading.Event,
    initial: Path | None = None,
) -> Iterator[SupernetEpochDone]:
    """Trains the supernet of `setup.shared` on all the devices, until its weights are in the run folder; where there is
    a phase, those of its end.

    Where `stop` is set, the workers write a checkpoint, from which the next call goes on.

    Args:
        initial: Weights to begin with; see `model.read_weights`.

    Raises:
        SearchFailedError: It diverged, ran out of device memory, or its workers died again and again.
        StorageError: Nothing can be written any more.
    """
    assert setup.shared is not None, "the caller knows that there is a supernet"
    if exists(setup.weights_path):
        return
    run.stop_supernet(asked=False)
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.5):
            if stop.is_set():
                run.stop_supernet()
                return

    threading.Thread(target=watch, name="watch", daemon=True).start()
    room: dict[str, Any] = {}
    num_workers, cpus_per_worker = supernet_workers(resources, batch_size=setup.shared.config.batch_size)
    try:
        with ending_in(SearchFailedError, "the training of the supernet ended"):
            for report in train_supernet_on_workers(
                dataclasses.replace(setup, num_threads=max(int(cpus_per_worker), 1), memory_share=1.0),
                seed=derive_seed(seed, 0, "supernet"),
                num_workers=num_workers,
                cpus_per_worker=cpus_per_worker,
                use_gpus=resources.gpus_per_trial > 0,
                initial=initial,
            ):
                if report["status"] == "storage":
                    raise StorageError(report["reason"])
                if report["status"] != "running":
                    raise SearchFailedError(f"the training of the supernet ended: {report['reason']}")
                found = {name: report[name] for name in ROOM if name in report}
                if found != room:
                    room = found
                    run.amend_manifest(supernet=room)
                yield SupernetEpochDone(
                    epoch=report["epoch"],
                    num_epochs=setup.shared.config.epochs,
                    losses=report["losses"],
                    note=report.get("note"),
                )
    finally:
        is_over.set()


def supernet_workers(resources: Resources, *, batch_size: int) -> tuple[int, float]:
    """How many, and CPUs of each: one for each GPU, however many trials share it, or as the batch has images for."""
    if resources.num_gpus > 0:
        return resources.num_gpus, resources.cpus_per_gpu
    num_cpus = resources.num_slots * resources.cpus_per_trial
    num_workers = min(resources.num_slots, max(batch_size // _LEAST_SHARE, 1))
    # of several nodes it is not known whether one has more than a trial's
    return num_workers, num_cpus / num_workers if resources.num_nodes == 1 else resources.cpus_per_trial


class _Judge:
    """A worker that measures what subnets inherit."""

    def __init__(self, setup: TrainingSetup) -> None:
        torch.set_num_threads(setup.num_threads)
        prepare_device(setup.torch_device)
        self._inheritance, self._data = open_inheritance(setup, setup.torch_device), setup.open_data()
        self._run = setup.run

    def judge(self, arch: dict[str, Any], bar: float | None) -> tuple[float, int, float]:
        """Accuracy, the number of images that it is of, and seconds; see `Inheritance.accuracy`."""
        started = time.perf_counter()
        accuracy, num_images = self._inheritance.accuracy(
            arch_from_dict(arch), bar=bar, num_screening_images=NUM_SCREENING_IMAGES
        )
        return accuracy, num_images, time.perf_counter() - started

    def save(self, arch: dict[str, Any]) -> None:
        """Keeps the weights of a subnet as its architecture's."""
        model = self._inheritance.model(arch_from_dict(arch))
        folder = self._run.model_path(model.arch.id)
        save_model(model, folder)
        save_preprocessing(self._data, folder)


def rank_candidates(
    experiment: Experiment,
    run: RunFolder,
    setup: TrainingSetup,
    resources: Resources,
    *,
    space: ArchSpace,
    seed: int,
    stop: threading.Event,
) -> Iterator[RankingStarted | Candidate]:
    """Proposes `search.candidates` architectures of `space` and measures what they inherit, until `stop` is set.

    Every one is in the run's record before it is yielded.

    Raises:
        ray.exceptions.RayError: Workers died again and again, or the code raised.
    """
    size = math.prod(len(gene.options) for gene in space.genes)
    num_planned, ended = min(experiment.search.candidates, size), run.candidates()
    yield RankingStarted(num_planned=num_planned, ended=ended)
    archs = {name: experiment.space.decode(genome) for name, genome in experiment.anchors.items()}
    study = Study(
        space,
        metrics=experiment.objectives,
        sampler=experiment.search.sampler,
        storage=open_journal(run.candidates_journal_path),
        num_trials=num_planned,
        seed=derive_seed(seed, 0, "candidates"),
        anchors={name: space.encode(arch) for name, arch in archs.items() if arch in space},
        recorded=ended,
    )
    if study.is_done:
        return
    bars = _Bars(ended)
    with _Judges(setup, resources) as judges:
        while True:
            while judges.num_free and not stop.is_set() and (proposal := study.ask()) is not None:
                # of those that one worker has surely judged by now, so that with one an interruption changes nothing
                bar = bars.below(proposal.cost, before=proposal.number - judges.num_in_hand_at_most + 1)
                judges.submit(proposal, space.decode(proposal.genome), bar)
            judged = judges.next()
            if judged is None:
                return
            proposal, accuracy, num_images, seconds = judged
            candidate = Candidate(
                number=proposal.number,
                arch=space.decode(proposal.genome),
                cost=proposal.cost,
                accuracy=accuracy,
                num_images=num_images,
                seconds=seconds,
            )
            run.append_candidate(candidate)
            study.tell(candidate)
            bars.add(candidate)
            yield candidate


def num_judges(resources: Resources) -> int:
    """Workers that measure what subnets inherit."""
    return resources.num_gpus if resources.gpus_per_trial >= 1 else resources.num_slots


class _Judges:
    """The workers: one for each GPU, or for each of the trials that share one, or each CPU.

    One that dies is started again by Ray, and what it had in hand with it.
    """

    def __init__(self, setup: TrainingSetup, resources: Resources) -> None:
        self._in_hand: dict[Any, tuple[int, Any]] = {}
        num_workers = num_judges(resources)
        if resources.gpus_per_trial >= 1:
            num_cpus, num_gpus = resources.cpus_per_gpu, 1.0
        else:
            num_cpus, num_gpus = resources.cpus_per_trial, resources.gpus_per_trial
        worker: Any = ray.remote(_Judge).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=_MAX_RESTARTS, max_task_retries=_MAX_RESTARTS
        )
        self._workers: list[Any] = [worker.remote(setup) for _ in range(num_workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in self._workers:  # whose devices the trials wait for
            ray.kill(worker)

    @property
    def num_in_hand_at_most(self) -> int:
        return _IN_HAND * len(self._workers)

    @property
    def num_free(self) -> int:
        """How many more they would take."""
        return self.num_in_hand_at_most - len(self._in_hand)

    def submit(self, token: Any, arch: ArchConfig, bar: float | None = None) -> None:
        """Gives it to the worker that has the least in hand; `next` returns `token` with the result."""
        load = Counter(index for index, _ in self._in_hand.values())
        index = min(range(len(self._workers)), key=lambda index: load[index])
        self._in_hand[self._workers[index].judge.remote(arch_to_dict(arch), bar)] = index, token

    def next(self) -> tuple[Any, float, int, float] | None:
        """The next that is done: its token, accuracy, images and seconds; None where nothing is in hand."""
        if not self._in_hand:
            return None
        (done, *_), _ = ray.wait(list(self._in_hand), num_returns=1)
        _, token = self._in_hand.pop(done)
        return token, *get_from_workers(done)

    def save(self, archs: Sequence[ArchConfig]) -> None:
        """Keeps the weights of these subnets as their architectures'."""
        turns = zip(itertools.cycle(self._workers), archs, strict=False)
        get_from_workers([worker.save.remote(arch_to_dict(arch)) for worker, arch in turns])


def inherited_accuracies(
    archs: Sequence[ArchConfig],
    setup: TrainingSetup,
    resources: Resources,
    *,
    stop: threading.Event,
    is_screening: bool = False,
) -> list[float] | None:
    """Of each; None where `stop` is set before all are known.

    Args:
        is_screening: Whether to go by the part of the search split that all candidates are screened on, and not by all
            of it.
    """
    bar = math.inf if is_screening else None  # which is out of reach after that part
    found, left = [0.0] * len(archs), iter(enumerate(archs))
    with _Judges(setup, resources) as judges:
        while not stop.is_set():
            for index, arch in itertools.islice(left, judges.num_free):
                judges.submit(index, arch, bar)
            judged = judges.next()
            if judged is None:
                return found
            index, found[index], _, _ = judged
    return None


def heirs(experiment: Experiment, candidates: Sequence[Candidate], number: int) -> dict[str, Genome]:
    """The best of the candidates by accuracy and cost together, best first, named for the journal.

    Those that were out of reach after part of the images come last.
    """
    whole = _measured_whole(candidates)
    numbers = {candidate.number for candidate in whole}
    chosen: list[Candidate] = []
    for group in (whole, [candidate for candidate in candidates if candidate.number not in numbers]):
        losses = np.array([[_loss_of(candidate, metric) for metric in experiment.objectives] for candidate in group])
        chosen += [group[index] for index in (np.argsort(pareto_ranks(losses)) if group else [])]
    return {f"candidate {found.number}": experiment.space.encode(found.arch) for found in chosen[:number]}


def record_as_trials(run: RunFolder, setup: TrainingSetup, resources: Resources) -> None:
    """Where nothing is trained on: the candidates are the trials, and the front's members keep their weights.

    Of a candidate that was out of reach after part of the images, the trial counts as stopped.
    """
    candidates, known = run.candidates(), {result.number for result in run.results()}
    whole = {candidate.number for candidate in _measured_whole(candidates)}
    for candidate in candidates:
        if candidate.number not in known:
            run.append(
                TrialResult(
                    number=candidate.number,
                    arch=candidate.arch,
                    status="complete" if candidate.number in whole else "stopped",
                    epochs=0,
                    accuracy=candidate.accuracy,
                    cost=candidate.cost,
                    curve=(),
                    seconds=candidate.seconds,
                    train_seconds=0.0,
                    seed=0,
                    device=resources.device,
                    inherited=candidate.accuracy,
                )
            )
    # the preprocessing is what a worker writes last: without it, it was killed at it
    members = [m.arch for m in run.front().members if not exists(run.model_path(m.arch_id) / "preprocessing.json")]
    if members:
        with _Judges(setup, resources) as judges:
            judges.save(members)


def _loss_of(candidate: Candidate, metric: Metric) -> float:
    return 1 - candidate.accuracy if metric == "accuracy" else float(getattr(candidate.cost, metric))


def _measured_whole(candidates: Sequence[Candidate]) -> list[Candidate]:
    most = max((candidate.num_images for candidate in candidates), default=0)
    return [candidate for candidate in candidates if candidate.num_images == most]


class _Bars:
    """What a candidate has to beat: the best accuracy, on all the images, at no more params and FLOPs."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._known = _measured_whole(candidates)

    def add(self, candidate: Candidate) -> None:
        if not self._known or candidate.num_images >= self._known[0].num_images:
            self._known.append(candidate)

    def below(self, cost: Cost, *, before: int) -> float | None:
        """Of the candidates with numbers below `before`; None where none of them costs so little."""
        found = [
            known.accuracy
            for known in self._known
            if known.number < before
            and known.cost.params <= cost.params
            and known.cost.flops <= cost.flops
            and known.cost.latency_us <= cost.latency_us
        ]
        return max(found, default=None)
