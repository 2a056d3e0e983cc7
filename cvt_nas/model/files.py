"""The folder of a trained network: architecture, weights, and its answers at the end of the training."""

import copy
import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_of
from torch import Tensor

from cvt_nas.arch import arch_to_dict, cost_of, load_arch
from cvt_nas.errors import ArchError, first_line
from cvt_nas.model.network import CvT
from cvt_nas.run import write_atomically


def save_model(model: CvT, folder: Path) -> None:
    """Writes `arch.json`, `model.safetensors`, and a probe of the model's answers.

    The probe holds two images of noise and the model's logits for them in fp32. An export can be checked against it.
    """
    write_weights(model, folder)
    images = torch.randn(2, *model.arch.image_shape, generator=torch.Generator().manual_seed(0))
    probe = {"images": images, "logits": probe_logits(model, images)}
    write_atomically(folder / "probe.safetensors", lambda file: file.write(safetensors_of(probe)))


def write_weights(model: CvT, folder: Path) -> None:
    """Writes `arch.json` and `model.safetensors`, which are all that `load_model` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "arch.json", json.dumps(arch_to_dict(model.arch), indent=2) + "\n")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / "model.safetensors", lambda file: file.write(safetensors_of(state)))


def load_model(folder: str | Path) -> CvT:
    """Loads a trained network from a folder of `save_model` or of an export as `torch` or `timm`, on the CPU, in eval
    mode.

    Raises:
        ArchError: The folder has no `arch.json`, or its weights are missing or belong to another network.
    """
    folder = Path(folder)
    weights = folder / "model.safetensors"
    arch = load_arch(folder / "arch.json")
    try:
        if 2 * cost_of(arch).params > weights.stat().st_size:  # checked before memory is allocated
            raise ArchError(f"{weights}: too small for the network of {folder}/arch.json")
        model = CvT(arch)
        model.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ArchError(f"{folder}/model.safetensors: {first_line(error)}") from error
    return model.eval()


@torch.inference_mode()
def probe_logits(model: CvT, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
    """Logits of a copy of `model` on the CPU in fp32 and eval mode, independent of its device."""
    return copy.deepcopy(model).cpu().float().eval()(images)


def probe_error(model: CvT, folder: Path) -> float:
    """Greatest difference of `model`'s logits from the probe of `save_model` in `folder`."""
    probe = load_file(folder / "probe.safetensors")
    return float((probe_logits(model, probe["images"]) - probe["logits"]).abs().max())
