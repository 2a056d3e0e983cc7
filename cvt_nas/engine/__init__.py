"""Everything that runs batches through a network: training, evaluation, counting.

One code path for the CPU, one GPU and several: where a process group is initialised, `fit` trains by
DDP and `batch_size` is divided among the ranks. The device is an argument, never a guess.
"""

from cvt_nas.engine.evaluation import evaluate, fvcore_cost, logits_of, recalibrate_batch_norm
from cvt_nas.engine.optimization import DivergedError, drop_checkpoints, learning_rate, prepare_device
from cvt_nas.engine.setup import Phase, SharedWeights, TrainingSetup, shared_memory_needed
from cvt_nas.engine.supernet import (
    Inheritance,
    SupernetEpoch,
    open_inheritance,
    open_supernet,
    supernet_reports,
    train_supernet,
)
from cvt_nas.engine.training import Epoch, class_curves, fit, progress_reports

__all__ = [
    "DivergedError",
    "Epoch",
    "Inheritance",
    "Phase",
    "SharedWeights",
    "SupernetEpoch",
    "TrainingSetup",
    "class_curves",
    "drop_checkpoints",
    "evaluate",
    "fit",
    "fvcore_cost",
    "learning_rate",
    "logits_of",
    "open_inheritance",
    "open_supernet",
    "prepare_device",
    "progress_reports",
    "recalibrate_batch_norm",
    "shared_memory_needed",
    "supernet_reports",
    "train_supernet",
]
