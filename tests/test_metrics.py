"""What a search maximises: each metric against a hand count, and against what is lost."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cvt_nas.engine.metrics import score
from cvt_nas.errors import DataError, PluginError

# three images of class 0, one of which is taken for class 1; one of class 1; class 2 has none
ANSWERS = torch.tensor([[3.0, 0, 0], [2, 1, 0], [0, 1, 0], [0, 2, 1]])
LABELS = torch.tensor([0, 0, 0, 1])
SEVERAL = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", 3 / 4),
        ("balanced_accuracy", (2 / 3 + 1) / 2),
        ("macro_f1", (4 / 5 + 2 / 3) / 2),
        ("mean_average_precision", 1.0),
        ("auroc", 1.0),
    ],
)
def test_each_metric_of_images_of_one_class_is_a_mean_over_the_classes_that_there_are(
    metric: str, expected: float
) -> None:
    assert score(metric, ANSWERS, LABELS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        # answers above 0: class 0 at images 0 and 1; class 1 at 1, 2, 3; class 2, which no image has, at 3
        ("macro_f1", (1 + 4 / 5 + 0) / 3),
        ("mean_average_precision", (1 + (1 + 2 / 3) / 2) / 2),
        ("auroc", (1 + 3.5 / 4) / 2),
    ],
)
def test_each_metric_of_images_of_several_classes_takes_a_class_for_itself(metric: str, expected: float) -> None:
    assert score(metric, ANSWERS, SEVERAL) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "mean_average_precision", "auroc"])
def test_answers_that_are_not_finite_are_worth_no_more_than_wrong_ones(metric: str) -> None:
    answers = torch.eye(3)[[0, 1, 2, 0, 1, 2]] * 5
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    lost, wrong = answers.clone(), answers.clone()
    lost[1] = float("nan")
    wrong[1] = torch.tensor([6.0, -6.0, 6.0])
    assert score(metric, answers, labels) == 1
    assert score(metric, lost, labels) == pytest.approx(score(metric, wrong, labels))
    assert score(metric, lost, labels) < 1
    assert score(metric, torch.full((6, 3), float("nan")), labels) <= 1 / 3


def test_probabilities_that_are_equal_in_float32_still_rank() -> None:
    answers = torch.tensor([[40.0, 0], [60.0, 0], [50.0, 0]])
    assert score("auroc", answers, torch.tensor([1, 0, 0])) == 1


def test_a_split_in_which_every_image_has_all_classes_has_no_auroc() -> None:
    with pytest.raises(DataError, match="auroc needs a class that some images have"):
        score("auroc", ANSWERS, torch.ones(4, 3, dtype=torch.uint8))


def kappa(logits: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(labels, logits.argmax(1)))


def ten_times(logits: Tensor, labels: Tensor) -> float:
    del logits, labels
    return 10.0


def test_a_function_of_the_users_is_found_by_its_name() -> None:
    assert score(f"{__name__}:kappa", ANSWERS, LABELS) == pytest.approx(0.5)


def test_a_function_of_the_users_that_leaves_the_range_is_refused() -> None:
    with pytest.raises(PluginError, match=r"training\.metric: .*:ten_times gives 10\.0, must be from 0 to 1"):
        score(f"{__name__}:ten_times", ANSWERS, LABELS)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:f", "cannot be imported"),
        (f"{__name__}:nothing", "cannot be imported"),
        ("math:pi", "is no fun"),
    ],
)
def test_a_name_that_leads_to_no_function_is_refused(name: str, why: str) -> None:
    with pytest.raises(PluginError, match=rf"training\.metric: {name}: {why}"):
        score(name, ANSWERS, LABELS)


def test_metrics_equal_scikit_learns_on_random_answers() -> None:
    from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 300)
    answers = random.normal(size=(300, 5)) + 2 * np.eye(5)[labels]
    given = torch.tensor(answers, dtype=torch.float32), torch.tensor(labels)
    shares = given[0].double().softmax(1).numpy()
    assert score("balanced_accuracy", *given) == pytest.approx(balanced_accuracy_score(labels, answers.argmax(1)))
    assert score("macro_f1", *given) == pytest.approx(f1_score(labels, answers.argmax(1), average="macro"))
    assert score("auroc", *given) == pytest.approx(roc_auc_score(labels, shares, multi_class="ovr"))
    expected = average_precision_score(np.eye(5)[labels], shares, average="macro")
    assert score("mean_average_precision", *given) == pytest.approx(expected)
