import dataclasses
import errno
import itertools
import math
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import cvt_nas.engine.inheritance as engine_inheritance
from conftest import own_processes
from cvt_nas.arch import cost_of
from cvt_nas.config import AugmentConfig, DataConfig, SupernetConfig
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import (
    Checkpoint,
    DivergedError,
    Inheritance,
    SharedWeights,
    TrainingSetup,
    evaluate,
    open_inheritance,
    open_supernet,
    recalibrate_batch_norm,
    supernet_reports,
    train_supernet,
)
from cvt_nas.engine.criterion import Criterion
from cvt_nas.engine.distillation import alpha_divergence, give_way, loss_of
from cvt_nas.engine.evaluation import brier_scores
from cvt_nas.engine.inheritance import save_supernet
from cvt_nas.engine.memory import Part
from cvt_nas.engine.optimization import TrainingState
from cvt_nas.engine.subnets import Subnet, SubnetSampler
from cvt_nas.engine.supernet import _backward, _step
from cvt_nas.errors import StorageError
from cvt_nas.model import CvT
from cvt_nas.run import RunFolder
from cvt_nas.space import Bound, SearchSpace, StageSpace
from cvt_nas.supernet import Supernet, extract
from small_device import SmallDevice
from test_engine import RECIPE

CPU = torch.device("cpu")
STAGE = StageSpace(
    patch_kernel=(3,), patch_stride=(1,), patch_padding=None, embed_dim=(8, 16), depth=(1, 2), kv_stride=(1, 2),
    kernel_size=(1, 3), num_heads=(1, 2), mlp_ratio=(1.0, 2.0), projection=("dw_bn",),
)  # fmt: skip
SPACE = SearchSpace(
    image_size=8, num_channels=1, num_classes=10, bounds={},
    stages=(STAGE, dataclasses.replace(STAGE, patch_stride=(2,), class_token=True)),
)  # fmt: skip

ONE_TOKEN = dataclasses.replace(SPACE, image_size=2).smallest  # the grid of keys and values has one
DIGITS = DataConfig(dataset="digits")
FEW_DIGITS = DataConfig(dataset="digits", train_fraction=0.12)
FEW: dict[str, Any] = {"batch_size": 32}


def config(**values: Any) -> SupernetConfig:
    return SupernetConfig(**{"epochs": 2, "batch_size": 128, "lr": 3e-3, "ema_decay": 0.9} | values)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DIGITS, root=None, image_size=8, num_channels=1, num_classes=10)


@pytest.fixture(scope="module")
def few() -> ImageData:
    """Training images for an epoch of four steps of `FEW`, and all images of the search split."""
    data = load_data(FEW_DIGITS, root=None, image_size=8, num_channels=1, num_classes=10)
    assert data.num_images("train") // FEW["batch_size"] == 4
    return data


