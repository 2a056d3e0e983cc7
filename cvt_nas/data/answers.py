"""A teacher's logits for the training images, as part of the targets of batches."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.data.images import to_device
from cvt_nas.errors import RunFolderError, first_line


def open_answers(path: Path, *, num_images: int) -> Float[np.ndarray, "images classes"]:
    """Opens a file of a teacher's logits, memory-mapped, float16.

    Raises:
        RunFolderError: The file is missing, damaged, or belongs to other images.
    """
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read: {first_line(error)}; delete it and go on by --resume") from error
    if len(found) != num_images:
        raise RunFolderError(f"{path}: has {len(found):,} answers, but there are {num_images:,} training images")
    return found


class Answers:
    """A teacher's logits for the training images.

    Args:
        logits: One row for each image of the split, float16, possibly memory-mapped.
        rows: Row of each of these images in the set that the split was taken from.
    """

    def __init__(self, logits: Float[np.ndarray, "images classes"], rows: Int[np.ndarray, " images"]) -> None:
        self._logits = logits
        self._places = np.zeros(rows.max() + 1, dtype=np.int64)
        self._places[rows] = np.arange(len(rows))

    def beside(
        self, labels: Tensor, rows: Int[np.ndarray, " batch"], temperature: float
    ) -> Float[Tensor, "batch two_classes"]:
        """Returns the targets of the images at `rows`: probabilities from their labels, then those of the teacher.

        Args:
            labels: Class indices, or float32 flags `(batch, classes)`. They are on the device of the targets.
        """
        logits = torch.from_numpy(self._logits[self._places[rows]].astype(np.float32))
        scaled = to_device(logits, labels.device) / temperature
        if labels.ndim > 1:
            return torch.cat([labels, scaled.sigmoid()], dim=1)
        return torch.cat([F.one_hot(labels, logits.shape[1]).float(), scaled.softmax(dim=1)], dim=1)
