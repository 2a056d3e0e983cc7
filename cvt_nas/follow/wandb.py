"""Tracks a search in Weights & Biases, with a run for each trial. The name of the run folder is their group."""

import os
from typing import Any

from cvt_nas.errors import CvtNasError
from cvt_nas.follow.tracker import LOST, TrackedTrial, Tracker, ending_of, summary_of
from cvt_nas.results import TrialResult
from cvt_nas.results.events import EpochDone, RaceEvent, TrialStarted
from cvt_nas.run import RunFolder


class Wandb(Tracker):
    """Resumes the run of a trial each time the trial gets a worker.

    W&B cannot resume a run offline. Several files of one trial would replace each other when they are uploaded. So an
    offline trial is written when it has ended.
    """

    def __init__(self, run: RunFolder, project: str) -> None:
        super().__init__(run)
        self._project, self._folder = project, str(run.path)
        self._is_offline = os.environ.get("WANDB_MODE") == "offline"
        self._runs: dict[str, Any] = {}

    def __call__(self, event: RaceEvent) -> None:
        if not self._is_offline:
            super().__call__(event)
        elif isinstance(event, TrialResult):
            super().__call__(TrialStarted(number=event.number, arch=event.arch, seed=event.seed))
            for epoch, accuracy in enumerate(event.curve, start=1):
                super().__call__(EpochDone(number=event.number, epoch=epoch, accuracy=accuracy))
            super().__call__(event)

    def begin(self, trial: TrackedTrial) -> None:
        import wandb

        self._runs[trial.id] = wandb.init(
            project=self._project,
            group=self.run_name,
            id=trial.id,
            name=trial.name,
            config=trial.config,
            dir=self._folder,
            resume="allow",
            reinit="create_new",  # several trials run at the same time
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )

    def log(self, trial: TrackedTrial, epoch: int, accuracy: float) -> None:
        self._runs[trial.id].log({"accuracy": accuracy}, step=epoch)

    def pause(self, trial: TrackedTrial) -> None:
        self._runs.pop(trial.id).finish()

    def end(self, trial: TrackedTrial, result: TrialResult) -> None:
        run = self._runs.pop(trial.id)
        run.config.update(ending_of(result), allow_val_change=True)
        run.summary.update(summary_of(result))
        run.finish(exit_code=1 if result.status in LOST else 0)


def check_wandb(project: str) -> None:
    """Raises CvtNasError if W&B needs a key and there is none. The key itself is not tested."""
    from requests.utils import get_netrc_auth  # `wandb login` keeps a key in this file

    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return
    names = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not any(os.environ.get(name) for name in names) and get_netrc_auth(server) is None:
        raise CvtNasError(f"--wandb {project}: no key: run wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline")
