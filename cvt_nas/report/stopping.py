"""Costs and savings of stopping at a rung.

They are computed from the curves of complete trials, and from the expectations of a model of all curves for the stopped
trials.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvt_nas.config import space_file_of
from cvt_nas.config.sections import SearchConfig
from cvt_nas.errors import ArchError, RunFolderError, SpaceFileError
from cvt_nas.propose.asha import RANKINGS, Ranking, losses_of_cost, pareto_ranks
from cvt_nas.propose.earlier import beliefs_of
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.results import ParetoFront, TrialResult
from cvt_nas.results.rungs import MIN_TRIALS
from cvt_nas.run import RunFolder
from cvt_nas.space import ALL_COST_METRICS, TIMED_METRICS, SearchSpace

_LITTLE = 0.005  # share of the hypervolume


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """An imagined rung after an epoch, at which one in `reduction_factor` of the complete trials goes on.

    The complete trials were selected by the rungs of their own search. So `lost` is less than it would be among all
    architectures. Only a search with `scheduler: none` measures it without selection.

    Args:
        lost: Share of the hypervolume of the complete trials that the trials which go on lack.
        least: What `lost` would be with the ranks after the last epoch: so few trials cannot have more hypervolume.
        saved: Share of the epochs of the complete trials that would not be trained.
    """

    epoch: int
    lost: float
    saved: float
    least: float = 0.0

    @property
    def is_to_trust(self) -> bool:
        """Whether early ranks lose next to nothing more than the last ones do."""
        return self.lost - self.least <= _LITTLE


def would_be_rungs(run: RunFolder, *, reduction_factor: int, ranking: Ranking = pareto_ranks) -> tuple[Rung, ...]:
    """A rung after each epoch but the last, judged by complete trials.

    `ranking` is that of the rungs. What the last ranks lose is always by Pareto ranks. The result is empty if there are
    fewer than `MIN_TRIALS` complete trials, or if they have no hypervolume.
    """
    num_epochs = run.manifest["epochs"]
    complete = [r for r in run.results() if r.status == "complete" and len(r.curve) == num_epochs > 1]
    if len(complete) < MIN_TRIALS:
        return ()
    metrics, box = run.metrics, run.box
    whole = ParetoFront.of(complete, metrics).hypervolume(box)
    if not whole:
        return ()
    costs = np.array([losses_of_cost(result.cost, metrics) for result in complete])
    num_kept = -(-len(complete) // reduction_factor)

    def lost_after(epoch: int, ranking: Ranking) -> float:
        losses = np.column_stack([[1 - result.curve[epoch - 1] for result in complete], costs])
        ranks = ranking(losses, num_kept)
        kept = [complete[index] for index in np.argsort(ranks, kind="stable")[:num_kept]]
        return 1 - ParetoFront.of(kept, metrics).hypervolume(box) / whole

    least = lost_after(num_epochs, pareto_ranks)
    return tuple(
        Rung(
            epoch=epoch,
            lost=lost_after(epoch, ranking),
            saved=(1 - num_kept / len(complete)) * (1 - epoch / num_epochs),
            least=least,
        )
        for epoch in range(1, num_epochs)
    )


def first_rung_to_trust(rungs: Sequence[Rung]) -> Rung | None:
    """The earliest rung from which on all rungs lose next to nothing by early ranks. None if there is none."""
    trusted = None
    for rung in reversed(rungs):
        if not rung.is_to_trust:
            break
        trusted = rung
    return trusted


@dataclass(frozen=True, kw_only=True, slots=True)
class Hindsight:
    """A surrogate for all results of a run, and the data it learns from: `results` as `observations`."""

    surrogate: Surrogate
    space: SearchSpace
    results: tuple[TrialResult, ...]
    observations: tuple[Observation, ...]


def hindsight_of(run: RunFolder) -> Hindsight | None:
    """The hindsight of a run. None in these cases:

    - fewer than `MIN_TRIALS` trials are complete
    - the space of the run does not contain an architecture of it, or the space file or the beliefs cannot be read
    - latency or throughput is an objective, since a report does not need their table
    """
    results = run.results()
    num_complete = sum(result.status == "complete" for result in results)
    if num_complete < MIN_TRIALS or any(metric in run.metrics for metric in TIMED_METRICS):
        return None
    try:
        experiment = space_file_of(run)
        space, beliefs = experiment.space, beliefs_of(experiment, run)
        observations = [observation_of(result, space) for result in results]
    except (ArchError, RunFolderError, SpaceFileError):  # a file of another version, or an architecture from elsewhere
        return None
    surrogate = Surrogate(
        space,
        costs=[metric for metric in ALL_COST_METRICS if metric in run.metrics],
        num_epochs=run.manifest["epochs"],
        seed=run.manifest["seed"],
        beliefs=beliefs,
    )
    return Hindsight(surrogate=surrogate, space=space, results=tuple(results), observations=tuple(observations))


def expected_of_stopped(hindsight: Hindsight | None) -> dict[int, float]:
    """Hypervolume that each stopped trial would have added if it had gone on, as the surrogate expects, by number."""
    stopped = [] if hindsight is None else [r for r in hindsight.results if r.status == "stopped"]
    if hindsight is None or not stopped:
        return {}
    genomes = [o.genome for o in hindsight.observations if o.status == "stopped"]
    gains = hindsight.surrogate.gains(hindsight.observations, genomes)
    return {result.number: float(gain) for result, gain in zip(stopped, gains, strict=True)}


def observation_of(result: TrialResult, space: SearchSpace) -> Observation:
    """The observation of a trial for a surrogate. Raises ArchError if the space does not have its architecture."""
    return Observation(
        genome=space.encode(result.arch),
        curve=result.curve,
        status=result.status if result.status in ("complete", "stopped") else "failed",
        inherited=result.inherited,
    )


def stopping_lines(run: RunFolder, hindsight: Hindsight | None) -> list[str]:
    """Lines for people: savings and costs of the rungs of a run, and where the next search should have its first one.

    Args:
        hindsight: Result of `hindsight_of`.
    """
    try:
        search = space_file_of(run).search
    except SpaceFileError:  # the file of another version
        return []
    lines, num_epochs = [], run.manifest["epochs"]
    expected, results = expected_of_stopped(hindsight), {result.number: result for result in run.results()}
    for epoch in sorted({results[number].epochs for number in expected}):
        here = {number: gain for number, gain in expected.items() if results[number].epochs == epoch}
        best = max(here, key=lambda number: here[number])
        trials = "one trial" if len(here) == 1 else f"{len(here)} trials"
        lines.append(
            f"stopped after epoch {epoch}: {trials}, which saved {len(here) * (num_epochs - epoch)} epochs; the most "
            f"promising of them, trial {best}, is expected to add {here[best]:.4f} to the hypervolume"
        )
    ranking = RANKINGS.get(search.scheduler, pareto_ranks)
    rungs = would_be_rungs(run, reduction_factor=search.reduction_factor, ranking=ranking)
    if rungs:
        trusted, first = first_rung_to_trust(rungs), rungs[0]
        told = (
            f"a rung at epoch {first.epoch} would have lost {first.lost:.1%} of the hypervolume of the complete trials "
            f"and saved {first.saved:.0%} of their epochs"
        )
        drawn = drawn_rungs(run)
        others = [rung for rung in rungs[1:] if rung == trusted or rung.epoch in drawn]
        told += "".join(f", one at epoch {rung.epoch} {rung.lost:.1%} and {rung.saved:.0%}" for rung in others)
        if first.least > _LITTLE:
            told += f" (with the ranks at the end, {first.least:.1%}: one in {search.reduction_factor} is few)"
        by_costs = would_be_rungs(run, reduction_factor=search.reduction_factor)
        lines.append(f"{told}; {_advice(search, trusted, first_rung_to_trust(by_costs))}")
    return lines


def _advice(search: SearchConfig, trusted: Rung | None, by_costs: Rung | None) -> str:
    """What the next search should change, or what this one had already.

    Args:
        trusted: The first rung to trust by the ranking of the search.
        by_costs: The same by Pareto ranks.
    """
    if trusted is not None:
        grace = f"search.grace_period: {trusted.epoch}"
        return f"next time: {grace}" if has_rungs(search) else f"with search.scheduler: pareto-asha, {grace} suffices"
    if by_costs is not None:
        return f"next time: search.scheduler: pareto-asha with search.grace_period: {by_costs.epoch}"
    if search.scheduler == "freeze-thaw":
        return "no rung keeps it, and freeze-thaw has none"
    return f"next time: search.{freeze_thaw_for(search)}, as no rung keeps it"


def has_rungs(search: SearchConfig) -> bool:
    """Whether trials were stopped or paused at rungs."""
    return search.scheduler in RANKINGS


def drawn_rungs(run: RunFolder) -> tuple[int, ...]:
    """The rungs of a run at which its scheduler decided. A scheduler without rungs has none."""
    try:
        return run.rungs if has_rungs(space_file_of(run).search) else ()
    except SpaceFileError:  # the file of another version
        return run.rungs


def freeze_thaw_for(search: SearchConfig) -> str:
    """The settings with which a search like `search` freezes and thaws. That needs the surrogate."""
    return "scheduler: freeze-thaw" + ("" if search.sampler == "surrogate" else " with search.sampler: surrogate")
