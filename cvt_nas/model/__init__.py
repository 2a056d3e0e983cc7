"""CvT as a plain torch module, built from an `ArchConfig`, and the files that hold its weights."""

from cvt_nas.model.files import load_model, probe_error, probe_logits, save_model, write_weights
from cvt_nas.model.network import (
    Block,
    ConvEmbed,
    ConvProjection,
    CvT,
    build_model,
    drop_path,
    forward_stage,
    forward_stages,
    resized_positions,
)
from cvt_nas.model.weights import (
    hugging_face_name,
    initialise,
    load_checkpoint,
    official_name,
    read_weights,
    weights_file,
)

__all__ = [
    "Block",
    "ConvEmbed",
    "ConvProjection",
    "CvT",
    "build_model",
    "drop_path",
    "forward_stage",
    "forward_stages",
    "hugging_face_name",
    "initialise",
    "load_checkpoint",
    "load_model",
    "official_name",
    "probe_error",
    "probe_logits",
    "read_weights",
    "resized_positions",
    "save_model",
    "weights_file",
    "write_weights",
]
