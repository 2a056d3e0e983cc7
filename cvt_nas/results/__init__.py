"""What a search produced, as values: trials, their front, its confirmation, how far its rungs can be trusted."""

from cvt_nas.results.candidate import Candidate
from cvt_nas.results.confirmation import ConfirmPlan, confirm, with_memberships
from cvt_nas.results.identity import DataIdentity
from cvt_nas.results.narrowing import DroppedOption, Narrowing, NarrowingStep
from cvt_nas.results.pareto import (
    HypervolumeBox,
    ParetoFront,
    distances_to_front,
    hypervolume,
    is_non_dominated,
    losses_of,
)
from cvt_nas.results.quality import Origin, RankingQuality, SupernetQuality, Tau, ceiling_of_mean, judge_supernet
from cvt_nas.results.rungs import RankCorrelation, rank_correlations, rung_epochs
from cvt_nas.results.score import as_title, score_name
from cvt_nas.results.trial import (
    FAILURES,
    ROOM,
    Confirmation,
    Metric,
    Status,
    TrialResult,
    further_number,
    round_and_trial,
    without_retried,
)

__all__ = [
    "FAILURES",
    "ROOM",
    "Candidate",
    "ConfirmPlan",
    "Confirmation",
    "DataIdentity",
    "DroppedOption",
    "HypervolumeBox",
    "Metric",
    "Narrowing",
    "NarrowingStep",
    "Origin",
    "ParetoFront",
    "RankCorrelation",
    "RankingQuality",
    "Status",
    "SupernetQuality",
    "Tau",
    "TrialResult",
    "as_title",
    "ceiling_of_mean",
    "confirm",
    "distances_to_front",
    "further_number",
    "hypervolume",
    "is_non_dominated",
    "judge_supernet",
    "losses_of",
    "rank_correlations",
    "round_and_trial",
    "rung_epochs",
    "score_name",
    "with_memberships",
    "without_retried",
]
