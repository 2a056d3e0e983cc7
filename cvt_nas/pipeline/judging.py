"""Judges a supernet by the architectures that are trained so far."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.launch.judges import measure_inherited
from cvt_nas.launch.resources import Resources
from cvt_nas.pipeline.reuse import Alone
from cvt_nas.pipeline.sample import Member
from cvt_nas.propose.correction import judge_correction
from cvt_nas.propose.observations import Observation
from cvt_nas.results import (
    Candidate,
    Choice,
    Inherited,
    JudgedArch,
    Origin,
    Question,
    Reused,
    SupernetQuality,
    answer_of,
    choice_effects,
    judge_supernet,
    questions_of,
    smoothed_accuracies,
)
from cvt_nas.results.telling import MIN_TOLD
from cvt_nas.run import RunFolder
from cvt_nas.space import Genome, SearchSpace

MIN_JUDGED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The first trained architectures of the sample, and what they tell about the supernet.

    Args:
        accuracies: Accuracies after standalone training, `(members, seeds)`.
        inherited: What architectures inherit, by their id.
        smoothed: Their smoothed accuracies, by which the supernet ranks; see `smoothed_accuracies`.
        questions: Questions about the supernet, with the answers so far.
    """

    members: tuple[Member, ...]
    accuracies: np.ndarray
    inherited: Mapping[str, Inherited]
    smoothed: Mapping[str, float]
    questions: tuple[Question, ...]

    @property
    def is_told(self) -> bool:
        return answer_of(self.questions) != "cannot tell yet"

    def line(self) -> str:
        """One line of progress for the user."""
        told = "; ".join(
            f"{asked.name} {asked.value:.2f}"
            + ("" if asked.low is None else f" ({asked.low:.2f} to {asked.high:.2f}), bar {asked.bar}")
            for asked in self.questions
        )
        answer = {"yes": "ranks well enough", "no": "does not rank well enough"}.get(answer_of(self.questions))
        return f"after {len(self.members)} architectures: {told}: {answer or 'cannot tell yet'}"

    def quality(
        self,
        space: SearchSpace,
        *,
        others: Sequence[Alone],
        candidates: Sequence[Candidate],
        origin: Origin,
        seed: int,
        is_reusing: bool,
    ) -> SupernetQuality:
        """The full judgement of the supernet.

        Args:
            others: Architectures that other runs trained.
            candidates: Candidates of the search, with their inherited accuracies.
            is_reusing: Whether trainings of other runs were to be reused.
        """
        ours = {member.arch.id for member in self.members}
        selected = [each for each in others if each.arch.id not in ours]
        truth = self.accuracies.mean(axis=1)
        inherited = np.array([self.smoothed[member.arch.id] for member in self.members])
        costs = [member.cost for member in self.members]
        genomes = [space.encode(each.arch) for each in selected]
        effects = choice_effects(
            np.concatenate([inherited, [self.smoothed[each.arch.id] for each in selected]]),
            np.concatenate([truth, [np.mean(each.accuracies) for each in selected]]),
            [cost.flops for cost in (*costs, *map(space.cost, genomes))],
            choices_of(space, [*(member.genome for member in self.members), *genomes]),
        )
        sample = [
            Observation(genome=member.genome, curve=(float(own),), status="complete", inherited=float(early))
            for member, own, early in zip(self.members, truth, inherited, strict=True)
        ]  # fmt: skip
        more = [
            Observation(
                genome=genome, curve=(float(np.mean(each.accuracies)),), status="complete",
                inherited=self.smoothed[each.arch.id],
            )
            for genome, each in zip(genomes, selected, strict=True)
        ]  # fmt: skip
        trained = ours | {each.arch.id for each in selected}
        more += [
            Observation(genome=space.encode(each.arch), curve=(), status="stopped", inherited=accuracy)
            for each, accuracy in zip(candidates, smoothed_accuracies(candidates), strict=True)
            if each.arch.id not in trained
        ]
        num_reused = sum(bool(member.reused) for member in self.members)
        return judge_supernet(
            [self.inherited[member.arch.id].accuracy for member in self.members],
            self.accuracies,
            smoothed=inherited.tolist(),
            params=[cost.params for cost in costs],
            flops=[cost.flops for cost in costs],
            origin=origin,
            effects=effects,
            reused=Reused(sample=num_reused, others=len(selected)) if is_reusing else None,
            correction=judge_correction(space, sample, more, seed=seed),
            archs=[
                JudgedArch(
                    id=member.arch.id, options=_options(space, member.genome), params=member.cost.params,
                    flops=member.cost.flops, inherited=float(early), standalone=float(own),
                )
                for member, own, early in zip(self.members, truth, inherited, strict=True)
            ],
        )  # fmt: skip


def look(
    whole: Sequence[tuple[Member, tuple[float, ...]]], inherited: Mapping[str, Inherited], *, until_told: bool
) -> Judged | None:
    """Judges by as few of the first architectures as are enough for an answer, or by all. None if there are fewer than
    8.

    Without `until_told`, it judges by all. With it, the result is that of the first look with an answer, so it does not
    depend on how many trainings were in flight.
    """
    if len(whole) < MIN_JUDGED:
        return None
    smoothed = dict(zip(inherited, smoothed_accuracies([*inherited.values()]), strict=True))
    for number in range(MIN_TOLD, len(whole)) if until_told else ():
        found = _judged(whole[:number], inherited, smoothed)
        if found.is_told:
            return found
    return _judged(whole, inherited, smoothed)


def _judged(
    whole: Sequence[tuple[Member, tuple[float, ...]]], inherited: Mapping[str, Inherited], smoothed: Mapping[str, float]
) -> Judged:
    members, accuracies = tuple(member for member, _ in whole), np.array([own for _, own in whole])
    flops = np.array([member.cost.flops for member in members])
    ours = np.array([smoothed[member.arch.id] for member in members])
    return Judged(
        members=members,
        accuracies=accuracies,
        inherited=inherited,
        smoothed=smoothed,
        questions=questions_of(ours, accuracies, flops),
    )


def inherited_of(
    archs: Sequence[ArchConfig],
    experiment: Experiment,
    run: RunFolder,
    setup: TrainingSetup,
    resources: Resources,
    *,
    stop: threading.Event,
) -> dict[str, Inherited] | None:
    """What architectures inherit, by their id. None if stopped. Earlier measurements are reused."""
    known: dict[str, Inherited] = {each.arch.id: each for each in run.supernet.inherited()}
    missing = list({arch.id: arch for arch in archs if arch.id not in known}.values())
    measured = measure_inherited(missing, setup, resources, stop=stop) if missing else []
    if measured is None:
        return None
    for arch, found in zip(missing, measured, strict=True):
        cost = experiment.space.cost(experiment.space.encode(arch))
        run.supernet.append_inherited(Candidate(number=len(known), arch=arch, cost=cost, seconds=0.0, **asdict(found)))
        known[arch.id] = found
    return known


def choices_of(space: SearchSpace, genomes: Sequence[Genome]) -> list[Choice]:
    """The choices of a space, with the options of each of `genomes`."""
    chosen, active = np.array(genomes), np.array([space.active(genome) for genome in genomes])
    return [
        Choice(gene.name, tuple(map(str, gene.options)), gene.is_ordinal, chosen[:, place], active[:, place])
        for place, gene in enumerate(space.genes)
    ]


def _options(space: SearchSpace, genome: Genome) -> dict[str, str]:
    genes = zip(space.genes, genome, space.active(genome), strict=True)
    return {gene.name: str(gene.options[index]) for gene, index, is_active in genes if is_active}