def state_after(data: ImageData, settings: SupernetConfig, **options: Any) -> dict[str, Tensor]:
    *_, last = train_supernet(SharedWeights(space=SPACE, config=settings), data, device=CPU, seed=0, **options)
    return {name: tensor.clone() for name, tensor in last.supernet.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- which subnets --------------------------------------------------------------------------------------------------


def test_a_step_trains_the_largest_first_then_random_ones_then_the_smallest() -> None:
    sampler = SubnetSampler(SPACE, config(num_random=3), seed=0)
    subnets = sampler.draw(0, 5)
    assert [subnet.kind for subnet in subnets] == ["largest", "random", "random", "random", "smallest"]
    assert (subnets[0].arch, subnets[-1].arch) == (SPACE.largest, SPACE.smallest)
    assert [s.genome for s in sampler.draw(0, 5)] == [s.genome for s in subnets]
    assert [s.genome for s in sampler.draw(0, 6)] != [s.genome for s in subnets]
    without = SubnetSampler(SPACE, config(sandwich=False, num_random=2), seed=0).draw(0, 0)
    assert [subnet.kind for subnet in without] == ["random", "random"]


def test_extremes_of_sizes_draw_strides_and_heads_and_keep_widths_and_depths() -> None:
    sampler = SubnetSampler(SPACE, config(extremes="sizes", num_random=0), seed=0)
    steps = [sampler.draw(0, step) for step in range(40)]
    for place, extreme in ((0, SPACE.largest), (1, SPACE.smallest)):
        archs = [subnets[place].arch for subnets in steps]
        sizes = {tuple((s.embed_dim, len(s.blocks), s.blocks[0].mlp_ratio) for s in arch.stages) for arch in archs}
        assert sizes == {tuple((s.embed_dim, len(s.blocks), s.blocks[0].mlp_ratio) for s in extreme.stages)}
        assert {arch.stages[0].blocks[0].kv_stride for arch in archs} == {1, 2}
    assert [s.genome for s in sampler.draw(0, 7)] == [s.genome for s in steps[7]]
    closed = SubnetSampler(SPACE, config(extremes="sizes", num_random=0, opening={"kv_stride": 1}), seed=0)
    strides = {s.arch.stages[0].blocks[0].kv_stride for step in range(20) for s in closed.draw(0, step)}
    assert strides == {1}, "a closed choice is not drawn"


def test_a_choice_that_is_not_open_yet_has_its_largest_option() -> None:
    sampler = SubnetSampler(SPACE, config(opening={"depth": 2, "kv_stride": 1}), seed=0)
    for epoch, closed in ((0, {"depth", "kv_stride"}), (1, {"depth"}), (2, set())):
        seen = [s.arch for step in range(40) for s in sampler.draw(epoch, step)]
        assert ({len(arch.stages[0].blocks) for arch in seen} == {2}) == ("depth" in closed)
        assert ({arch.stages[0].blocks[0].kv_stride for arch in seen} == {1}) == ("kv_stride" in closed)


def test_blocks_that_a_closed_depth_brings_back_to_the_smallest_are_the_smallest_too() -> None:
    stages = tuple(
        dataclasses.replace(stage, per_block=frozenset({"kv_stride", "mlp_ratio"})) for stage in SPACE.stages
    )
    sampler = SubnetSampler(dataclasses.replace(SPACE, stages=stages), config(opening={"depth": 1}), seed=0)
    closed, opened = (sampler.draw(epoch, 0)[-1].arch for epoch in (0, 1))
    assert [len(stage.blocks) for stage in closed.stages] == [2, 2]
    assert [len(stage.blocks) for stage in opened.stages] == [1, 1]
    assert {(block.kv_stride, block.mlp_ratio) for stage in closed.stages for block in stage.blocks} == {(2, 1.0)}


def test_sampling_by_flops_is_even_over_their_logarithm_where_uniform_is_not() -> None:
    def shares(sampling: str) -> np.ndarray:
        sampler = SubnetSampler(SPACE, config(sampling=sampling, sandwich=False, num_random=1), seed=0)
        drawn = [math.log(cost_of(sampler.draw(0, step)[0].arch).flops) for step in range(600)]
        low, high = (math.log(cost_of(arch).flops) for arch in (SPACE.smallest, SPACE.largest))
        return np.histogram(drawn, bins=5, range=(low, high))[0] / 600

    assert shares("flops").min() > 0.12
    assert shares("uniform").min() < 0.1


@pytest.mark.parametrize("sandwich", [True, False])
def test_fair_sampling_takes_each_option_once_before_any_of_them_again(sandwich: bool) -> None:
    sampler = SubnetSampler(SPACE, config(sampling="fair", sandwich=sandwich, num_random=2), seed=0)
    drawn = [subnet for step in range(9) for subnet in sampler.draw(0, step) if subnet.kind == "random"]
    assert len({subnet.genome for subnet in drawn}) > 9
    for gene, options in zip(SPACE.genes, zip(*(subnet.genome for subnet in drawn), strict=True), strict=True):
        for first in range(0, len(options) - len(gene.options) + 1, len(gene.options)):
            assert sorted(options[first : first + len(gene.options)]) == list(range(len(gene.options)))


@pytest.mark.parametrize("sampling", ["uniform", "fair", "flops", "front"])
def test_random_subnets_meet_the_constraints(sampling: str) -> None:
    costs = [cost_of(SPACE.decode(SPACE.sample(random.Random(seed)))).flops for seed in range(50)]
    bound = int(np.quantile(costs, 0.1))
    space = dataclasses.replace(SPACE, bounds={"flops": Bound(max=bound)})
    sampler = SubnetSampler(space, config(sampling=sampling, num_random=4), seed=0)
    drawn = [s for step in range(20) for s in sampler.draw(0, step) if s.kind == "random"]
    assert len(drawn) == 20 * 4
    assert all(cost_of(subnet.arch).flops <= bound for subnet in drawn)


def test_sampling_towards_the_front_prefers_options_that_lost_less() -> None:
    sampler = SubnetSampler(SPACE, config(sampling="front", sandwich=False, num_random=1), seed=0)
    heads = [gene.name for gene in SPACE.genes].index("stage0.num_heads")  # cost nothing, so every stratum has both

    def share() -> float:
        return float(np.mean([sampler.draw(0, step)[0].genome[heads] for step in range(200)]))

    before = share()
    rng = random.Random(0)
    genomes = [SPACE.sample(rng) for _ in range(300)]
    sampler.learn(genomes, [-0.5 * genome[heads] + 0.1 * rng.gauss(0, 1) for genome in genomes])
    assert share() > before + 0.25
    again = SubnetSampler(SPACE, config(sampling="front", sandwich=False, num_random=1), seed=0)
    again.load_plain(sampler.to_plain())
    assert [again.draw(0, step) for step in range(20)] == [sampler.draw(0, step) for step in range(20)]


# --- what they learn ------------------------------------------------------------------------------------------------


def test_the_alpha_divergence_is_the_greater_of_two_with_their_gradients() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(64, 5, requires_grad=True), torch.randn(64, 5)
    p, q = teacher.softmax(1), logits.softmax(1)
    ratio = p / q
    unclipped = (1 / ratio < 5).all(dim=1)
    assert 5 < unclipped.sum() < 60
    assert (ratio > 5)[unclipped].any()  # of which nothing is clipped
    kl, reverse = (p * ratio.log()).sum(1), ((q * (1 / ratio - 1)).sum(1)) / 2
    expected = torch.maximum(kl, reverse)[unclipped].mean()
    (wanted,) = torch.autograd.grad(expected, logits, retain_graph=True)
    chosen = logits[unclipped]
    found = alpha_divergence(chosen, teacher[unclipped])
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)
    assert (kl > reverse)[unclipped].any()
    assert (kl < reverse)[unclipped].any()
    unsure, sure = torch.tensor([[0.0, 4.0, 0.0]], requires_grad=True), torch.tensor([[6.0, 0.0, 0.0]])
    (gradient,) = torch.autograd.grad(alpha_divergence(unsure, sure), unsure)
    torch.testing.assert_close(gradient, unsure.softmax(1) - sure.softmax(1))  # as of the KL, however far they are
    far = alpha_divergence(torch.tensor([[60.0, -60.0]], requires_grad=True), torch.tensor([[-60.0, 60.0]]))
    assert torch.isfinite(far)


