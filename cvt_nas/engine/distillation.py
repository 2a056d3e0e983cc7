"""Distillation from the largest subnet of a step to the others, and projection of its gradient."""

import torch
from jaxtyping import Float
from torch import Tensor

from cvt_nas.config import SupernetConfig
from cvt_nas.engine.criterion import Criterion, divergence

_MAX_RATIO = 5.0  # of probabilities, q over p, in an alpha-divergence; the paper clips at it


def loss_of(
    logits: Float[Tensor, "batch classes"],
    targets: Tensor,
    teacher: Float[Tensor, "batch classes"] | None,
    config: SupernetConfig,
    criterion: Criterion,
) -> Float[Tensor, ""]:
    """Loss of a subnet.

    If images can have several classes, `kl` treats each class separately, and averages over classes. The distillation
    compares logits divided by `distillation_temperature`, and is multiplied by its square.

    Args:
        logits: Answers of the subnet.
        teacher: Logits of the largest subnet; None for the largest subnet itself, or without one.

    Source of the temperature: Hinton et al. 2015, arXiv:1503.02531.
    """
    weight = 0.0 if teacher is None or config.distillation == "none" else config.distillation_weight
    loss = logits.new_zeros(())
    if weight < 1:
        smoothing = None if teacher is None else 0.0  # small subnets underfit anyway
        loss = (1 - weight) * criterion(logits, targets, label_smoothing=smoothing)
    if teacher is None or weight == 0:
        return loss
    if (temperature := config.distillation_temperature) != 1:
        logits, teacher, weight = logits / temperature, teacher / temperature, weight * temperature**2
    if config.distillation == "alpha":
        return loss + weight * alpha_divergence(logits, teacher)
    answers = teacher.sigmoid() if criterion.is_multi_label else teacher.softmax(dim=1)
    return loss + weight * divergence(logits, answers, is_multi_label=criterion.is_multi_label)


def alpha_divergence(
    logits: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """The greater of two alpha-divergences of the teacher's p from q, averaged over images: alpha = -1 and alpha = 1.

    The divergence is `E_q[(p / q) ** alpha - 1] / (alpha (alpha - 1))`. With alpha = -1, it punishes a q that covers
    too much. With alpha = 1, it is the Kullback-Leibler divergence, and punishes a q that covers too little. Its
    gradient is `-E_q[(p / q) ** alpha / alpha * grad log q]`. At -1, the power is clipped, since it is unbounded.

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
    """Removes the component of `gradient` against `other`, in place. It does nothing if they agree.

    Source: Gong et al. 2022, "NASViT", openreview.net/forum?id=Qaw16njk6L.
    """
    if other is None:
        return
    along, norm = (gradient * other).sum(), other.square().sum()
    gradient.sub_(other * torch.where(along < 0, along / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0))
