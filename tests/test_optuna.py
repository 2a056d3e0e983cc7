"""What the package relies on in Optuna beyond its public interface; see cvt_nas/propose/private.py."""

from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from cvt_nas.propose.journal import open_journal
from cvt_nas.propose.private import StoredTrials
from cvt_nas.run import Store


@pytest.mark.parametrize("name", ["_storage", "_study_id"])
def test_a_study_still_has_what_is_not_in_its_documentation(name: str) -> None:
    study = optuna.create_study()
    assert hasattr(study, name), f"Optuna {optuna.__version__} has no Study.{name}; see cvt_nas/propose/private.py"


@pytest.mark.parametrize("kept", ["in memory", "in a journal"])
def test_a_stored_trial_is_one_of_its_study(tmp_path: Path, kept: str) -> None:
    def opened() -> BaseStorage:
        return InMemoryStorage() if kept == "in memory" else open_journal(tmp_path / "journal", Store())

    study = optuna.create_study(study_name="s", storage=opened())
    stored = StoredTrials(study)
    choice = IntDistribution(0, 3)
    running = optuna.trial.create_trial(
        state=TrialState.RUNNING, params={"g": 2}, distributions={"g": choice}, user_attrs={"a": 1}
    )
    trials = [stored.add(running), stored.add(running)]
    assert [(trial.number, trial.params, trial.state) for trial in trials] == [
        (number, {"g": 2}, TrialState.RUNNING) for number in range(2)
    ]
    stored.set_attributes(1, {"b": [0.5]})
    study.tell(1, 0.25)
    if kept == "in a journal":
        study = optuna.load_study(study_name="s", storage=opened())
        stored = StoredTrials(study)
    assert stored.attributes(1) == {"a": 1, "b": [0.5]}
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.COMPLETE]
