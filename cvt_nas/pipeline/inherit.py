"""Trains the supernet before a race with `weights: supernet`, and ranks candidates by their inherited accuracies."""

import dataclasses
import math
import threading
from collections.abc import Generator, Sequence

import numpy as np

from cvt_nas.arch import Cost
from cvt_nas.config import Experiment
from cvt_nas.engine import supernet_reports
from cvt_nas.errors import SearchFailedError, StorageError
from cvt_nas.launch.devices import ending_in
from cvt_nas.launch.judges import Judges, supernet_workers
from cvt_nas.launch.ranks import reports_of_ranks
from cvt_nas.launch.search import Search
from cvt_nas.propose.asha import pareto_ranks
from cvt_nas.propose.journal import open_journal
from cvt_nas.propose.samplers import derive_seed
from cvt_nas.propose.study import Proposal, Study
from cvt_nas.results import ROOM, Candidate, TrialResult, smoothed_accuracies
from cvt_nas.results.events import RankingStarted, SupernetEpochDone
from cvt_nas.space import ArchSpace, Genome


def train_weights(search: Search) -> Generator[SupernetEpochDone, None, bool]:
    """Trains the supernet on all devices, until its weights are in the run folder. With phases, it trains the phase of
    `search.setup`.

    If the search is to stop, the workers write a checkpoint, and the next call continues from it.

    Returns:
        Whether the weights are in the run folder.

    Raises:
        SearchFailedError: The training cannot go on.
        StorageError: Nothing can be written any more.
    """
    run, setup, stop = search.run, search.setup, search.stop
    assert setup.shared is not None, "the caller knows that there is a supernet"
    if run.store.exists(setup.weights_path):
        return True
    run.supernet.take_back_stop()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.5):
            if stop.is_set():
                run.supernet.ask_to_stop()
                return

    threading.Thread(target=watch, name="watch", daemon=True).start()
    room: dict[str, object] = {}
    num_workers, cpus_per_worker = supernet_workers(search.resources, batch_size=setup.shared.config.batch_size)
    try:
        with ending_in(SearchFailedError, "the training of the supernet ended"):
            for report in reports_of_ranks(
                supernet_reports,
                setup=dataclasses.replace(setup, num_threads=max(int(cpus_per_worker), 1), memory_share=1.0),
                num_ranks=num_workers,
                cpus_per_rank=cpus_per_worker,
                use_gpus=search.resources.gpus_per_trial > 0,
                seed=derive_seed(search.seed, 0, "supernet"),
            ):
                if report["status"] == "storage":
                    raise StorageError(report.get("reason"))
                if report["status"] != "running":
                    raise SearchFailedError(f"the training of the supernet ended: {report.get('reason')}")
                found = {name: value for name, value in report.items() if name in ROOM}
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
    return run.store.exists(setup.weights_path)


def rank_candidates(search: Search, space: ArchSpace) -> Generator[RankingStarted | Candidate, None, bool]:
    """Proposes `search.candidates` architectures of `space`, and measures what they inherit.

    Each candidate is recorded in the run before it is yielded. They are recorded in the order of their proposals, and a
    proposal depends on the same candidates however fast each worker is. If the search is to stop, it does not wait for
    candidates in hand. They are measured when it goes on, so it goes on as if it had not stopped. All this holds for
    one number of workers; with another one, more or fewer candidates are in hand.

    Returns:
        Whether all candidates are ranked.

    Raises:
        WorkersFailedError: Workers died again and again.
    """
    experiment, run = search.experiment, search.run
    size = math.prod(len(gene.options) for gene in space.genes)
    num_planned, ended = min(experiment.search.candidates, size), run.candidates()
    yield RankingStarted(num_planned=num_planned, ended=ended)
    archs = {name: experiment.space.decode(genome) for name, genome in experiment.anchors.items()}
    study = Study(
        space,
        metrics=experiment.objectives,
        sampler=experiment.search.sampler,
        storage=open_journal(run.candidates_journal_path, run.store),
        num_trials=num_planned,
        num_epochs=1,
        seed=derive_seed(search.seed, 0, "candidates"),
        anchors={name: space.encode(arch) for name, arch in archs.items() if arch in space},
        recorded=ended,
    )
    if study.is_done:
        return True
    if search.stop.is_set():
        return False
    bars = _Bars(ended)
    with Judges[Proposal](search.setup, search.resources) as judges:
        while True:
            while judges.num_free and not search.stop.is_set() and (proposal := study.ask()) is not None:
                # counts only candidates that are surely judged
                bar = bars.below(proposal.cost, before=proposal.number - judges.num_in_hand_at_most + 1)
                judges.submit(proposal, space.decode(proposal.genome), bar)
            if search.stop.is_set() or (judged := judges.next()) is None:
                return study.is_done
            proposal, found, seconds = judged
            arch = space.decode(proposal.genome)
            candidate = Candidate(
                number=proposal.number, arch=arch, cost=proposal.cost, seconds=seconds, **dataclasses.asdict(found)
            )
            run.append_candidate(candidate)
            study.tell(candidate)
            bars.add(candidate)
            yield candidate


def heirs(experiment: Experiment, candidates: Sequence[Candidate]) -> dict[str, Genome]:
    """The candidates by smoothed accuracy and cost together, best first, with names for the journal.

    Candidates that were given up after a part of the images come last.
    """
    whole = measured_whole(candidates)
    numbers = {candidate.number for candidate in whole}
    chosen: list[Candidate] = []
    for group in (whole, [candidate for candidate in candidates if candidate.number not in numbers]):
        losses = np.array([
            [1 - accuracy if metric == "accuracy" else candidate.cost.loss(metric) for metric in experiment.objectives]
            for candidate, accuracy in zip(group, smoothed_accuracies(group), strict=True)
        ])  # fmt: skip
        chosen += [group[index] for index in (np.argsort(pareto_ranks(losses)) if group else [])]
    return {f"candidate {found.number}": experiment.space.encode(found.arch) for found in chosen}


def record_as_trials(search: Search) -> None:
    """Records the candidates as trials, for a search without further training. Members of the front keep their weights.

    A candidate that was given up after a part of the images becomes a stopped trial.
    """
    run = search.run
    candidates, known = run.candidates(), {result.number for result in run.results()}
    whole = {candidate.number for candidate in measured_whole(candidates)}
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
                    device=search.resources.device,
                    inherited=candidate.accuracy,
                )
            )
    members = [member.arch for member in run.front().members if not run.has_model(member.arch_id)]
    if members:
        with Judges[None](search.setup, search.resources) as judges:
            judges.save(members)


def measured_whole(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates whose accuracy was measured on all images."""
    most = max((candidate.num_images for candidate in candidates), default=0)
    return [candidate for candidate in candidates if candidate.num_images == most]


class _Bars:
    """The bar of each candidate: the best accuracy, on all images, of a candidate that costs no more."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._known = measured_whole(candidates)

    def add(self, candidate: Candidate) -> None:
        if not self._known or candidate.num_images >= self._known[0].num_images:
            self._known.append(candidate)

    def below(self, cost: Cost, *, before: int) -> float | None:
        """The best accuracy among candidates with numbers below `before` that cost at most `cost`. None if there are
        none."""
        found = [
            known.accuracy
            for known in self._known
            if known.number < before
            and known.cost.params <= cost.params
            and known.cost.flops <= cost.flops
            and known.cost.latency_us <= cost.latency_us
            and known.cost.value_bytes <= cost.value_bytes
        ]
        return max(found, default=None)
