"""What the subnets of a step learn from the largest one, and how its gradient gives way to theirs."""

import torch
from jaxtyping import Float
from torch import Tensor

from cvt_nas.config import SupernetConfig
from cvt_nas.engine.criterion import Criterion, divergence

_MAX_RATIO = 5.0  # of probabilities, q over p, in an alpha-divergence: what the paper clips at


def loss_of(
    logits: Float[Tensor, "batch classes"],
    targets: Tensor,
    teacher: Float[Tensor, "batch classes"] | None,
    config: SupernetConfig,
    criterion: Criterion,
) -> Float[Tensor, ""]:
    """Of the subnet whose `logits` these are; it is the largest, or there is none, where `teacher` is None.

    Where images can have several classes, `kl` is of each class for itself, and the mean over them.
    """
    weight = 0.0 if teacher is None or config.distillation == "none" else config.distillation_weight
    loss = logits.new_zeros(())
    if weight < 1:
        smoothing = None if teacher is None else 0.0  # small subnets underfit as they are
        loss = (1 - weight) * criterion(logits, targets, label_smoothing=smoothing)
    if teacher is None or weight == 0:
        return loss
    if config.distillation == "alpha":
        return loss + weight * alpha_divergence(logits, teacher)
    answers = teacher.sigmoid() if criterion.is_multi_label else teacher.softmax(dim=1)
    return loss + weight * divergence(logits, answers, is_multi_label=criterion.is_multi_label)


def alpha_divergence(
    logits: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """For each image the greater of two divergences of the teacher's p from q: alpha = -1 and alpha = 1.

    `E_q[(p / q) ** alpha - 1] / (alpha (alpha - 1))`, which punishes a q that covers too much where alpha is -1, and
    one that covers too little where it is 1, then being the Kullback-Leibler divergence. Its gradient is
    `-E_q[(p / q) ** alpha / alpha * grad log q]`; at -1 the power is clipped, since it knows no bounds.

    Source: Wang et al. 2021, arXiv:2102.07954, section 4.
    """
    log_q, log_p = logits.log_softmax(dim=1), teacher.log_softmax(dim=1)
    p, q = log_p.exp(), log_q.detach().exp()
    inverse = (log_q.detach() - log_p).exp().clamp(max=_MAX_RATIO)
    values = torch.stack([(p * (log_p - log_q.detach())).sum(dim=1), (q * (inverse - 1)).sum(dim=1) / 2])
    gradients = torch.stack([-(p * log_q).sum(dim=1), (q * inverse * log_q).sum(dim=1)])
    chosen = values.argmax(dim=0, keepdim=True)
    value, gradient = (found.gather(0, chosen).mean() for found in (values, gradients))
    return value + gradient - gradient.detach()


def give_way(gradient: Tensor, other: Tensor | None) -> None:
    """Removes from `gradient`, in place, its component against `other`; nothing where they agree.

    Source: Gong et al. 2022, "NASViT", openreview.net/forum?id=Qaw16njk6L.
    """
    if other is None:
        return
    along, norm = (gradient * other).sum(), other.square().sum()
    gradient.sub_(other * torch.where(along < 0, along / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0))
