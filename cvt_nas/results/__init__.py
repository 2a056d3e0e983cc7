"""What a search produced, as values: trials, their front, its confirmation, how far its rungs can be trusted."""

from cvt_nas.results.candidate import Candidate, Inherited, smoothed_accuracies
from cvt_nas.results.choice_effects import Choice, ChoiceEffect, choice_effects
from cvt_nas.results.confirmation import ConfirmPlan, FailedInInt8, confirm, failed_in_int8, with_memberships
from cvt_nas.results.identity import DataIdentity
from cvt_nas.results.int8 import Int8, Judged, Judgement, in_int8, plain_name
from cvt_nas.results.kendall import kendall
from cvt_nas.results.narrowing import DroppedOption, Narrowing, NarrowingStep
from cvt_nas.results.pareto import (
    HypervolumeBox,
    ParetoFront,
    distances_to_front,
    hypervolume,
    is_non_dominated,
    losses_of,
)
from cvt_nas.results.prediction import Prediction
from cvt_nas.results.quality import Correction, JudgedArch, Origin, Reused, SupernetQuality, Tau, judge_supernet
from cvt_nas.results.request import Request
from cvt_nas.results.rungs import RankCorrelation, rank_correlations, rung_epochs
from cvt_nas.results.score import as_title, score_name
from cvt_nas.results.telling import Answer, Question, answer_of, ceiling_of_mean, questions_of
from cvt_nas.results.trial import (
    FAILURES,
    MAXIMISED,
    ROOM,
    Metric,
    Status,
    TrialResult,
    further_number,
    round_and_trial,
    without_retried,
)
