"""The sample of architectures that judge a supernet: their order, and their standalone trainings."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cvt_nas.arch import ArchConfig, Cost
from cvt_nas.pipeline.reuse import Alone
from cvt_nas.propose.samplers import derive_seed
from cvt_nas.propose.study import Proposal
from cvt_nas.results import FAILURES, TrialResult, further_number, round_and_trial
from cvt_nas.space import Genome, SearchSpace

_NUM_STRATA = 10  # of log-FLOPs; an architecture can replace another one of its stratum


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """An architecture of the sample.

    Args:
        index: Number of the architecture within the numbers of its trainings; see `further_number`.
        reused: Accuracies after trainings in other runs.
    """

    index: int
    genome: Genome
    arch: ArchConfig
    cost: Cost
    reused: tuple[float, ...] = ()


def planned(
    genomes: Sequence[Genome], space: SearchSpace, alone: Sequence[Alone], *, ended: Iterable[TrialResult]
) -> list[Member]:
    """The sample in order: `genomes`, some of them replaced by drawn architectures that are trained already.

    A planned architecture stays if it has any trainings of its own. The others are replaced within their stratum of
    FLOPs, as far as there are replacements, so the sample stays spread as planned.

    Args:
        alone: Architectures that other runs trained.
        ended: Trainings of this sample that ended before.
    """
    numbers = {result.arch_id: round_and_trial(result.number)[1] for result in ended}
    costs = [space.cost(genome) for genome in genomes]
    archs = [space.decode(genome) for genome in genomes]
    drawn = {each.arch.id: each for each in alone if each.is_drawn}
    logs = np.log([cost.flops for cost in costs])
    edges = np.linspace(logs.min(), logs.max(), _NUM_STRATA + 1)[1:-1]
    planned_ids = {arch.id for arch in archs}
    spare: dict[int, list[Alone]] = {}
    for each in drawn.values():
        if each.arch.id not in planned_ids:
            log = math.log(space.cost(space.encode(each.arch)).flops)
            if logs.min() <= log <= logs.max():
                spare.setdefault(int(np.searchsorted(edges, log)), []).append(each)
    members = []
    for index, (genome, arch, cost) in enumerate(zip(genomes, archs, costs, strict=True)):
        own = drawn.get(arch.id)
        others = spare.get(int(np.searchsorted(edges, logs[index])), [])
        if own is None and arch.id not in numbers and others:
            members.append(_standing_in(others.pop(0), space))
            continue
        reused = () if own is None else own.accuracies
        # one that stood in for another before, in a smaller sample, keeps the number of its trainings
        index = numbers.get(arch.id, index)
        members.append(Member(index=index, genome=genome, arch=arch, cost=cost, reused=reused))
    return members


def _standing_in(each: Alone, space: SearchSpace) -> Member:
    genome = space.encode(each.arch)
    index = (
        1_000 + int(hashlib.sha256(each.arch.id.encode()).hexdigest(), 16) % 900_000
    )  # a function of the architecture
    return Member(index=index, genome=genome, arch=each.arch, cost=space.cost(genome), reused=each.accuracies)


def trainings(members: Sequence[Member], *, seed: int, num_seeds: int) -> list[Proposal]:
    """Trainings that are needed, member by member, so that the first members are complete early."""
    return [
        Proposal(
            number=further_number(member.index, round_),
            genome=member.genome,
            cost=member.cost,
            seed=derive_seed(seed, member.index, "standalone", round_),
        )
        for member in members
        for round_ in range(1, num_seeds - len(member.reused) + 1)
    ]


def ended_members(
    members: Sequence[Member], results: Iterable[TrialResult], *, num_seeds: int
) -> list[tuple[Member, tuple[float, ...]]]:
    """Members whose trainings are all complete, with their accuracies, in order.

    The list ends before the first member with a training that has not ended. Small networks end first, so members
    counted as they end would be biased towards small networks.
    """
    by_index: dict[int, Mapping[int, TrialResult]] = {}
    for result in results:
        round_, index = round_and_trial(result.number)
        by_index[index] = {**by_index.get(index, {}), round_: result}
    whole = []
    for member in members:
        own = [by_index.get(member.index, {}).get(round_) for round_ in range(1, num_seeds - len(member.reused) + 1)]
        if any(result is None for result in own):
            return whole
        ended = [result for result in own if result is not None]
        if all(result.status == "complete" for result in ended):
            accuracies = (*member.reused[:num_seeds], *(result.metric("accuracy") for result in ended))
            whole.append((member, accuracies))
    return whole


def is_over(result: TrialResult) -> bool:
    """Whether a training is final. One that failed or ran out of memory is tried again."""
    return result.status not in FAILURES
