"""Images that have several labels: their splits, and the targets of their batches."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from conftest import small_digits
from cvt_nas.config import AugmentConfig, DataConfig, SupernetConfig, TrainingConfig, parse_experiment
from cvt_nas.data import SPLITS
from cvt_nas.data.arrays import ArrayData
from cvt_nas.data.splitting import hold_out, split_off_search
from cvt_nas.data.stacks import Arrays
from cvt_nas.engine import SharedWeights, evaluate, fit, train_supernet
from cvt_nas.engine.criterion import criterion_of
from cvt_nas.engine.inheritance import Inheritance
from cvt_nas.engine.metrics import metric_of
from cvt_nas.errors import DataError
from test_engine import tiny_arch

CPU = torch.device("cpu")
NAMES = ("cloud", "sea", "ship", "none")


def labels_of(num: int, rates: tuple[float, ...] = (0.5, 0.2, 0.03, 0.1), seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((num, len(rates))) < rates).astype(np.uint8)


def arrays_of(num: int = 300) -> ArrayData:
    rng, labels = np.random.default_rng(0), labels_of(num)
    images = rng.integers(0, 255, (num, 1, 8, 8), dtype=np.uint8)
    arrays = Arrays(
        images={"train": images, "test": images}, labels={"train": labels, "test": labels}, class_names=NAMES
    )
    return ArrayData(DataConfig(dataset="digits"), arrays, 8)


def test_each_label_is_held_out_in_proportion() -> None:
    labels = labels_of(2000)
    kept, held = hold_out(labels, 0.2, 0, setting="search_fraction")
    assert sorted([*kept, *held]) == list(range(2000))
    np.testing.assert_allclose(labels[held].sum(axis=0) / labels.sum(axis=0), 0.2, atol=0.03)
    again, other = (hold_out(labels, 0.2, seed, setting="search_fraction")[1] for seed in (0, 1))
    assert np.array_equal(held, again)
    assert not np.array_equal(held, other)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_a_rare_label_is_in_both_parts_and_in_what_is_left_of_the_training_images(fraction: float) -> None:
    labels = np.zeros((60, 5), np.uint8)
    labels[np.arange(60), np.arange(60) % 3] = 1
    labels[[4, 9], 3] = labels[[9, 11, 30], 4] = 1
    kept, held = hold_out(labels, fraction, 0, setting="search_fraction")
    assert labels[kept].any(axis=0).all()
    assert labels[held].any(axis=0).all()
    config = DataConfig(dataset="digits", search_fraction=0.3, train_fraction=0.05)
    train, _ = split_off_search(labels, config)
    assert labels[train].any(axis=0).all()
    assert len(train) < 10


def test_a_label_of_one_image_is_refused_by_its_name() -> None:
    labels = labels_of(100)
    labels[:, 2] = np.arange(100) == 7
    with pytest.raises(DataError, match=r"data.search_fraction: .* a single image is left of ship; add images"):
        split_off_search(labels, DataConfig(dataset="digits"), NAMES)


def test_targets_are_zeros_and_ones_for_each_label_in_the_order_that_labels_tells() -> None:
    data = arrays_of()
    assert data.is_multi_label
    for split in SPLITS:
        targets = torch.cat([targets for _, targets in data.eval_batches(split, batch_size=64, device=CPU)])
        assert targets.dtype == torch.float32
        assert data.labels(split).dtype == np.uint8
        np.testing.assert_array_equal(targets.numpy(), data.labels(split))
    batches = data.train_batches(batch_size=32, augment=AugmentConfig(), device=CPU, seed=0, epoch=0)
    assert all(targets.shape == (32, 4) and set(targets.unique().tolist()) == {0.0, 1.0} for _, targets in batches)


@pytest.mark.parametrize("kinds", [{"mixup": 0.8}, {"cutmix": 1.0}])
@pytest.mark.parametrize("most", [2**25, 500])
def test_mixed_targets_are_mixed_as_the_images_are(
    kinds: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvt_nas.data.augment._MIXED_VALUES", most)
    data = arrays_of()

    def first(augment: AugmentConfig) -> tuple[torch.Tensor, torch.Tensor]:
        return next(data.train_batches(batch_size=32, augment=augment, device=CPU, seed=0, epoch=0))

    (_, plain), (_, mixed) = first(AugmentConfig()), first(AugmentConfig(**kinds))
    share = mixed[(plain == 1) & (plain.flip(0) == 0)].unique()
    assert len(share) == 1
    torch.testing.assert_close(mixed, share * plain + (1 - share) * plain.flip(0))
    assert 0 < share < 1


def test_a_part_of_the_labels_is_no_part_of_the_images() -> None:
    with pytest.raises(DataError, match="images with several labels have no single class"):
        arrays_of().of_classes([0, 1])


def digits_with_marks() -> ArrayData:
    """Small digits, each with the labels that it is even, above 4, and a 7."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images, values = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None], digits.target
    labels = np.stack([values % 2 == 0, values > 4, values == 7], axis=1).astype(np.uint8)
    arrays = Arrays(
        images={"train": images[:1200], "test": images[1200:]},
        labels={"train": labels[:1200], "test": labels[1200:]},
        class_names=("even", "above 4", "7"),
    )
    return ArrayData(DataConfig(dataset="digits"), arrays, 8)


@pytest.mark.parametrize("settings", [{}, {"metric": "auroc", "class_weights": "balanced", "loss": "auto"}])
def test_a_network_learns_several_labels_and_is_measured_by_a_metric_of_them(settings: dict[str, Any]) -> None:
    data = digits_with_marks()
    training = TrainingConfig(epochs=4, batch_size=32, lr=3e-3, label_smoothing=0.05, **settings)
    arch = dataclasses.replace(tiny_arch(), num_classes=3)
    epochs = list(fit(arch, training, data, device=CPU, seed=0))
    assert epochs[-1].accuracy > 0.9
    logits = torch.cat([epochs[-1].model(images) for images, _ in data.eval_batches("test", batch_size=64, device=CPU)])
    name = settings.get("metric", "mean_average_precision")
    expected = {"auroc": roc_auc_score, "mean_average_precision": average_precision_score}[name](
        data.labels("test"), logits.detach().numpy()
    )
    assert evaluate(epochs[-1].model, data, "test", training=training, device=CPU) == pytest.approx(expected)


def test_a_supernet_of_several_labels_is_inherited_from() -> None:
    data = digits_with_marks()
    space = parse_experiment(small_digits(**{"  num_classes": "  num_classes: 3"}), "small.yaml").space
    config = SupernetConfig(epochs=2, batch_size=64, lr=3e-3, num_random=1, metric="macro_f1")
    shared = SharedWeights(space=space, config=config)
    (*_, last) = train_supernet(shared, data, device=CPU, seed=0)
    found = Inheritance(last.supernet, config, data, CPU).measure(space.largest, bar=0.99)
    assert found.num_images == data.num_images("search"), "no images are left out where the error is not known"
    assert 0.4 < found.accuracy < 1
    assert found.brier is None


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"loss": "cross_entropy"}, "training.loss: cross_entropy is for images of one class each"),
        ({"metric": "accuracy"}, "training.metric: accuracy is for images of one class each, .* use one of macro_f1"),
        ({"metric": "balanced_accuracy"}, "training.metric: balanced_accuracy is for images of one class each"),
    ],
)
def test_what_is_for_one_class_an_image_is_refused(settings: dict[str, Any], why: str) -> None:
    training, data = TrainingConfig(epochs=1, **settings), digits_with_marks()
    with pytest.raises(DataError, match=why):
        _ = criterion_of(training, data, CPU), metric_of(training, data)
