"""The loss of a training: what it weighs, smooths and refuses."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.engine.criterion import Criterion

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.3, -0.2], [-1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 2])
WEIGHTS = torch.tensor([4 / 3, 2 / 3, 4 / 3])


def test_cross_entropy_is_torchs() -> None:
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert torch.equal(Criterion("cross_entropy", label_smoothing=0.1)(LOGITS, LABELS), expected)


def test_weights_of_classes_are_averaged_over_images_whether_targets_are_indices_or_probabilities() -> None:
    criterion = Criterion("cross_entropy", weights=WEIGHTS)
    each = F.cross_entropy(LOGITS, LABELS, reduction="none") * WEIGHTS[LABELS]
    assert criterion(LOGITS, LABELS) == pytest.approx(float(each.mean()))
    assert criterion(LOGITS, F.one_hot(LABELS, 3).float()) == pytest.approx(float(each.mean()))


def test_parts_of_a_batch_add_up_to_the_whole_with_weights() -> None:
    criterion = Criterion("cross_entropy", weights=WEIGHTS)
    parts = [criterion(LOGITS[rows], LABELS[rows]) * share for rows, share in ((slice(3), 0.75), (slice(3, 4), 0.25))]
    assert sum(map(float, parts)) == pytest.approx(float(criterion(LOGITS, LABELS)))


def test_binary_cross_entropy_takes_indices_as_timm_does() -> None:
    from timm.loss.binary_cross_entropy import BinaryCrossEntropy

    expected = BinaryCrossEntropy(smoothing=0.1)(LOGITS, LABELS)
    assert Criterion("binary_cross_entropy", label_smoothing=0.1)(LOGITS, LABELS) == pytest.approx(float(expected))


def test_binary_cross_entropy_of_several_labels_weighs_the_positive_ones() -> None:
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]])
    weight = torch.tensor([1.0, 1.0, 1 / 3])
    expected = F.binary_cross_entropy_with_logits(LOGITS, targets, pos_weight=weight)
    found = Criterion("binary_cross_entropy", weights=weight, is_multi_label=True)(LOGITS, targets)
    assert torch.equal(found, expected)
    smoothed = F.binary_cross_entropy_with_logits(LOGITS, 0.9 * targets + 0.05)
    found = Criterion("binary_cross_entropy", label_smoothing=0.1, is_multi_label=True)(LOGITS, targets)
    assert torch.allclose(found, smoothed)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_function_of_the_users_gives_one_loss_or_one_for_each_image(reduction: str) -> None:
    def focal(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction=reduction)

    assert Criterion(focal)(LOGITS, LABELS) == pytest.approx(float(F.cross_entropy(LOGITS, LABELS)))


@pytest.mark.parametrize("given", [lambda logits, targets: logits, lambda logits, targets: 1.0])
def test_a_function_of_the_users_that_gives_something_else_is_refused(given: object) -> None:
    from cvt_nas.errors import PluginError

    with pytest.raises(PluginError, match=r"training\.loss: got .*, must be a tensor \(batch,\) or \(\)"):
        Criterion(given)(LOGITS, LABELS)  # type: ignore[arg-type]


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    from cvt_nas.engine.criterion import balanced_weights

    labels = np.array([0, 0, 0, 0, 1, 3])
    found = balanced_weights(labels, 4, is_binary=False)
    known = np.unique(labels)
    assert found[known] == pytest.approx(compute_class_weight("balanced", classes=known, y=labels))
    columns = np.eye(4, dtype=np.uint8)[labels]
    assert balanced_weights(columns, 4, is_binary=True) == pytest.approx([0.5, 5, 5, 5])
