"""The folder of a trained network: its architecture, its weights, and what it answered when its training ended."""

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
    """Writes `arch.json`, `model.safetensors`, and a probe of what this very model answers.

    The probe is two images of noise and the model's logits for them in fp32, by which an export can
    prove that it is still the trained model.
    """
    write_weights(model, folder)
    images = torch.randn(2, *model.arch.image_shape, generator=torch.Generator().manual_seed(0))
    probe = {"images": images, "logits": probe_logits(model, images)}
    write_atomically(folder / "probe.safetensors", lambda file: file.write(safetensors_of(probe)))


def write_weights(model: CvT, folder: Path) -> None:
    """Writes `arch.json` and `model.safetensors`, all that `load_model` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "arch.json", json.dumps(arch_to_dict(model.arch), indent=2) + "\n")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / "model.safetensors", lambda file: file.write(safetensors_of(state)))


def load_model(folder: str | Path) -> CvT:
    """The trained network in a folder that `save_model` or an export wrote, on the CPU, in eval mode.

    Raises:
        ArchError: The folder has no `arch.json`, or its weights are missing or of another network.
    """
    folder = Path(folder)
    weights = folder / "model.safetensors"
    arch = load_arch(folder / "arch.json")
    try:
        if 2 * cost_of(arch).params > weights.stat().st_size:  # before any memory is taken for it
            raise ArchError(f"{weights}: too small for the network of {folder}/arch.json")
        model = CvT(arch)
        model.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ArchError(f"{folder}/model.safetensors: {first_line(error)}") from error
    return model.eval()


@torch.inference_mode()
def probe_logits(model: CvT, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
    """Logits of a copy of `model` on the CPU in fp32 and eval mode, whatever device it was trained on."""
    return copy.deepcopy(model).cpu().float().eval()(images)


def probe_error(model: CvT, folder: Path) -> float:
    """Greatest difference of `model`'s logits from those that `save_model` recorded in `folder`."""
    probe = load_file(folder / "probe.safetensors")
    return float((probe_logits(model, probe["images"]) - probe["logits"]).abs().max())
