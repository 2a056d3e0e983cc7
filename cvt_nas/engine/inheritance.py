"""Accuracies of subnets with weights inherited from a supernet."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_of

from cvt_nas.arch import ArchConfig
from cvt_nas.config import SupernetConfig
from cvt_nas.data import Batch, ImageData, Split
from cvt_nas.engine.evaluation import (
    EVAL_BATCH_SIZE,
    answers_of,
    are_right,
    brier_scores,
    logits_of,
    recalibrate_batch_norm,
)
from cvt_nas.engine.metrics import metric_of, score
from cvt_nas.engine.setup import SharedWeights, TrainingSetup
from cvt_nas.engine.supernet import supernet_of
from cvt_nas.errors import ArchError, first_line
from cvt_nas.model import CvT
from cvt_nas.results import Inherited
from cvt_nas.run import write_atomically
from cvt_nas.supernet import Supernet, extract

_MAX_KEPT_BYTES = 2**31  # of a CPU's memory: 14,000 colour images of 224 pixels
_KEPT_SHARE = 4  # divisor of a GPU's free memory; trials that share a GPU start one after the other


def open_supernet(shared: SharedWeights, path: Path) -> Supernet:
    """Opens a supernet from the weights of `save_supernet`, on the CPU.

    Raises:
        ArchError: The file is missing, or belongs to another space.
    """
    supernet = supernet_of(shared)
    try:
        supernet.load_state_dict(load_file(path))
    except (OSError, RuntimeError) as error:
        raise ArchError(f"{path}: {first_line(error)}") from error
    return supernet.eval()


def save_supernet(supernet: Supernet, path: Path) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in supernet.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(safetensors_of(state)))


class Inheritance:
    """Accuracies of subnets on the search split, with inherited weights.

    Args:
        supernet: Supernet on `device`. It is not changed.
    """

    def __init__(self, supernet: Supernet, config: SupernetConfig, data: ImageData, device: torch.device) -> None:
        self._supernet, self._config, self._data, self._device = supernet, config, data, device
        num_batches, num_last = divmod(config.calibration_images - 1, EVAL_BATCH_SIZE)
        batches = itertools.islice(self._batches("train"), num_batches + 1)
        self._calibration = [images for images, _ in batches]  # 294 MiB for 2,048 colour images of 224 pixels
        if len(self._calibration) > num_batches:
            self._calibration[num_batches] = self._calibration[num_batches][: num_last + 1]
        self._search: list[Batch] = []
        free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        self._max_kept_bytes = _MAX_KEPT_BYTES if free_bytes is None else free_bytes // _KEPT_SHARE

    def _batches(self, split: Split, first: int = 0) -> Iterator[Batch]:
        """Batches of a split as bytes, without augmentation."""
        return self._data.eval_batches(
            split, batch_size=EVAL_BATCH_SIZE, device=self._device, shuffled=True, first=first, as_bytes=True
        )

    def search_batches(self) -> Iterator[Batch]:
        """Batches of the search split. The first ones are kept for all subnets, as far as memory allows."""
        yield from self._search
        first = len(self._search)
        if first * EVAL_BATCH_SIZE >= self._data.num_images("search"):
            return
        kept_bytes = sum(images.nbytes for images, _ in self._search)
        for number, batch in enumerate(self._batches("search", first), start=first):
            kept_bytes += batch[0].nbytes
            if number == len(self._search) and kept_bytes <= self._max_kept_bytes:
                self._search.append(batch)
            yield batch

    def model(self, arch: ArchConfig) -> CvT:
        """The subnet as a plain model in eval mode, with batch norms measured on training images."""
        model = extract(self._supernet, arch)
        recalibrate_batch_norm(model, self._calibration, self._config, self._data.prepared)
        return model

    @torch.inference_mode()
    def measure(self, arch: ArchConfig, *, bar: float | None = None, num_screening_images: int = 0) -> Inherited:
        """Measures the accuracy of a subnet by the setting `metric`, and its Brier score if that is `accuracy`.

        Args:
            bar: The measurement ends once the accuracy is three standard errors below this value. For other metrics
                than `accuracy`, whose standard error is unknown, all images are used.
            num_screening_images: Least number of images, the same for all subnets.
        """
        model, metric = self.model(arch), metric_of(self._config, self._data)
        if metric != "accuracy":
            answers = answers_of(model, self.search_batches(), self._config, self._data.prepared)
            return Inherited(accuracy=score(metric, *answers), num_images=self._data.num_images("search"))
        num_right, brier, num_images = torch.zeros((), device=self._device), torch.zeros((), device=self._device), 0
        for images, labels in self.search_batches():
            logits = logits_of(model, images, self._config, self._data.prepared)
            num_right += are_right(logits, labels).sum()
            brier += brier_scores(logits, labels).sum()
            num_images += len(images)
            if bar is not None and num_images >= num_screening_images:
                share = num_right.item() / num_images
                if share + 3 * math.sqrt(max(share * (1 - share), 1 / num_images) / num_images) < bar:
                    break
        return Inherited(accuracy=num_right.item() / num_images, brier=brier.item() / num_images, num_images=num_images)


def open_inheritance(setup: TrainingSetup, device: torch.device) -> Inheritance:
    """Opens the inheritance of the trials of `setup` on `device`. A worker opens it once for all its trials.

    Raises:
        ArchError: The run folder has no weights of a supernet, or those of another space.
    """
    assert setup.shared is not None, "the caller knows that there is a supernet"
    path = setup.weights_path
    if not path.exists():
        setup.run.store.fetch(path)
    written = path.stat().st_mtime_ns if path.exists() else None  # another run may replace the file
    key = (path, written, setup.data, setup.data_root, device)
    if key not in _OPEN:
        supernet = open_supernet(setup.shared, path).to(device)
        _OPEN.clear()
        _OPEN[key] = Inheritance(supernet, setup.shared.config, setup.open_data(), device)
    return _OPEN[key]


_OPEN: dict[tuple[object, ...], Inheritance] = {}