def test_a_gradient_gives_way_only_where_it_is_against_the_other() -> None:
    against, other = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0])
    give_way(against, other)
    assert against.tolist() == [1, 0]
    with_it = torch.tensor([1.0, 2.0])
    give_way(with_it, other)
    assert with_it.tolist() == [1, 2]
    give_way(with_it, torch.zeros(2))
    give_way(with_it, None)
    assert with_it.tolist() == [1, 2]


@pytest.mark.parametrize("distillation", ["kl", "alpha"])
def test_a_loss_is_of_the_labels_and_of_the_teacher_by_their_shares(distillation: str) -> None:
    logits, teacher = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6)

    def loss(weight: float, smoothing: float = 0.0, teacher: Tensor | None = teacher) -> float:
        criterion = Criterion("cross_entropy", label_smoothing=smoothing)
        settings = config(distillation=distillation, distillation_weight=weight)
        return float(loss_of(logits, targets, teacher, settings, criterion))

    assert loss(0.25, smoothing=0.1) == loss(0.25), "the largest alone is regularised"
    labels = loss(1.0, teacher=None)
    assert loss(0.25, smoothing=0.1, teacher=None) == pytest.approx(
        0.9 * labels - 0.1 * float(logits.log_softmax(1).mean())
    )
    assert labels == float(torch.nn.functional.cross_entropy(logits, targets))
    assert loss(0.25) == pytest.approx(0.75 * labels + 0.25 * loss(1.0))
    assert loss(1.0) == pytest.approx(
        float(alpha_divergence(logits, teacher))
        if distillation == "alpha"
        else float((teacher.softmax(1) * (teacher.log_softmax(1) - logits.log_softmax(1))).sum(1).mean())
    )


def test_a_teacher_of_several_labels_is_learned_a_label_at_a_time() -> None:
    logits, teacher = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0)).double()
    targets, criterion = torch.zeros(6, 10).double(), Criterion("binary_cross_entropy", is_multi_label=True)
    p, q = teacher.sigmoid(), logits.sigmoid()
    divergence = p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())
    assert loss_of(logits, targets, teacher, config(distillation_weight=1.0), criterion) == pytest.approx(
        float(divergence.mean())
    )
    assert loss_of(teacher, targets, teacher, config(distillation_weight=1.0), criterion) == pytest.approx(0)


@pytest.mark.parametrize("distillation", ["kl", "alpha"])
def test_a_temperature_divides_the_logits_of_both_and_keeps_the_size_of_gradients(distillation: str) -> None:
    logits, teacher = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0)).double()
    targets, criterion = torch.arange(6), Criterion("cross_entropy")

    def loss(logits: Tensor, teacher: Tensor, temperature: float = 1.0, weight: float = 1.0) -> Tensor:
        settings = config(distillation=distillation, distillation_weight=weight, distillation_temperature=temperature)
        return loss_of(logits, targets, teacher, settings, criterion)

    assert float(loss(logits, teacher, 4.0)) == pytest.approx(16 * float(loss(logits / 4, teacher / 4)))
    labels = float(criterion(logits, targets))
    assert float(loss(logits, teacher, 4.0, 0.25)) == pytest.approx(
        0.75 * labels + 0.25 * float(loss(logits, teacher, 4.0))
    )

    def size_of_gradient(temperature: float) -> float:
        own = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(own, teacher, temperature), own)
        return float(gradient.norm())

    hot = [size_of_gradient(temperature) for temperature in (50.0, 100.0)]
    assert hot[0] == pytest.approx(hot[1], rel=0.05)


