"""Everything that runs batches through a network: training, evaluation, counting.

One code path serves the CPU, one GPU and several GPUs. If a process group is initialised, `fit` trains by DDP, and
`batch_size` is divided among the ranks. The device is an argument.
"""

from cvt_nas.engine.checkpoint import Checkpoint
from cvt_nas.engine.evaluation import evaluate, fvcore_cost, logits_of, recalibrate_batch_norm
from cvt_nas.engine.importance import in_order, keep_in_order, keep_lent, open_lent
from cvt_nas.engine.inheritance import Inheritance, open_inheritance, open_supernet
from cvt_nas.engine.optimization import DivergedError, learning_rate, prepare_device
from cvt_nas.engine.reports import (
    Report,
    TrainingReport,
    class_curves,
    keep_trained,
    progress_reports,
    supernet_reports,
)
from cvt_nas.engine.setup import Phase, SharedWeights, TrainingSetup, shared_memory_needed
from cvt_nas.engine.supernet import train_supernet
from cvt_nas.engine.teacher import (
    Teacher,
    answer_images,
    find_teacher,
    has_answered,
    measure_teacher,
    share_answers,
)
from cvt_nas.engine.training import Epoch, fit
