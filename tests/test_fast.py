"""Trainings whose blocks are compiled, or whose passes are replayed: they end as those that run as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from cvt_nas.config import AugmentConfig, TrainingConfig
from cvt_nas.data import ImageData
from cvt_nas.engine import Checkpoint, SharedWeights, compiling, fit, train_supernet
from cvt_nas.engine import supernet as supernet_engine
from cvt_nas.engine.speed import FastestWay, fastest_way
from cvt_nas.model import CvT
from cvt_nas.supernet import Supernet
from killed import CPU, open_digits
from small_device import SmallDevice
from test_engine import tiny_arch, training, weights_of
from test_supernet_training import SPACE, config, equal

Model = TypeVar("Model", bound=nn.Module)
MIXED = AugmentConfig(crop_padding=1, mixup=0.2, random_erasing=0.25)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_digits().of_classes((0, 1))  # three batches of 64


def trained(data: ImageData, settings: TrainingConfig, **options: Any) -> tuple[Tensor, float]:
    *_, last = fit(tiny_arch(), settings, data, device=CPU, seed=0, **options)
    return weights_of(last), last.loss


# --- replayed passes ------------------------------------------------------------------------------------------------


class CallsAgain:
    """Stands in for CUDA's graphs, of which a CPU has none: to replay a pass, it calls it again, and puts what it makes
    where it was when it was recorded. To record leaves no trace, as a capture, in which nothing runs.

    Args:
        fails: Whether nothing can be recorded.
        errs: Whether a replay gives another gradient.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False, errs: bool = False) -> None:
        self.num_recorded = self.num_replayed = 0
        self._fails, self._errs = fails, errs
        self._models: list[nn.Module] = []

        made_supernet = supernet_engine.supernet_of

        def made(*args: Any, **options: Any) -> CvT:
            return self.watch(CvT(*args, **options))

        def supernet_of(shared: SharedWeights) -> Supernet:
            return self.watch(made_supernet(shared))

        monkeypatch.setattr("cvt_nas.engine.training.CvT", made)
        monkeypatch.setattr("cvt_nas.engine.supernet.supernet_of", supernet_of)
        for room in ("training", "supernet"):
            monkeypatch.setattr(f"cvt_nas.engine.{room}.recorder_of", lambda device: self.record)

    def watch(self, model: Model) -> Model:
        """The next passes that are recorded are those of `model`."""
        self._models.append(model)
        return model

    def record(self, run: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        model, drawn = self._models[-1], torch.get_rng_state()
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        made = run()
        kept = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        model.load_state_dict(buffers, strict=False)
        torch.set_rng_state(drawn)
        self.num_recorded += 1

        def replay() -> None:
            before = [(p, p.grad) for p in model.parameters()]
            model.zero_grad(set_to_none=True)
            for own, new in zip(made, run(), strict=True):
                own.copy_(new)
            for parameter, gradient in kept:
                assert parameter.grad is not None
                gradient.copy_(2 * parameter.grad if self._errs else parameter.grad)
            for parameter, gradient in before:
                parameter.grad = gradient
            self.num_replayed += 1

        return made, replay


@pytest.mark.parametrize(
    "settings",
    [
        {"drop_path": 0.2, "clip_grad_norm": 0.1, "augment": MIXED},
        {"optimizer": "sgd", "lr": 0.05, "ema_decay": 0.0},
        {"precision": "bf16", "activation_checkpointing": "on"},
    ],
    ids=str,
)
def test_a_training_that_is_replayed_ends_as_one_that_is_not(
    data: ImageData, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(data, training(epochs=4, compile="off", **settings))
    graphs = CallsAgain(monkeypatch)
    weights, loss = trained(data, training(epochs=4, compile="graph", **settings))
    assert torch.equal(weights, plain[0])
    assert loss == plain[1]
    assert (graphs.num_recorded, graphs.num_replayed) == (1, 4 * 3 - 2)

    cut = fit(
        tiny_arch(), training(epochs=4, **settings), data, device=CPU, seed=0, checkpoint=Checkpoint(tmp_path / "0.pt")
    )
    next(cut)
    cut.close()
    weights, _ = trained(data, training(epochs=4, **settings), checkpoint=Checkpoint(tmp_path / "0.pt"))
    assert torch.equal(weights, plain[0])


@pytest.mark.parametrize(
    ("why", "num_replayed"),
    [
        ("it cannot be recorded", 0),
        ("its replay differs", 1),
        ("it takes more than half of the memory", 0),
        ("batches are cut", 0),
    ],
)
def test_a_pass_that_cannot_be_replayed_runs_as_it_is(
    data: ImageData, why: str, num_replayed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: dict[str, Any] = {"micro_batch": 32} if why == "batches are cut" else {}
    plain = trained(data, training(drop_path=0.2, compile="off", **cut))
    graphs = CallsAgain(monkeypatch, fails=why == "it cannot be recorded", errs=why == "its replay differs")
    settings = training(drop_path=0.2, compile="graph", **cut)
    if why == "it takes more than half of the memory":
        with SmallDevice() as device:
            peak = device.peak_of(lambda: trained(data, training(drop_path=0.2, compile="off")))
        with SmallDevice(1.3 * peak) as device:
            weights, _ = trained(data, settings, meter=device)
        assert device.num_refused == 0
    else:
        weights, _ = trained(data, settings)
    assert torch.equal(weights, plain[0])
    assert graphs.num_replayed == num_replayed


@pytest.mark.parametrize(
    "settings",
    [
        {"drop_path": 0.2, "distillation": "alpha", "project_gradients": True, "augment": MIXED},
        {"opening": {"kernel_size": 2}, "kernel_maps": True, "own_norms": ["kv_stride"], "distillation": "none"},
        {"distil_from": "averaged", "distillation_temperature": 2.0, "largest_weight": 3.0},
    ],
    ids=str,
)
def test_a_supernet_whose_largest_and_smallest_are_replayed_ends_as_one_without(
    data: ImageData, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shared_weights(way: str) -> dict[str, Tensor]:
        shared = SharedWeights(space=SPACE, config=config(epochs=4, batch_size=64, compile=way, **settings))
        *_, last = train_supernet(shared, data, device=CPU, seed=0)
        return {name: tensor.clone() for name, tensor in last.supernet.state_dict().items()}

    plain = shared_weights("off")
    graphs = CallsAgain(monkeypatch)
    assert equal(shared_weights("graph"), plain)
    num_smallest = 2 if "opening" in settings else 1  # it is another once kernels are opened
    assert graphs.num_recorded == 1 + num_smallest
    num_steps = 4 * (data.num_images("train") // 64)
    assert graphs.num_replayed == 2 * num_steps - 2 * (1 + num_smallest)


# --- compiled blocks ------------------------------------------------------------------------------------------------


OF_TORCH = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def num_compiled() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@OF_TORCH
@pytest.mark.parametrize("settings", [{}, {"micro_batch": 32, "activation_checkpointing": "on"}], ids=str)
def test_a_training_with_compiled_blocks_draws_as_one_without_and_a_kind_is_compiled_once(
    data: ImageData, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")  # without code for this CPU, which takes a minute
    monkeypatch.setattr(compiling, "_COMPILED", {})
    settings = {"epochs": 1, "drop_path": 0.2, "augment": MIXED, **settings}
    plain, plain_loss = trained(data, training(**settings, compile="off"))
    before = num_compiled()
    weights, loss = trained(data, training(**settings, compile="blocks"))
    assert num_compiled() - before == 3  # one of the first stage, two of the second: one that is dropped, and one not
    torch.testing.assert_close(weights, plain, rtol=1e-3, atol=1e-4)
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    assert torch.equal(trained(data, training(**settings, compile="blocks"))[0], weights)
    assert num_compiled() - before == 3, "another network of the same kinds"


@OF_TORCH
@pytest.mark.slow
def test_blocks_that_inductor_compiles_train_as_those_that_are_not_compiled(data: ImageData) -> None:
    settings = {"epochs": 2, "drop_path": 0.2, "augment": MIXED}
    plain, plain_loss = trained(data, training(**settings, compile="off"))
    weights, loss = trained(data, training(**settings, compile="blocks"))
    torch.testing.assert_close(weights, plain, rtol=1e-2, atol=1e-3)
    assert loss == pytest.approx(plain_loss, rel=1e-3)


# --- which of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "fastest"),
    [
        ({"off": 100.0, "graph": 300.0}, "graph"),
        ({"off": 100.0, "graph": 99.0}, "off"),
        ({"off": 100.0, "graph": 102.0, "blocks": 170.0}, "blocks"),
        ({"off": 100.0, "graph": 150.0, "blocks": 160.0}, "graph"),  # blocks change results, if by rounding
    ],
    ids=str,
)
def test_the_fastest_way_is_taken_and_compiled_blocks_where_they_gain_a_tenth(
    rates: dict[Any, float], fastest: str
) -> None:
    found = FastestWay.of(rates)
    assert found.fastest == fastest
    assert found.describe().startswith(f"{fastest}, by images/s: off 100")


@OF_TORCH
@pytest.mark.parametrize(
    ("options", "ways"),
    [
        ({}, ["off", "graph"]),
        ({"num_devices": 2}, ["off"]),
        ({"worth_compiling": 0.0}, ["off", "graph", "blocks"]),
    ],
    ids=str,
)
def test_every_way_that_may_be_worth_it_is_measured(
    data: ImageData, options: dict[str, Any], ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    found = fastest_way(tiny_arch(), training(), data, device=CPU, seconds=0.05, **options)
    assert found is not None
    assert list(found.images_per_second) == ways
    assert all(rate > 0 for rate in found.images_per_second.values())
