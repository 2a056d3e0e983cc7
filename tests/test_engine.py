import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cvt_nas.arch import ArchConfig, BlockConfig, StageConfig
from cvt_nas.config import AugmentConfig, DataConfig, Experiment, TrainingConfig
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import (
    Checkpoint,
    DivergedError,
    Epoch,
    TrainingSetup,
    evaluate,
    fit,
    learning_rate,
    optimization,
    progress_reports,
)
from cvt_nas.engine.optimization import optimizer_of, ordered_sums, prepare_device
from cvt_nas.model import CvT, build_model, load_model
from cvt_nas.run import RunFolder

CPU = torch.device("cpu")


def tiny_arch(projection: str = "dw_bn") -> ArchConfig:
    linear = projection == "linear"
    block = BlockConfig(
        projection=projection,  # type: ignore[arg-type]
        kv_stride=1 if linear else 2,
        kernel_size=1 if linear else 3,
        num_heads=2,
        mlp_ratio=2.0,
    )
    return ArchConfig(
        image_size=8,
        num_channels=1,
        num_classes=10,
        stages=tuple(
            StageConfig(
                patch_kernel=3, patch_stride=1 + index, patch_padding=1, embed_dim=dim, blocks=(block,) * (1 + index),
                class_token=index == 1,
            )
            for index, dim in enumerate((16, 32))
        ),
    )  # fmt: skip


FEW = 0.25  # of the training images: four batches of 64, where all make seventeen


@pytest.fixture(scope="module")
def data() -> ImageData:
    config = DataConfig(dataset="digits", train_fraction=FEW)
    return load_data(config, root=None, image_size=8, num_channels=1, num_classes=10)


@pytest.fixture(scope="module")
def all_digits() -> ImageData:
    return load_data(DataConfig(dataset="digits"), root=None, image_size=8, num_channels=1, num_classes=10)


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 3, "batch_size": 64, "lr": 3e-3, **settings})


def train(data: ImageData, settings: TrainingConfig, *, seed: int = 0, **options: Any) -> list[Epoch]:
    return list(fit(tiny_arch(), settings, data, device=CPU, seed=seed, **options))


# of 344 digits, five steps an epoch: every part of a step has its share in the losses
RECIPE: dict[str, Any] = {
    "batch_size": 64, "lr": 3e-3, "warmup_epochs": 1, "drop_path": 0.1, "label_smoothing": 0.1, "clip_grad_norm": 1.0,
    "augment": AugmentConfig(crop_padding=1, mixup=0.2),
}  # fmt: skip


def weights_of(epoch: Epoch) -> torch.Tensor:
    return torch.cat([tensor.float().flatten() for tensor in epoch.model.state_dict().values()])


def test_training_learns_the_digits(all_digits: ImageData) -> None:
    epochs = train(all_digits, training(epochs=4, lr=1e-2, warmup_epochs=1))
    assert epochs[-1].accuracy > 0.85
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].curve == tuple(epoch.accuracy for epoch in epochs)


@pytest.fixture(scope="module")
def plain(data: ImageData) -> torch.Tensor:
    return weights_of(train(data, training(batch_size=32))[-1])


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "lr": 0.05},
        {"precision": "bf16"},
        {"ema_decay": 0.5},
        {"clip_grad_norm": 0.1},
        {"label_smoothing": 0.1},
        {"drop_path": [0.0, 0.1]},
        {"augment": AugmentConfig(crop_padding=1)},
        {"augment": AugmentConfig(flip=True)},
        {"augment": AugmentConfig(mixup=0.2)},
        {"augment": AugmentConfig(cutmix=1.0)},
        {"augment": AugmentConfig(random_erasing=0.25)},
    ],
    ids=str,
)
def test_every_setting_trains_and_changes_what_is_trained(
    data: ImageData, plain: torch.Tensor, settings: dict[str, Any]
) -> None:
    epochs = train(data, training(batch_size=32, **settings))
    assert epochs[-1].accuracy > 0.2
    assert all(math.isfinite(epoch.loss) for epoch in epochs)
    assert not torch.equal(weights_of(epochs[-1]), plain)


