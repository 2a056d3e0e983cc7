"""Finds the trial of a run that a user names."""

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import takewhile
from typing import cast

from cvt_nas.arch import ArchConfig
from cvt_nas.errors import RunFolderError
from cvt_nas.results.candidate import Candidate
from cvt_nas.results.pareto import ParetoFront
from cvt_nas.results.trial import Metric, TrialResult

_MAX_LISTED = 5
_NUMBER = r"[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"


def find(results: Iterable[TrialResult], arch_id: str, place: object) -> TrialResult:
    """See `RunFolder.find`."""
    known = list(results)
    found = [result for result in known if result.arch_id.startswith(arch_id)]
    if len(found) != 1:
        what = "no trial" if not found else f"{len(found)} trials"
        which = _listed(arch_id, [result.arch_id for result in found or known], is_found=bool(found))
        raise RunFolderError(f"{place}: {what} with an arch id that begins with {arch_id!r}; {which}")
    return found[0]


def find_arch(trials: Sequence[TrialResult], candidates: Sequence[Candidate], named: str, place: object) -> ArchConfig:
    """The only architecture of a run with a trial of number `named`, or with an id that begins with `named`.

    Args:
        candidates: Architectures that were ranked before the race. They are found by their ids only.

    Raises:
        RunFolderError: No architecture or several are named so. The message says which there are, nearest first.
    """
    known = {candidate.arch.id: candidate.arch for candidate in candidates}
    known |= {trial.arch_id: trial.arch for trial in trials}
    numbered = {trial.arch_id for trial in trials if str(trial.number) == named}
    found = sorted(numbered | {arch_id for arch_id in known if arch_id.startswith(named)})
    if len(found) == 1:
        return known[found[0]]
    what = "no architecture" if not found else f"{len(found)} architectures"
    number = f"trial number {named} or " if named.isdecimal() else ""
    which = _listed(named, found or list(known), is_found=bool(found))
    raise RunFolderError(f"{place}: {what} with {number}an id that begins with {named!r}; {which}")


def _listed(named: str, arch_ids: Sequence[str], *, is_found: bool) -> str:
    """Says which of `arch_ids` there are: those that `named` stands for, or else the nearest ones."""
    if not arch_ids:
        return "it has none yet"

    def nearness(arch_id: str) -> tuple[int, float]:
        beginning = arch_id[: len(named)]
        num_common = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(named, beginning, strict=False))))
        return num_common, SequenceMatcher(None, named, beginning).ratio()

    nearest = sorted(dict.fromkeys(arch_ids), key=nearness, reverse=True)
    shown = ", ".join(nearest[:_MAX_LISTED]) + (", ..." if len(nearest) > _MAX_LISTED else "")
    return f"they are {shown}" if is_found else f"the nearest of its {len(nearest)} are {shown}"


def pick(front: ParetoFront, what: str, place: object) -> TrialResult | None:
    """See `RunFolder.pick`. Returns None if `what` can only be the beginning of an arch id."""
    if not front.members:
        raise RunFolderError(f"{place}: no trial reached its last epoch yet")
    if what in ("knee", "best"):
        found = front.knee() if what == "knee" else front.best
        assert found is not None, "a front with members has both"
        return found
    limit = re.fullmatch(rf"\s*(flops|params|latency_ms|peak_memory_mb|model_mb)\s*<\s*({_NUMBER})\s*", what)
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