def of_a_step(data: ImageData, settings: SupernetConfig) -> tuple[TrainingState, list[Subnet], Tensor, Tensor]:
    torch.manual_seed(0)
    state = TrainingState.of(Supernet(SPACE), settings, CPU, num_steps=4)
    images, targets = next(data.train_batches(batch_size=32, augment=AugmentConfig(), device=CPU, seed=0, epoch=0))
    return state, SubnetSampler(SPACE, settings, seed=0).draw(0, 0), images, targets


WHOLE = Part(rows=slice(None), share=1.0, weight=1.0, is_first=True, is_last=True, statistics=cast(Any, None))


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_gradient_of_a_step_is_that_of_the_mean_loss_with_the_largest_weighted(
    few: ImageData, weight: float
) -> None:
    settings = config(**FEW, largest_weight=weight)
    state, subnets, images, targets = of_a_step(few, settings)
    losses, _ = _backward(state, subnets, images, targets, settings, [WHOLE])
    found = [parameter.grad for parameter in state.model.parameters()]
    state.optimizer.zero_grad()
    largest = state.model(images, subnets[0].arch)
    weights, teacher = [weight, 1, 1, 1], largest.detach()
    for subnet, share, told in zip(subnets, weights, losses, strict=True):
        logits = largest if subnet.kind == "largest" else state.model(images, subnet.arch)
        of = None if subnet.kind == "largest" else teacher
        loss = loss_of(logits, targets, of, settings, state.criterion)
        assert torch.equal(loss, told)
        (loss / (sum(weights) / share)).backward()
    for ours, parameter in zip(found, state.model.parameters(), strict=True):
        assert (ours is None and parameter.grad is None) or torch.equal(
            cast(Tensor, ours), cast(Tensor, parameter.grad)
        )


def test_subnets_learn_from_the_averaged_weights_once_there_is_an_average(few: ImageData) -> None:
    settings = config(**FEW, distil_from="averaged")
    state, subnets, images, targets = of_a_step(few, settings)
    averaged = cast(Any, state.averaged)
    for parameter in averaged.module.parameters():
        parameter.data.mul_(1.5)
    smallest, largest = subnets[-1].arch, subnets[0].arch

    def loss_with(teacher: Tensor) -> Tensor:
        logits = state.model(images, smallest)
        return loss_of(logits, targets, teacher.detach(), settings, state.criterion).detach()

    present, other = (loss_with(model(images, largest)) for model in (state.model, averaged.module))
    assert not torch.equal(present, other)
    losses, _ = _backward(state, subnets, images, targets, settings, [WHOLE])
    assert torch.equal(losses[-1], present), "before the first step, there is no average"
    averaged.n_averaged += 1
    losses, _ = _backward(state, subnets, images, targets, settings, [WHOLE])
    assert torch.equal(losses[-1], other)
    assert all(parameter.grad is None for parameter in averaged.module.parameters())


def test_every_ingredient_changes_what_is_trained(few: ImageData) -> None:
    settings = config(**FEW, epochs=1, drop_path=0.3, label_smoothing=0.1)
    plain = state_after(few, settings)
    assert equal(plain, state_after(few, settings))
    for switch in (
        {"sandwich": False, "distillation": "none"}, {"num_random": 1}, {"sampling": "flops"}, {"distillation": "none"},
        {"distillation": "alpha"}, {"distillation_weight": 1.0}, {"project_gradients": True}, {"clip_grad_norm": 0.1},
        {"drop_path_on_all": True}, {"kernel_maps": True}, {"own_norms": ["kv_stride"]}, {"opening": {"depth": 1}},
        {"ema_decay": 0.0}, {"distillation_temperature": 2.0}, {"distil_from": "averaged"}, {"largest_weight": 2.0},
        {"extremes": "sizes"}, {"own_convs": ["kv_stride"]},
    ):  # fmt: skip
        found = state_after(few, dataclasses.replace(settings, **switch))
        assert any(not torch.equal(tensor, found[name]) for name, tensor in plain.items() if name in found), switch
        if "kernel_maps" in switch:
            maps = [tensor for name, tensor in found.items() if "kernel_maps" in name]
            assert any(not torch.equal(weight, torch.eye(len(weight))) for weight in maps), "they are trained, too"
    by_flops, to_front = (
        state_after(few, dataclasses.replace(settings, sampling=sampling, epochs=2)) for sampling in ("flops", "front")
    )
    assert not equal(by_flops, to_front)  # once there is an epoch to learn from