def test_the_first_steps_have_the_losses_that_they_had_in_earlier_versions(all_digits: ImageData) -> None:
    epochs = train(all_digits.of_classes((0, 1, 2)), training(**RECIPE))
    assert [epoch.loss for epoch in epochs] == pytest.approx([2.1969, 1.8081, 1.4809], abs=1e-4)


def test_a_seed_fixes_the_weights(data: ImageData) -> None:
    settings = training(epochs=1, drop_path=0.2, augment=AugmentConfig(crop_padding=1, mixup=0.5))
    one, again, other = (weights_of(train(data, settings, seed=seed)[-1]) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.0}, {"optimizer": "sgd"}], ids=["adamw", "no ema", "sgd"])
def test_a_training_that_was_cut_off_ends_as_if_it_was_not(
    data: ImageData, tmp_path: Path, settings: dict[str, Any]
) -> None:
    whole = train(data, training(drop_path=0.1, **settings))
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt")
    cut = fit(tiny_arch(), training(drop_path=0.1, **settings), data, device=CPU, seed=0, checkpoint=checkpoint)
    next(cut)
    cut.close()
    rest = train(data, training(drop_path=0.1, **settings), checkpoint=checkpoint)
    assert [epoch.number for epoch in rest] == [1, 2, 3]
    assert rest[-1].curve == whole[-1].curve
    assert torch.equal(weights_of(rest[-1]), weights_of(whole[-1]))
    assert [epoch.number for epoch in train(data, training(drop_path=0.1, **settings), checkpoint=checkpoint)] == [3]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = len(content) // 3
    content[start : start + 128] = bytes(byte ^ 0xFF for byte in content[start : start + 128])  # more than padding has
    path.write_bytes(content)


@pytest.mark.parametrize("how_many", [1, 2])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(data: ImageData, tmp_path: Path, how_many: int) -> None:
    whole, checkpoint = train(data, training()), Checkpoint(tmp_path / "checkpoint.pt")
    cut = fit(tiny_arch(), training(), data, device=CPU, seed=0, checkpoint=checkpoint)
    assert [next(cut).number for _ in range(2)] == [1, 2]
    cut.close()
    for path in (checkpoint.path, tmp_path / "checkpoint.before.pt")[:how_many]:
        damage(path)
    rest = train(data, training(), checkpoint=checkpoint)
    assert [epoch.number for epoch in rest] == [1, 2, 3]  # the first again from its checkpoint, or trained again
    assert math.isnan(rest[0].loss) == (how_many == 1)
    assert torch.equal(weights_of(rest[-1]), weights_of(whole[-1]))
    assert rest[-1].curve == whole[-1].curve


def test_a_checkpoint_that_is_cut_short_is_none(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"not a zip", bytes(1000))):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(content)
        assert Checkpoint(path).read(CPU) is None
        assert not path.exists()


def test_a_batch_in_two_parts_teaches_what_it_does_as_one(data: ImageData) -> None:
    arch, settings = tiny_arch("linear"), training(epochs=2, optimizer="sgd", lr=0.05, batch_size=65)
    one, two = (
        list(fit(arch, dataclasses.replace(settings, micro_batch=size), data, device=CPU, seed=0))[-1]
        for size in ("auto", 33)
    )
    torch.testing.assert_close(weights_of(one), weights_of(two), atol=1e-4, rtol=0)
    assert one.loss == pytest.approx(two.loss, rel=1e-4)


