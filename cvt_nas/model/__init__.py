"""CvT as a plain torch module, built from an `ArchConfig`, and the files that hold its weights."""

from cvt_nas.model.checkpoints import Weights, classes_beside, digest_of, read_weights, weights_files
from cvt_nas.model.classes import ClassNames, Told, are_indices, imagenet_classes, listed, match_classes
from cvt_nas.model.cutting import begin_with, cut_state
from cvt_nas.model.files import load_model, probe_error, probe_logits, save_model, write_weights
from cvt_nas.model.lending import Lent, lend
from cvt_nas.model.locating import locate, means
from cvt_nas.model.network import (
    Block,
    ConvEmbed,
    ConvProjection,
    CvT,
    build_model,
    compute_block,
    drop_path_scales,
    forward_stage,
    forward_stages,
    resized_positions,
)
from cvt_nas.model.pooling import by_whole_windows
from cvt_nas.model.port import hugging_face_name, official_name
from cvt_nas.model.programs import (
    Logits,
    load_onnx,
    load_openvino,
    load_program,
    open_onnx,
    open_openvino,
    runtimes_for,
)
from cvt_nas.model.units import magnitudes, sorted_by
from cvt_nas.model.weights import fitted, initialise, is_published, load_checkpoint
