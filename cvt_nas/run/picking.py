"""Finds the trial of a run that a user names."""

import re
from collections.abc import Iterable
from typing import cast

from cvt_nas.errors import RunFolderError
from cvt_nas.results.pareto import ParetoFront
from cvt_nas.results.trial import Metric, TrialResult


def find(results: Iterable[TrialResult], arch_id: str, place: object) -> TrialResult:
    """See `RunFolder.find`."""
    found = [result for result in results if result.arch_id.startswith(arch_id)]
    if len(found) != 1:
        what = "no trial" if not found else f"{len(found)} trials"
        raise RunFolderError(f"{place}: {what} with an arch id that begins with {arch_id!r}")
    return found[0]


def pick(front: ParetoFront, what: str, place: object) -> TrialResult | None:
    """See `RunFolder.pick`. Returns None if `what` can only be the beginning of an arch id."""
    if not front.members:
        raise RunFolderError(f"{place}: no trial reached its last epoch yet")
    if what in ("knee", "best"):
        found = front.knee() if what == "knee" else front.best
        assert found is not None, "a front with members has both"
        return found
    limit = re.fullmatch(
        r"\s*(flops|params|latency_ms|peak_memory_mb|model_mb)\s*<\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][0-9]+)?)\s*", what
    )
    if limit is None and re.search(r"\W", what):
        raise RunFolderError(
            f"{what!r}: must be knee, best, an arch id, or a limit as flops<4e9, params<20e6 or latency_ms<2"
        )
    if limit is None:
        return None
    metric = cast(Metric, limit[1])
    if not any(member.metric(metric) for member in front.members):
        raise RunFolderError(f"{place}: the search did not go by {metric.removesuffix('_ms')}")
    under = [member for member in front.members if member.metric(metric) < float(limit[2])]
    if not under:
        least = min(member.metric(metric) for member in front.members)
        raise RunFolderError(f"{place}: nothing on the front has {what}; the least {metric} are {least:_.10g}")
    return under[0]
