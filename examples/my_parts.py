"""Parts of your own: a metric, a loss, a sampler and a callback, each found by its name.

In the folder of this file, a space file names them so:

    training: {loss: "my_parts:focal", metric: "my_parts:kappa", ...}
    search: {sampler: "my_parts:halton", ...}

and the command line so:

    cvt-nas search --space my.yaml --callback my_parts:show
"""

from typing import Any

from optuna.samplers import BaseSampler, QMCSampler
from torch import Tensor
from torch.nn import functional as F


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
