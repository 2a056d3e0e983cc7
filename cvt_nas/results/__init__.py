"""What a search produced: trials, their front, its confirmation, how far its rungs can be trusted, and the folder.

`RunFolder` is the only code that knows file names under `results/`.
"""

from cvt_nas.results.candidate import Candidate
from cvt_nas.results.confirmation import ConfirmPlan, confirm, with_memberships
from cvt_nas.results.files import delete, exists, fetch, patiently, push, repair_last_line, write_atomically
from cvt_nas.results.folder import RunFolder
from cvt_nas.results.identity import DataIdentity
from cvt_nas.results.mirror import add_mirror, cache_folder, can_write_to, is_url, mirror_of
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
    "RunFolder",
    "Status",
    "SupernetQuality",
    "Tau",
    "TrialResult",
    "add_mirror",
    "cache_folder",
    "can_write_to",
    "ceiling_of_mean",
    "confirm",
    "delete",
    "distances_to_front",
    "exists",
    "fetch",
    "further_number",
    "hypervolume",
    "is_non_dominated",
    "is_url",
    "judge_supernet",
    "losses_of",
    "mirror_of",
    "patiently",
    "push",
    "rank_correlations",
    "repair_last_line",
    "round_and_trial",
    "rung_epochs",
    "with_memberships",
    "without_retried",
    "write_atomically",
]
