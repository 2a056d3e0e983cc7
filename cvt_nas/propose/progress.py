"""Reads the trials that a search has begun from its journal. Any process can do this."""

from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from cvt_nas.propose import samplers
from cvt_nas.propose.journal import open_journal
from cvt_nas.propose.study import STUDY_NAME
from cvt_nas.run import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class BegunTrial:
    """A trial that has begun but not ended.

    Args:
        curve: Accuracy on the search split after each epoch.
        is_paused: Whether it waits at a rung.
    """

    number: int
    arch_id: str
    curve: tuple[float, ...]
    is_paused: bool


class BegunTrials:
    """Reads the journal of a run, and writes nothing. Each call reads only the lines added since the last call."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._study: optuna.Study | None = None

    def __call__(self) -> list[BegunTrial]:
        self._study = self._study or _study_of(self._run)
        if self._study is None:
            return []
        begun = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (arch_id := trial.user_attrs.get("arch_id")) is not None:
                progress = samplers.progress_of(trial)
                begun.append(
                    BegunTrial(number=trial.number, arch_id=arch_id, curve=progress.curve, is_paused=progress.is_paused)
                )
        return begun


def _study_of(run: RunFolder) -> optuna.Study | None:
    if not run.journal_path.exists():  # Optuna would create it
        return None
    try:
        return optuna.load_study(study_name=STUDY_NAME, storage=open_journal(run.journal_path, run.store))
    except KeyError:  # the study is not in it yet
        return None
