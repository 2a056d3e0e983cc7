"""Parts of your own: a data set, a metric, a loss, a sampler and a callback, each found by its name.

In the folder of this file, a space file names them so:

    data: {dataset: "my_parts:shapes"}
    training: {loss: "my_parts:focal", metric: "my_parts:kappa", ...}
    search: {sampler: "my_parts:halton", ...}

and the command line so:

    cvt-nas search --space my.yaml --callback my_parts:show
"""

from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler, QMCSampler
from torch import Tensor
from torch.nn import functional as F


class Shapes:
    """Grey images of 16 x 16 pixels with bright columns or rows, made when they are asked for."""

    classes = ("columns", "rows")

    def __init__(self, num_images: int, seed: int) -> None:
        self.targets, self._seed = [index % 2 for index in range(num_images)], seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        random, label = np.random.default_rng((self._seed, index)), self.targets[index]
        image = random.integers(0, 150, (16, 16)) + 100 * (np.arange(16) // 2 % 2)
        return (image.T if label == 1 else image).astype(np.uint8), label


def shapes(root: Path | None) -> dict[str, Shapes]:
    """A data set for `data.dataset`; a real one would read its images below `root`."""
    del root
    return {"train": Shapes(200, seed=0), "test": Shapes(60, seed=1)}


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """The focal loss of each image (Lin et al. 2017, arXiv:1708.02002): what is easy counts less.

    Args:
        logits: `(batch, classes)`.
        targets: Class indices `(batch,)`, or probabilities `(batch, classes)` where images are mixed.
    """
    loss = F.cross_entropy(logits, targets, reduction="none")
    return (1 - (-loss).exp()) ** 2 * loss


def kappa(logits: Tensor, labels: Tensor) -> float:
    """Cohen's kappa with quadratic weights, for classes that are grades; less than chance is 0.

    Args:
        logits: Of all images of a split, `(images, classes)`, on the CPU.
        labels: Class indices `(images,)`.
    """
    from sklearn.metrics import cohen_kappa_score

    return max(float(cohen_kappa_score(labels, logits.argmax(dim=1), weights="quadratic")), 0.0)


def halton(seed: int) -> BaseSampler:
    """One of Optuna's samplers, made anew before each proposal."""
    return QMCSampler(qmc_type="halton", scramble=True, seed=seed, warn_independent_sampling=False)


def show(event: Any) -> None:
    """Prints each event of a search."""
    print(type(event).__name__, flush=True)
