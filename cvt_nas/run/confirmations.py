"""Files of a run about the trainings that confirm its front."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from cvt_nas.latency import Int8Runtime
from cvt_nas.results.confirmation import ConfirmPlan, FailedInInt8, confirm, failed_in_int8, with_memberships
from cvt_nas.results.parsing import parse_json
from cvt_nas.results.trial import FAILURES, Metric, TrialResult, round_and_trial, without_retried
from cvt_nas.run.records import Record
from cvt_nas.run.store import Store


class Confirmations:
    """The plan of further trainings of a run, and the further trainings that have ended."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._plan_path, self._store = folder / "confirm.json", store
        self._record = Record(folder / "confirm.jsonl", store, TrialResult.from_json)

    def append(self, result: TrialResult) -> None:
        """Appends a further training to the record. It is on disk when this returns."""
        self._record.append(result.to_json())

    def results(self) -> tuple[TrialResult, ...]:
        """The further trainings that ended, in order of their rounds.

        A complete one has ended once it was judged as the plan asks. If the plan has changed since, it is trained again
        by the same seed, for its weights are not kept. See `RunFolder.results` for the lines that are left out and the
        errors.
        """
        plan, ended = self.plan(), without_retried(self._record.read())
        if plan is not None and plan.runtime is not None:
            ended = [result for result in ended if result.status != "complete" or _is_judged(result, plan.runtime)]
        by_number: dict[int, TrialResult] = {}
        for result in ended:  # the last one counts if one was trained again, unless that failed
            if result.number not in by_number or result.status not in FAILURES:
                by_number[result.number] = result
        return tuple(sorted(by_number.values(), key=lambda result: result.number))

    def write_plan(self, plan: ConfirmPlan) -> None:
        self._store.write(self._plan_path, json.dumps(dataclasses.asdict(plan)) + "\n")

    def plan(self) -> ConfirmPlan | None:
        """The plan; None before the race is over, or if nothing is trained again."""
        path = self._plan_path
        return parse_json(_PLAN, path.read_bytes(), str(path)) if path.exists() else None

    def missing(self) -> list[int]:
        """Numbers of the planned further trainings that have not ended."""
        plan = self.plan()
        ended = {result.number for result in self.results()}
        return [] if plan is None else [number for number in plan.numbers if number not in ended]

    def confirmed(self, trials: Sequence[TrialResult], metrics: Sequence[Metric]) -> tuple[TrialResult, ...]:
        """See `RunFolder.confirmed`."""
        runtime = None if (plan := self.plan()) is None else plan.runtime
        return with_memberships(confirm(trials, self._of_whole_rounds(), runtime), metrics)

    def runtime_of_front(self, trials: Sequence[TrialResult]) -> Int8Runtime | None:
        """Runtime in whose int8 the front is confirmed. None if it is in fp32."""
        runtime = None if (plan := self.plan()) is None else plan.runtime
        return runtime if runtime is not None and confirm(trials, self._of_whole_rounds(), runtime) else None

    def failed_in_int8(self, trials: Sequence[TrialResult]) -> list[FailedInInt8]:
        """See `results.failed_in_int8`. Empty if the plan is in fp32."""
        plan = self.plan()
        return [] if plan is None or plan.runtime is None else failed_in_int8(trials, self._of_whole_rounds())

    def _of_whole_rounds(self) -> tuple[TrialResult, ...]:
        """The further trainings that ended. Empty until the first round is over."""
        plan, further = self.plan(), self.results()
        ended = {round_and_trial(result.number)[1] for result in further}
        return further if plan is None or set(plan.members) <= ended else ()


def _is_judged(result: TrialResult, runtime: Int8Runtime) -> bool:
    return result.int8 is not None and result.int8.runtime == runtime


_PLAN = TypeAdapter(ConfirmPlan)
