"""Files of a run about the trainings that confirm its front."""

import dataclasses
import json
from pathlib import Path

from pydantic import TypeAdapter

from cvt_nas.results.confirmation import ConfirmPlan
from cvt_nas.results.parsing import parse_json
from cvt_nas.results.trial import TrialResult, without_retried
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

        See `RunFolder.results` for the lines that are left out and the errors.
        """
        return tuple(sorted(without_retried(self._record.read()), key=lambda result: result.number))

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


_PLAN = TypeAdapter(ConfirmPlan)