def test_the_first_steps_have_the_losses_that_they_had_in_earlier_versions(digits: ImageData) -> None:
    settings = config(**RECIPE, distillation="alpha", distillation_weight=1.0, project_gradients=True)
    shared, data = SharedWeights(space=SPACE, config=settings), digits.of_classes((0, 1, 2))
    first, second = train_supernet(shared, data, device=CPU, seed=0)
    assert first.losses == pytest.approx({"largest": 2.2875, "smallest": 0.0020, "random": 0.0005}, abs=1e-4)
    assert second.losses == pytest.approx({"largest": 2.1113, "smallest": 0.0048, "random": 0.0031}, abs=1e-4)


# --- to the step ----------------------------------------------------------------------------------------------------


STOPPED = config(**FEW, sampling="front", drop_path=0.2, augment=AugmentConfig(crop_padding=1, mixup=0.2))


@pytest.fixture(scope="module")
def undisturbed(few: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return state_after(few, STOPPED, checkpoint=Checkpoint(tmp_path_factory.mktemp("undisturbed") / "it.pt"))


@pytest.mark.parametrize("at", [1, 4, 5, 6])
def test_a_training_that_was_stopped_at_any_step_ends_with_the_same_weights(
    few: ImageData, undisturbed: dict[str, Tensor], tmp_path: Path, at: int
) -> None:
    shared, steps = SharedWeights(space=SPACE, config=STOPPED), iter(range(1, 100))
    options: dict[str, Any] = {"device": CPU, "seed": 0, "checkpoint": Checkpoint(tmp_path / "it.pt")}
    stopped = list(train_supernet(shared, few, stop=lambda: next(steps) == at, **options))
    assert len(stopped) == (at > 4)  # steps of an epoch
    *_, last = train_supernet(shared, few, **options)
    assert equal(undisturbed, dict(last.supernet.state_dict()))
    (again,) = train_supernet(shared, few, **options)
    assert (again.number, again.losses) == (2, last.losses)
    assert equal(undisturbed, dict(again.supernet.state_dict()))


def test_a_crash_costs_no_more_than_what_came_after_the_last_checkpoint(few: ImageData, tmp_path: Path) -> None:
    settings = config(batch_size=6, epochs=1, checkpoint_minutes=1e-9)  # 22 steps, looked at after 20
    steps = itertools.count(1)

    def crash() -> bool:
        if next(steps) == 21:
            raise KeyboardInterrupt
        return False

    shared = SharedWeights(space=SPACE, config=settings)
    options: dict[str, Any] = {"device": CPU, "seed": 0, "checkpoint": Checkpoint(tmp_path / "it.pt")}
    with pytest.raises(KeyboardInterrupt):
        list(train_supernet(shared, few, stop=crash, **options))
    assert torch.load(tmp_path / "it.pt", weights_only=True)["step"] == 20
    no_more: Any = lambda: pytest.fail("there is a checkpoint")  # noqa: E731
    *_, last = train_supernet(shared, few, initial=no_more, **options)
    assert equal(state_after(few, settings), dict(last.supernet.state_dict()))


def test_what_is_trained_already_is_not_trained_again(tmp_path: Path) -> None:
    setup = setup_for(tmp_path, config(**FEW, epochs=1))
    *_, first = supernet_reports(setup, device=CPU, seed=0)
    weights = setup.weights_path.read_bytes()
    (again,) = supernet_reports(setup, device=CPU, seed=1)
    assert (again["epoch"], again["status"]) == (first["epoch"], "running") == (1, "running")
    assert setup.weights_path.read_bytes() == weights


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*arguments: Any, **progress: Any) -> None:
        del arguments, progress
        raise StorageError(errno.ENOSPC, "no room", "checkpoint.pt")

    monkeypatch.setattr(Checkpoint, "write", save)
    (report,) = supernet_reports(setup_for(tmp_path, config()), device=CPU, seed=0)
    assert (report["status"], report.get("reason")) == ("storage", "no room: checkpoint.pt")


class Poisoned:
    """`data`, but some of its training batches are not numbers."""

    def __init__(self, data: ImageData, bad: set[tuple[int, int]]) -> None:
        self._data, self._bad = data, bad

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def train_batches(self, *, epoch: int, first: int = 0, **options: Any) -> Iterator[Any]:
        batches = self._data.train_batches(epoch=epoch, first=first, **options)
        for step, (images, targets) in enumerate(batches, start=first):
            yield (images * math.nan if (epoch, step) in self._bad else images), targets


def test_a_loss_that_is_not_finite_takes_the_training_back_and_on_with_other_images(
    few: ImageData, tmp_path: Path
) -> None:
    shared = SharedWeights(space=SPACE, config=config(**FEW, epochs=3))
    data, checkpoint = cast(ImageData, Poisoned(few, {(1, 3)})), Checkpoint(tmp_path / "it.pt")
    epochs = train_supernet(shared, data, device=CPU, seed=0, checkpoint=checkpoint)
    first = next(epochs)
    after_one = {name: tensor.clone() for name, tensor in first.supernet.state_dict().items()}
    second = next(epochs)
    assert (second.num_rollbacks, second.losses) == (1, {})
    assert equal(after_one, dict(second.supernet.state_dict()))
    third = next(epochs)
    assert (third.num_rollbacks, third.number) == (1, 3)
    assert third.losses["largest"] < first.losses["largest"]
    assert all(torch.isfinite(tensor).all() for tensor in third.supernet.state_dict().values())