def test_the_trained_model_is_kept_before_its_last_epoch_is_reported(small: Experiment, tmp_path: Path) -> None:
    setup, images = setup_for(small, tmp_path), torch.randn(4, 1, 8, 8)
    folder = setup.run.model_path(tiny_arch().id)
    for report in progress_reports(tiny_arch(), setup, number=0, device=CPU, seed=0):
        assert (folder / "preprocessing.json").exists() == (report["epoch"] == 3)
    expected = train(setup.open_data(), training())[-1].model.eval()(images)
    torch.testing.assert_close(load_model(folder)(images), expected)


def test_a_loss_that_is_not_finite_ends_the_training_with_its_epoch(data: ImageData) -> None:
    with pytest.raises(DivergedError) as error:
        train(data, training(epochs=50, optimizer="sgd", lr=1e6))
    assert error.value.epoch == len(error.value.curve) + 1
    assert str(error.value) == f"loss not finite in epoch {error.value.epoch}"


class _FullDevice:
    """A data set whose device has no memory for a batch."""

    def __init__(self, data: ImageData, said: list[str]) -> None:
        self._data, self._said = data, said

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def train_batches(self, **options: Any) -> Iterator[Any]:
        yield from ()
        raise torch.OutOfMemoryError(*self._said)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["CUDA out of memory. Tried to allocate 2 GiB\nmore"], "CUDA out of memory. Tried to allocate 2 GiB"),
        ([], "OutOfMemoryError()"),
    ],
)
def test_running_out_of_device_memory_is_reported_as_such(
    data: ImageData, small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], reason: str
) -> None:
    monkeypatch.setattr(TrainingSetup, "open_data", lambda self: _FullDevice(data, said))
    reports = list(
        progress_reports(
            tiny_arch(),
            setup_for(small, tmp_path),
            number=0,
            device=CPU,
            seed=0,
        )
    )
    assert reports[-1]["status"] == "oom"
    assert reports[-1].get("reason") == reason


def setup_for(small: Experiment, path: Path) -> TrainingSetup:
    return TrainingSetup(
        training=training(), data=dataclasses.replace(small.data, train_fraction=FEW), data_root=None, image_size=8,
        num_channels=1, num_classes=10, run=RunFolder(path),
    )  # fmt: skip


def test_epochs_that_the_reader_knows_are_not_reported_again(small: Experiment, tmp_path: Path) -> None:
    options: dict[str, Any] = {"number": 0, "device": CPU, "seed": 0, "keep_model": False}
    first = progress_reports(tiny_arch(), setup_for(small, tmp_path), **options)
    assert [next(first)["epoch"], next(first)["epoch"]] == [1, 2]
    first.close()  # type: ignore[attr-defined]
    second = progress_reports(tiny_arch(), setup_for(small, tmp_path), num_known=1, **options)
    assert next(second)["epoch"] == 2  # in the checkpoint, but nobody heard of it
    second.close()  # type: ignore[attr-defined]
    assert [r["epoch"] for r in progress_reports(tiny_arch(), setup_for(small, tmp_path), num_known=2, **options)] == [
        3
    ]
    again = progress_reports(tiny_arch(), setup_for(small, tmp_path), num_known=3, **options)
    assert [report["epoch"] for report in again] == [3]  # or its end would never be heard of


