"""What this package uses of Optuna beyond its public interface. Its tests say when a version changes that."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial


class StoredTrials:
    """The trials of a study, written to its storage at once.

    `Study.ask` would write a trial gene by gene, and wait for the disk each time. `Trial.set_user_attr` is there for
    trials that this process asked for, and not for those of an earlier one.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._storage, self._study_id = study._storage, study._study_id

    def add(self, trial: FrozenTrial) -> FrozenTrial:
        """A new trial like `trial`, with a number of its own."""
        return self._storage.get_trial(self._storage.create_new_trial(self._study_id, template_trial=trial))

    def attributes(self, number: int) -> dict[str, Any]:
        return self._storage.get_trial(self._id_of(number)).user_attrs

    def set_attributes(self, number: int, attributes: Mapping[str, object]) -> None:
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._id_of(number), name, value)

    def _id_of(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
