"""Everything that runs batches through a network: training, evaluation, counting.

One code path for the CPU, one GPU and several: where a process group is initialised, `fit` trains by
DDP and `batch_size` is divided among the ranks. The device is an argument, never a guess.
"""

from cvt_nas.engine.checkpoint import Checkpoint
from cvt_nas.engine.evaluation import evaluate, fvcore_cost, logits_of, recalibrate_batch_norm
from cvt_nas.engine.importance import keep_lent, open_lent, sort_by_taylor
from cvt_nas.engine.inheritance import Inheritance, open_inheritance, open_supernet
from cvt_nas.engine.optimization import DivergedError, learning_rate, prepare_device
from cvt_nas.engine.reports import class_curves, keep_trained, progress_reports, supernet_reports
from cvt_nas.engine.setup import Phase, SharedWeights, TrainingSetup, shared_memory_needed
from cvt_nas.engine.supernet import SupernetEpoch, train_supernet
from cvt_nas.engine.training import Epoch, fit

__all__ = [
    "Checkpoint",
    "DivergedError",
    "Epoch",
    "Inheritance",
    "Phase",
    "SharedWeights",
    "SupernetEpoch",
    "TrainingSetup",
    "class_curves",
    "evaluate",
    "fit",
    "fvcore_cost",
    "keep_lent",
    "keep_trained",
    "learning_rate",
    "logits_of",
    "open_inheritance",
    "open_lent",
    "open_supernet",
    "prepare_device",
    "progress_reports",
    "recalibrate_batch_norm",
    "shared_memory_needed",
    "sort_by_taylor",
    "supernet_reports",
    "train_supernet",
]
