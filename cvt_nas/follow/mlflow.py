"""Tracks a search in MLflow: an experiment with the name of the run folder, which contains a run for each trial."""

import os

from cvt_nas.errors import CvtNasError, first_line
from cvt_nas.follow.tracker import LOST, TrackedTrial, Tracker, ending_of, summary_of
from cvt_nas.results import TrialResult
from cvt_nas.run import RunFolder


class MLflow(Tracker):
    """Tracks trials on the server or database at `uri`. Two tags identify the run of a trial in every process."""

    def __init__(self, run: RunFolder, uri: str) -> None:
        import mlflow

        super().__init__(run)
        self._client = mlflow.MlflowClient(uri)
        experiment = self._client.get_experiment_by_name(self.run_name)
        self._experiment = (
            self._client.create_experiment(self.run_name) if experiment is None else experiment.experiment_id
        )
        self._runs: dict[str, str] = {}

    def begin(self, trial: TrackedTrial) -> None:
        if trial.id in self._runs:  # the trial was paused
            return
        tags = {"search": self.run_key, "trial_name": trial.name}
        wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        if found := self._client.search_runs([self._experiment], wanted, max_results=1):
            self._runs[trial.id] = found[0].info.run_id
            self._client.update_run(self._runs[trial.id], status="RUNNING")
            return
        self._runs[trial.id] = self._client.create_run(self._experiment, tags=tags, run_name=trial.name).info.run_id
        for name, value in trial.config.items():
            self._client.log_param(self._runs[trial.id], name, value)

    def log(self, trial: TrackedTrial, epoch: int, accuracy: float) -> None:
        self._client.log_metric(self._runs[trial.id], "accuracy", accuracy, step=epoch)

    def pause(self, trial: TrackedTrial) -> None:
        """Does nothing, since an open run needs no resources of this process."""

    def end(self, trial: TrackedTrial, result: TrialResult) -> None:
        run_id = self._runs.pop(trial.id)
        for name, value in ending_of(result).items():
            self._client.set_tag(run_id, name, value)
        for name, number in summary_of(result).items():
            self._client.log_metric(run_id, name, number, step=result.epochs)
        self._client.set_terminated(run_id, status="FAILED" if result.status in LOST else "FINISHED")

    def close(self) -> None:
        for run_id in self._runs.values():  # includes paused trials
            self._client.set_terminated(run_id, status="KILLED")


def check_mlflow(uri: str, run_name: str) -> None:
    """Raises CvtNasError if no MLflow server answers at `uri`, or its experiment `run_name` is deleted."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # like Ray's usage statistics
    import mlflow

    # with its defaults, MLflow would retry for minutes
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
    limits = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(limits)
    try:
        experiment = mlflow.MlflowClient(uri).get_experiment_by_name(run_name)
    except Exception as error:
        raise CvtNasError(f"--mlflow {uri}: {first_line(error)}") from error
    finally:
        for name in limits:
            del os.environ[name]
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise CvtNasError(
            f"--mlflow {uri}: its experiment {run_name} is deleted; restore it by mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}, or give the run another name by --out"
        )