def test_a_weight_that_is_not_finite_is_never_saved(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an epoch's last step the loss is fine, and the update breaks a weight."""
    steps = itertools.count(1)

    def broken_once(state: TrainingState, *arguments: Any) -> list[Tensor]:
        losses = _step(state, *arguments)
        if next(steps) == 4:
            next(state.model.parameters()).data.fill_(math.inf)
        return losses

    monkeypatch.setattr("cvt_nas.engine.supernet._step", broken_once)
    options: dict[str, Any] = {"device": CPU, "seed": 0, "checkpoint": Checkpoint(tmp_path / "it.pt")}
    epochs = list(train_supernet(SharedWeights(space=SPACE, config=config(**FEW, epochs=3)), few, **options))
    assert [epoch.num_rollbacks for epoch in epochs] == [1, 1, 1]
    assert all(torch.isfinite(tensor).all() for tensor in epochs[-1].supernet.state_dict().values())


def test_a_training_that_diverges_again_and_again_ends_with_an_error(few: ImageData, tmp_path: Path) -> None:
    data = cast(ImageData, Poisoned(few, {(epoch, 0) for epoch in range(9)}))
    shared = SharedWeights(space=SPACE, config=config(**FEW, epochs=9))
    options: dict[str, Any] = {"device": CPU, "seed": 0}
    with pytest.raises(DivergedError, match="loss not finite in epoch 4"):
        list(train_supernet(shared, data, checkpoint=Checkpoint(tmp_path / "it.pt"), **options))
    with pytest.raises(DivergedError, match="loss not finite in epoch 1"):
        list(train_supernet(shared, data, **options))


# --- what is inherited ----------------------------------------------------------------------------------------------


def test_subnets_inherit_accuracy_once_their_batch_norms_are_measured(digits: ImageData) -> None:
    stages = tuple(dataclasses.replace(stage, depth=(1,)) for stage in SPACE.stages)  # learns in half of the time
    space, settings = dataclasses.replace(SPACE, stages=stages), config(epochs=6, batch_size=32, lr=1e-2, num_random=1)
    *_, last = train_supernet(SharedWeights(space=space, config=settings), digits, device=CPU, seed=0)
    before = {name: tensor.clone() for name, tensor in last.supernet.state_dict().items()}
    inheritance = Inheritance(last.supernet, settings, digits, CPU)
    rng = random.Random(0)
    for arch in (space.largest, space.smallest, *(space.decode(space.sample(rng)) for _ in range(4))):
        unmeasured = extract(last.supernet, arch)
        found = inheritance.measure(arch)
        assert found.num_images == digits.num_images("search")
        assert found.accuracy > 0.55, arch
        assert found.accuracy > evaluate(unmeasured, digits, "search", training=settings, device=CPU) + 0.1
    assert equal(before, dict(last.supernet.state_dict()))  # never written back
    found = inheritance.measure(space.smallest, bar=0.99, num_screening_images=100)
    assert (found.num_images, found.accuracy < 0.95) == (256, True)  # a batch, and out of reach
    assert inheritance.measure(space.largest, bar=0.8).num_images == digits.num_images("search")


def test_the_brier_score_of_a_subnet_is_that_of_its_probabilities(digits: ImageData) -> None:
    torch.manual_seed(0)
    inheritance = Inheritance(Supernet(SPACE), config(), digits, CPU)
    found, model = inheritance.measure(SPACE.largest), inheritance.model(SPACE.largest)
    (images, labels), *_ = digits.eval_batches("search", batch_size=2000, device=CPU)
    with torch.no_grad():
        probabilities = model(images).softmax(dim=1).double().numpy()
    distances = ((probabilities - np.eye(10)[labels.numpy()]) ** 2).sum(axis=1)
    assert found.num_images == len(labels) == digits.num_images("search")
    assert found.brier == pytest.approx(distances.mean(), abs=1e-5)
    assert found.accuracy == pytest.approx((probabilities.argmax(axis=1) == labels.numpy()).mean())


def test_the_brier_score_is_0_for_sure_right_answers_and_2_for_sure_wrong_ones_and_for_no_numbers() -> None:
    logits = torch.tensor([[50.0, 0.0], [50.0, 0.0], [torch.nan, 0.0], [0.0, 0.0]])
    assert brier_scores(logits, torch.tensor([0, 1, 0, 1])).tolist() == pytest.approx([0, 2, 2, 0.5])


def test_batch_norms_are_measured_on_training_images_and_accuracy_on_the_search_split(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, rated = list[Tensor](), list[Tensor]()
    measure, rate = engine_inheritance.recalibrate_batch_norm, engine_inheritance.logits_of
    monkeypatch.setattr(engine_inheritance, "recalibrate_batch_norm", lambda model, images, *about: (
        measured.extend(images) or measure(model, images, *about)
    ))  # fmt: skip
    monkeypatch.setattr(engine_inheritance, "logits_of", lambda model, images, *about: (
        rated.append(images) or rate(model, images, *about)
    ))  # fmt: skip
    Inheritance(Supernet(SPACE), config(), digits, CPU).measure(SPACE.smallest)
    train, search = (
        {tuple(image.flatten().tolist()) for image in images}
        for split in ("train", "search")
        for images, _ in digits.eval_batches(split, batch_size=2000, device=CPU, as_bytes=True)
    )
    of_measured, of_rated = ({tuple(i.flatten().tolist()) for i in torch.cat(seen)} for seen in (measured, rated))
    assert of_measured <= train
    assert of_rated == search


def test_images_for_batch_norms_are_kept_as_bytes_and_measured_as_in_an_evaluation(digits: ImageData) -> None:
    supernet, settings = Supernet(SPACE), config(calibration_images=500)
    with SmallDevice() as device:
        inheritance = Inheritance(supernet, settings, digits, CPU)
        kept = device.live
    assert kept == 2 * 256 * 8 * 8, "a byte a pixel; 12 images of the last batch are not looked at"
    found, expected = inheritance.model(SPACE.largest), extract(supernet, SPACE.largest)
    batches = digits.eval_batches("train", batch_size=256, device=CPU, shuffled=True)
    first, second = (images for images, _ in itertools.islice(batches, 2))
    assert recalibrate_batch_norm(expected, [first, second[:244]], settings) == 500
    assert equal(dict(found.state_dict()), dict(expected.state_dict()))


def test_statistics_are_the_plain_average_over_the_batches_and_drop_path_is_off() -> None:
    torch.manual_seed(0)
    model = CvT(SPACE.largest, drop_path=0.9)
    batches = [torch.randn(16, 1, 8, 8) for _ in range(3)]
    seen: list[Tensor] = []
    norm = model.get_submodule("stage0.blocks.1.attn.conv_proj_k.bn")
    hook = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert recalibrate_batch_norm(model, batches, config()) == 48
    hook.remove()
    torch.testing.assert_close(norm.running_mean, torch.stack([maps.mean((0, 2, 3)) for maps in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([maps.var((0, 2, 3)) for maps in seen]).mean(0))
    assert not model.training
    assert norm.momentum == 0.1
    again = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recalibrate_batch_norm(model, batches, config())
    assert equal(again, dict(model.state_dict()))
    with pytest.raises(ValueError, match="no images"):
        recalibrate_batch_norm(model, [], config())


def test_each_image_counts_alike_in_statistics_and_one_that_is_left_over_joins_those_before() -> None:
    torch.manual_seed(0)
    model = CvT(ONE_TOKEN)
    images = torch.randn(33, 1, 2, 2)
    seen: list[Tensor] = []
    norm = model.get_submodule("stage0.blocks.0.attn.conv_proj_k.bn")
    hook = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert recalibrate_batch_norm(model, [images[:20], images[20:32], images[32:]], config()) == 33
    hook.remove()
    assert [tuple(maps.shape[:1] + maps.shape[2:]) for maps in seen] == [(20, 1, 1), (13, 1, 1)]
    torch.testing.assert_close(norm.running_mean, torch.cat(seen).mean((0, 2, 3)))


def test_without_memory_for_a_batch_statistics_are_of_its_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, forward = CvT(SPACE.smallest), CvT.forward
    batches = [torch.randn(16, 1, 8, 8) for _ in range(3)]

    def small_memory(self: CvT, images: Tensor) -> Tensor:
        if len(images) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images)

    monkeypatch.setattr(CvT, "forward", small_memory)
    assert recalibrate_batch_norm(model, batches, config()) == 48
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert recalibrate_batch_norm(model, [half for images in batches for half in images.chunk(2)], config()) == 48
    assert equal(found, dict(model.state_dict()))


def test_what_memory_is_not_for_is_read_again(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, settings = Supernet(SPACE), config()
    wanted = Inheritance(supernet, settings, digits, CPU).measure(SPACE.smallest)
    assert wanted.num_images == digits.num_images("search") > 256
    monkeypatch.setattr("cvt_nas.engine.inheritance._MAX_KEPT_BYTES", 256 * 64)  # a batch
    inheritance = Inheritance(supernet, settings, digits, CPU)
    assert inheritance.measure(SPACE.smallest, bar=1.1, num_screening_images=100).num_images == 256
    assert [inheritance.measure(SPACE.smallest) for _ in range(2)] == [wanted, wanted]
    assert len(inheritance._search) == 1


def test_the_weights_of_another_run_at_the_same_place_are_read(tmp_path: Path) -> None:
    setup = setup_for(tmp_path, config())
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_supernet(Supernet(SPACE), setup.weights_path)
        assert open_inheritance(setup, CPU) is open_inheritance(setup, CPU)
        found.append(open_inheritance(setup, CPU).model(SPACE.smallest).head.weight)
    assert not torch.equal(*found)


def test_a_training_begins_with_the_weights_of_a_model_where_it_has_them(few: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(1)
    genome = {gene.name: 0 for gene in SPACE.genes}
    model = CvT(SPACE.decode(tuple(genome.values())))

    def begin(supernet: Supernet) -> None:
        supernet.insert(model)

    options: dict[str, Any] = {"device": CPU, "seed": 0, "initial": begin, "stop": lambda: True}
    shared, checkpoint = SharedWeights(space=SPACE, config=config(**FEW, lr=1e-9)), Checkpoint(tmp_path / "it.pt")
    assert not list(train_supernet(shared, few, checkpoint=checkpoint, **options))
    supernet = Supernet(SPACE)
    supernet.load_state_dict(torch.load(tmp_path / "it.pt", weights_only=True)["model"])
    for name, tensor in extract(supernet, model.arch).named_parameters():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-6, rtol=0)


# --- on several workers ---------------------------------------------------------------------------------------------


def setup_for(path: Path, settings: SupernetConfig, data: DataConfig = FEW_DIGITS) -> TrainingSetup:
    return TrainingSetup(
        training=settings, data=data, data_root=None, image_size=8, num_channels=1,
        num_classes=10, run=RunFolder(path), shared=SharedWeights(space=SPACE, config=settings),
    )  # fmt: skip


def on_two_workers(path: Path, settings: SupernetConfig, data: DataConfig = DIGITS) -> Iterator[Any]:
    from cvt_nas.launch.ranks import reports_of_ranks

    path.mkdir(exist_ok=True)
    setup = setup_for(path, settings, data)
    return reports_of_ranks(supernet_reports, setup=setup, seed=0, num_ranks=2, cpus_per_rank=1, use_gpus=False)


@pytest.mark.parametrize(
    "more",
    [
        {"distillation": "alpha", "sampling": "front"},
        {"distil_from": "averaged", "distillation_temperature": 2.0, "largest_weight": 2.0},
    ],
    ids=str,
)
@pytest.mark.usefixtures("two_cpus")
def test_two_workers_train_as_one_with_the_doubled_batch(tmp_path: Path, more: dict[str, Any]) -> None:
    settings = config(**FEW, sync_batch_norm=True, clip_grad_norm=1.0, **more)
    together = list(on_two_workers(tmp_path / "two", settings, FEW_DIGITS))
    (tmp_path / "one").mkdir()
    alone = list(supernet_reports(setup_for(tmp_path / "one", settings), device=CPU, seed=0))
    assert [report["epoch"] for report in together] == [1, 2]
    assert [path.name for path in (tmp_path / "two/supernet").iterdir()] == ["weights.safetensors"]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-3)
    two, one = (
        open_supernet(SharedWeights(space=SPACE, config=settings), tmp_path / name / "supernet/weights.safetensors")
        for name in ("two", "one")
    )
    for (name, ours), (_, theirs) in zip(two.named_parameters(), one.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_a_killed_worker_is_replaced_and_the_training_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    settings = config(epochs=3, batch_size=64)
    seen = []
    for report in on_two_workers(tmp_path / "killed", settings):
        seen.append(report["epoch"])
        if len(seen) == 1:
            workers = own_processes("ray::_Rank")
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
    assert seen == [1, 2, 3]  # from the beginning it would be 1, 1, 2, 3
    undisturbed = list(on_two_workers(tmp_path / "undisturbed", settings))[-1]
    shared = SharedWeights(space=SPACE, config=settings)
    weights = [
        dict(open_supernet(shared, tmp_path / name / "supernet/weights.safetensors").state_dict())
        for name in ("killed", "undisturbed")
    ]
    assert undisturbed["epoch"] == 3
    assert equal(*weights)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_workers_that_are_asked_to_stop_go_on_as_if_they_had_not_stopped(tmp_path: Path) -> None:
    settings = config(epochs=12, sampling="front", drop_path=0.2, augment=AugmentConfig(crop_padding=1, mixup=0.2))
    whole = list(on_two_workers(tmp_path / "whole", settings))
    (tmp_path / "stopped").mkdir()
    run, last = RunFolder(tmp_path / "stopped"), 0
    for report in on_two_workers(run.path, settings):
        run.supernet.ask_to_stop()
        last = report["epoch"]
    assert 0 < last < 12
    run.supernet.take_back_stop()
    rest = list(on_two_workers(run.path, settings))
    assert rest[-1]["epoch"] == 12
    assert rest[-1]["losses"] == whole[-1]["losses"]
    weights = [load_file(path / "supernet/weights.safetensors") for path in (run.path, tmp_path / "whole")]
    assert equal(*weights)
