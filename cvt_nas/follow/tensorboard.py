"""Tracks a search in TensorBoard, with a folder for each trial."""

import itertools
import os
from typing import TYPE_CHECKING

from cvt_nas.follow.tracker import TrackedTrial, Tracker, summary_of
from cvt_nas.results import TrialResult
from cvt_nas.run import RunFolder

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_numbers = itertools.count()  # file numbers, since default file names differ only by the second


class TensorBoard(Tracker):
    """Writes a file to the folder of a trial each time the trial gets a worker. TensorBoard reads the files as one."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run)
        self._folder = run.tensorboard_path
        self._writers: dict[str, SummaryWriter] = {}

    def begin(self, trial: TrackedTrial) -> None:
        from tensorboardX import SummaryWriter  # takes half a second, which a search without it saves

        suffix = f".{next(_numbers):06}.{os.getpid()}"  # TensorBoard reads files in the order of their names
        self._writers[trial.id] = SummaryWriter(str(self._folder / trial.name), filename_suffix=suffix)

    def log(self, trial: TrackedTrial, epoch: int, accuracy: float) -> None:
        self._writers[trial.id].add_scalar("accuracy", accuracy, epoch)
        self._writers[trial.id].flush()

    def pause(self, trial: TrackedTrial) -> None:
        self._writers.pop(trial.id).close()

    def end(self, trial: TrackedTrial, result: TrialResult) -> None:
        from tensorboardX.summary import hparams

        writer, values = self._writers[trial.id], summary_of(result)
        assert writer.file_writer is not None, "it is there until the writer is closed"
        for part in hparams({**trial.config, "status": result.status}, values):
            writer.file_writer.add_summary(part)  # `add_hparams` would write a separate folder or file
        for name, value in values.items():
            writer.add_scalar(name, value, result.epochs)
        self.pause(trial)
