"""All uses of Optuna's private interface in this package. Its tests fail if a new version changes that interface."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial


class StoredTrials:
    """Writes whole trials to the storage of a study.

    `Study.ask` would write a trial gene by gene, and wait for the disk each time. `Trial.set_user_attr` works for
    trials that this process asked for, but not for trials of an earlier process.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._storage, self._study_id = study._storage, study._study_id

    def add(self, trial: FrozenTrial) -> FrozenTrial:
        """Adds a copy of `trial`, and returns it with its new number."""
        return self._storage.get_trial(self._storage.create_new_trial(self._study_id, template_trial=trial))

    def attributes(self, number: int) -> dict[str, Any]:
        return self._storage.get_trial(self._id_of(number)).user_attrs

    def set_attributes(self, number: int, attributes: Mapping[str, object]) -> None:
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._id_of(number), name, value)

    def _id_of(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