def test_an_evaluation_that_runs_out_of_memory_goes_on_with_halves(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes, forward = CvT(tiny_arch()).eval(), list[int](), CvT.forward
    whole = evaluate(model, data, "search", training=training(), device=CPU)

    def on_a_small_device(model: CvT, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, images)

    monkeypatch.setattr(CvT, "forward", on_a_small_device)
    assert evaluate(model, data, "search", training=training(), device=CPU) == whole
    assert sizes[:4] == [256, 128, 64, 64]


def test_the_learning_rate_warms_up_linearly_then_falls_by_half_a_cosine() -> None:
    settings = training(epochs=10, lr=1.0, min_lr=0.1, schedule="cosine", warmup_epochs=2.0, warmup_lr=0.2)
    found = [learning_rate(settings, epoch) for epoch in (0, 1, 2, 6, 10, 11)]
    assert found == pytest.approx([0.2, 0.6, 1.0, 0.55, 0.1, 0.1])


def test_the_learning_rate_begins_at_its_peak_again_after_each_restart() -> None:
    settings = training(epochs=9, lr=1.0, schedule="cosine", warmup_epochs=1.0, warmup_lr=0.0, restarts=[3, 5])
    found = [learning_rate(settings, epoch) for epoch in (0, 1, 2, 2.999, 3, 4, 5, 7, 9)]
    assert found == pytest.approx([0, 1, 0.5, 0, 1, 0.5, 1, 0.5, 0], abs=1e-5)


def test_weight_decay_spares_norms_biases_class_token_and_positions() -> None:
    arch = tiny_arch()
    model = build_model(
        dataclasses.replace(arch, stages=tuple(dataclasses.replace(stage, pos_embed=True) for stage in arch.stages))
    )
    optimizer = optimizer_of(model, training(weight_decay=0.3), CPU)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = name.endswith((".bias", "cls_token", "pos_embed")) or ".bn." in name or "norm" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.3), name


def test_the_learning_rate_of_wsd_stays_at_its_peak_until_the_decay() -> None:
    settings = TrainingConfig(
        epochs=10, lr=0.1, warmup_epochs=2, warmup_lr=0.0, min_lr=0.01, schedule="wsd", decay_fraction=0.4
    )
    found = [learning_rate(settings, epoch) for epoch in (0, 1, 2, 6, 7, 10, 11)]
    assert found == pytest.approx([0.0, 0.05, 0.1, 0.1, 0.055, 0.01, 0.01])


def test_the_average_forgets_the_initialisation_within_the_first_steps(all_digits: ImageData) -> None:
    settings = TrainingConfig(epochs=1, lr=3e-3, batch_size=64)
    slow = train(all_digits, dataclasses.replace(settings, ema_decay=0.9999))[-1]
    assert slow.accuracy > 0.3  # 0.1 by guessing; with a constant decay, what is averaged is the initialisation


def test_evaluation_is_of_the_averaged_weights_where_ema_is_on(data: ImageData) -> None:
    settings = training(epochs=1, ema_decay=0.0)
    plain = weights_of(train(data, settings)[-1])
    settings = dataclasses.replace(settings, ema_decay=0.99)
    averaged = train(data, settings)[-1]
    assert not torch.allclose(plain, weights_of(averaged))
    assert averaged.accuracy == evaluate(averaged.model, data, "search", training=settings, device=CPU)


@pytest.mark.parametrize("is_possible", [True, False])
def test_on_a_gpu_operations_without_an_order_are_errors_in_a_pass_and_warnings_outside(
    is_possible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(optimization, "_has_ordered_products", lambda device: is_possible)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # what prepare_device changes
    precision, warns_inside = torch.get_float32_matmul_precision(), list[bool]()

    def fail() -> None:
        warns_inside.append(torch.is_deterministic_algorithms_warn_only_enabled())
        raise ArithmeticError

    try:
        prepare_device(cuda)
        with pytest.raises(ArithmeticError), ordered_sums(cuda):
            fail()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(precision)
    assert warns_inside == [not is_possible]
    with ordered_sums(CPU):
        assert not torch.are_deterministic_algorithms_enabled()


def test_only_what_torch_says_of_cublas_lets_a_pass_go_on_with_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(error: RuntimeError | None) -> bool:
        def mm(*matrices: torch.Tensor) -> None:
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            if error is not None:
                raise error

        monkeypatch.setattr(torch, "mm", mm)
        return optimization._has_ordered_products.__wrapped__(CPU)

    try:
        assert found(None)
        assert not found(RuntimeError("it uses CuBLAS; set CUBLAS_WORKSPACE_CONFIG=:4096:8"))
        with pytest.raises(torch.OutOfMemoryError):
            found(torch.OutOfMemoryError("CUDA out of memory"))
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
