"""Batches that are cut to what a device has memory for: on the CPU, within one that refuses more than a limit."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from cvt_nas.arch import Cost, arch_to_dict, cost_of
from cvt_nas.config import AugmentConfig, DataConfig, Experiment, TrainingConfig, parse_experiment
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import Checkpoint, SharedWeights, evaluate, fit, supernet_reports, train_supernet
from cvt_nas.engine.criterion import Criterion
from cvt_nas.engine.memory import MicroBatches, Room
from cvt_nas.engine.optimization import TrainingState, averaged_model, optimizer_of
from cvt_nas.engine.reports import progress_reports
from cvt_nas.engine.training import _backward, _step
from cvt_nas.errors import SpaceFileError
from cvt_nas.follow.terminal import ConsoleProgress
from cvt_nas.model import CvT
from cvt_nas.results import HypervolumeBox, TrialResult
from cvt_nas.results.events import EpochDone
from killed import ALWAYS, CPU, gradients, gradients_on_ranks, measured_on_ranks, open_digits
from small_device import SmallDevice
from test_engine import setup_for, tiny_arch, training
from test_keeper import run_processes
from test_supernet_training import SPACE, config, equal
from test_supernet_training import setup_for as supernet_setup_for

AUGMENTED = AugmentConfig(crop_padding=1, mixup=0.2, random_erasing=0.25)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_digits().of_classes((0, 1))  # three batches of 64


def state_of(settings: TrainingConfig, projection: str = "dw_bn") -> TrainingState:
    torch.manual_seed(0)
    model = CvT(tiny_arch(projection))
    return TrainingState(
        model=model,
        averaged=averaged_model(model, settings, num_steps=3),
        optimizer=optimizer_of(model, settings, CPU),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        criterion=Criterion("cross_entropy", label_smoothing=settings.label_smoothing),
    )


def cut_by(settings: TrainingConfig, state: TrainingState, batch_size: int) -> MicroBatches:
    return MicroBatches(settings, state.model, CPU, batch_size=batch_size, meter=None)


def bytes_for(number: int, **settings: Any) -> int:
    """What the second step of a training takes, of batches of 64, `number` at once."""
    with SmallDevice() as device:
        state, said = state_of(training(**settings)), training(micro_batch=number, **settings)
        images, targets = torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)

        def step() -> None:
            _step(state, state.model, images, targets, said, cut_by(said, state, 64))

        step()
        return device.peak_of(step)


def trained(data: ImageData, settings: TrainingConfig, **options: Any) -> tuple[dict[str, Tensor], list[Room]]:
    """What a training ends with, to the bit, and what it said of the memory."""
    rooms = list[Room]()
    *_, last = fit(tiny_arch(), settings, data, device=CPU, seed=0, on_room=rooms.append, **options)
    state = {name: tensor.clone() for name, tensor in last.model.state_dict().items()}
    return {**state, "loss": torch.tensor(last.loss), "curve": torch.tensor(last.curve)}, rooms


# --- exact weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["avg", "linear"])
@pytest.mark.parametrize(("batch_size", "at_once"), [(64, 24), (65, 16), (64, 1)])
def test_without_batch_norm_parts_have_the_gradient_of_the_whole_batch(
    projection: str, batch_size: int, at_once: int
) -> None:
    images, targets = torch.randn(batch_size, 1, 8, 8), torch.rand(batch_size, 10).softmax(dim=1)

    def found(**settings: Any) -> tuple[list[Tensor], Tensor]:
        said = training(label_smoothing=0.1, **settings)
        state = state_of(said, projection)
        sizes = list[int]()
        state.model.register_forward_hook(lambda module, inputs, answer: sizes.append(len(answer)))
        cut = cut_by(said, state, batch_size)
        loss = cut.run(
            lambda parts: _backward(state, state.model, images, targets, training=said, parts=parts),
            lambda parts: pytest.fail("nothing is measured"),
            batch_size,
        )
        assert sum(sizes) == batch_size
        assert max(sizes) <= (batch_size if not settings else at_once)
        assert max(sizes) - min(sizes) <= 1
        return [cast(Tensor, parameter.grad) for parameter in state.model.parameters()], loss

    whole, parts = found(), found(micro_batch=at_once)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_ranks_with_unequal_batches_in_parts_have_the_gradient_of_all_their_images(tmp_path: Path) -> None:
    assert run_processes(gradients_on_ranks, tmp_path, number=2) == [0, 0]
    whole = gradients()
    assert {name.split()[0] for name in whole} == {"trial", "supernet"}
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank in (*ranks, gradients(micro_batch=16)):
        torch.testing.assert_close(rank, whole, atol=1e-5, rtol=1e-4)


def test_a_batch_in_parts_moves_the_statistics_of_batch_norm_as_far_as_one_in_one_piece() -> None:
    settings = training(micro_batch=24)
    state = state_of(settings)
    norm = cast(Any, state.model.get_submodule("stage0.blocks.0.attn.conv_proj_q.bn"))
    norm.running_mean.normal_()
    before, seen = (norm.running_mean.clone(), norm.running_var.clone()), list[Tensor]()
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    images, targets = torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    _step(state, state.model, images, targets, settings, cut_by(settings, state, 64))
    assert [len(maps) for maps in seen] == [21, 21, 22]
    mean = torch.cat(seen).mean((0, 2, 3))  # to which no other batch norm has come in between
    torch.testing.assert_close(norm.running_mean, 0.9 * before[0] + 0.1 * mean)
    within = sum(maps.var((0, 2, 3)) * len(maps) / 64 for maps in seen)
    torch.testing.assert_close(norm.running_var, 0.9 * before[1] + 0.1 * within)
    assert {module.momentum for module in state.model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


# --- what fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [8, 24])
def test_a_training_finds_what_its_device_has_memory_for_and_is_as_if_it_was_told(data: ImageData, number: int) -> None:
    settings = training(epochs=2, drop_path=0.2, augment=AUGMENTED, activation_checkpointing="off")
    whole, rooms = trained(data, settings)
    assert [(room.micro_batch, room.note) for room in rooms] == [(64, None)]
    with SmallDevice(bytes_for(number, drop_path=0.2)) as device:
        found, (room,) = trained(data, settings, meter=device)
    assert number / 2 <= room.micro_batch <= number
    assert (
        room.note
        == f"{room.micro_batch} of the 64 images of a batch are trained at once: the device has no memory for more"
    )
    told, (as_told,) = trained(data, dataclasses.replace(settings, micro_batch=room.micro_batch))
    assert as_told.note is None
    assert equal(found, told)
    assert not equal(found, whole), "batch norm sees parts"


def test_measuring_leaves_nothing_behind(data: ImageData) -> None:
    settings = training(epochs=1, drop_path=0.2, augment=AUGMENTED)
    with SmallDevice(1e9) as device:
        found, (room,) = trained(data, settings, meter=device)
    assert room == Room(micro_batch=64, activation_checkpointing=False, ran_out=False, note=None)
    assert equal(found, trained(data, settings)[0])


class Shrinking:
    """`data`, and a device that has less memory from a certain batch on."""

    def __init__(self, data: ImageData, at: int, act: Any) -> None:
        self._data, self._at, self._act = data, at, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def train_batches(self, *, epoch: int, first: int = 0, **options: Any) -> Iterator[Any]:
        for step, batch in enumerate(self._data.train_batches(epoch=epoch, first=first, **options), start=first):
            if step == self._at:
                self._act()
            yield batch


def test_memory_that_runs_out_in_mid_epoch_halves_the_parts_and_loses_nothing(tmp_path: Path) -> None:
    digits = open_digits().of_classes((0, 1, 2))  # 21 batches of 16
    settings = training(epochs=1, batch_size=16, drop_path=0.2, augment=AUGMENTED, checkpoint_minutes=ALWAYS)
    limit = bytes_for(12, drop_path=0.2)
    with SmallDevice() as device:
        shrinking: Any = Shrinking(digits, 20, lambda: setattr(device, "limit", limit))
        found, rooms = trained(shrinking, settings)
    assert device.num_refused > 0
    assert [room.micro_batch for room in rooms] in ([16, 16], [16, 16, 8], [16, 8])
    assert "device memory ran out" in str(rooms[-1].note)

    def cut_off() -> None:
        raise KeyboardInterrupt

    checkpoint, interrupted = Checkpoint(tmp_path / "c.pt"), cast(Any, Shrinking(digits, 20, cut_off))
    with pytest.raises(KeyboardInterrupt):
        trained(interrupted, settings, checkpoint=checkpoint)
    assert torch.load(checkpoint.path, weights_only=True)["step"] == 20
    last = rooms[-1]
    told = {
        "micro_batch": last.micro_batch,
        "activation_checkpointing": "on" if last.activation_checkpointing else "off",
    }
    assert equal(found, trained(digits, dataclasses.replace(settings, **told), checkpoint=checkpoint)[0])


def test_a_training_that_is_resumed_keeps_to_what_it_found(data: ImageData, tmp_path: Path) -> None:
    settings = training(epochs=2, drop_path=0.2)
    with SmallDevice(bytes_for(30, drop_path=0.2)) as device:
        whole, (room,) = trained(data, settings, meter=device)
        cut = fit(
            tiny_arch(), settings, data, device=CPU, seed=0, checkpoint=Checkpoint(tmp_path / "c.pt"), meter=device
        )
        next(cut)
        cut.close()
    assert 16 <= room.micro_batch <= 30
    with SmallDevice() as roomy:
        found, rooms = trained(data, settings, checkpoint=Checkpoint(tmp_path / "c.pt"), meter=roomy)
    assert rooms == [room]
    assert equal(found, whole)


def test_one_image_without_memory_for_it_is_out_of_memory(data: ImageData) -> None:
    with SmallDevice(bytes_for(1) // 3) as device, pytest.raises(torch.OutOfMemoryError):
        trained(data, training(epochs=1), meter=device)


def test_images_that_cannot_be_prepared_at_once_are_evaluated_in_halves() -> None:
    digits = load_data(DataConfig(dataset="digits"), root=None, image_size=64, num_channels=1, num_classes=10)
    arch = dataclasses.replace(tiny_arch(), image_size=64)
    stem = dataclasses.replace(arch.stages[0], patch_kernel=17, patch_stride=16, patch_padding=0)
    model = CvT(dataclasses.replace(arch, stages=(stem, *arch.stages[1:])))
    whole = evaluate(model, digits, "search", training=training(), device=CPU)
    images, _ = next(digits.eval_batches("search", batch_size=256, device=CPU, as_bytes=True))
    with SmallDevice() as device:
        digits.prepared(images)
    with SmallDevice(device.peak - 1) as device:
        assert evaluate(model, digits, "search", training=training(), device=CPU) == whole
    assert device.num_refused > 0


# --- blocks that are computed again ---------------------------------------------------------------------------------


def test_blocks_that_are_computed_again_change_no_bit_and_take_less_memory(data: ImageData) -> None:
    for settings in (training(epochs=1, drop_path=0.3), training(epochs=1, micro_batch=24, precision="bf16")):
        on = dataclasses.replace(settings, activation_checkpointing="on")
        assert equal(trained(data, settings)[0], trained(data, on)[0])
    assert bytes_for(64, activation_checkpointing="on") < 0.8 * bytes_for(64)


def test_blocks_are_computed_again_only_where_fewer_than_sixteen_images_fit_otherwise(data: ImageData) -> None:
    for number, again in ((14, True), (24, False)):
        with SmallDevice(bytes_for(number)) as device:
            _, (room,) = trained(data, training(epochs=1), meter=device)
        assert room.activation_checkpointing == again
        assert room.micro_batch >= (number if again else 16)
        assert ("each block is computed again" in str(room.note)) == again
    with SmallDevice(bytes_for(14)) as device:
        _, (room,) = trained(data, training(epochs=1, micro_batch=4), meter=device)
    assert not room.activation_checkpointing, "what is asked for fits"


# --- supernets ------------------------------------------------------------------------------------------------------


def test_a_supernet_is_cut_by_its_largest_subnet_and_is_as_if_it_was_told(data: ImageData) -> None:
    def found(settings: Any, **options: Any) -> tuple[dict[str, Tensor], list[Room]]:
        rooms = list[Room]()
        *_, last = train_supernet(
            SharedWeights(space=SPACE, config=settings), data, device=CPU, seed=0, on_room=rooms.append, **options
        )
        state = {name: tensor.clone() for name, tensor in last.supernet.state_dict().items()}
        return {**state, "losses": torch.tensor(list(last.losses.values()))}, rooms

    settings = config(epochs=1, batch_size=64, drop_path=0.2, project_gradients=True, activation_checkpointing="off")
    with SmallDevice() as device:
        found(settings)
        limit = device.peak / 2
    with SmallDevice(limit) as device:
        cut, (room,) = found(settings, meter=device)
        assert device.num_refused == 0
    assert 1 < room.micro_batch < 64
    told = dataclasses.replace(settings, micro_batch=room.micro_batch)
    assert equal(cut, found(told)[0])
    assert equal(cut, found(dataclasses.replace(told, activation_checkpointing="on"))[0])
    with SmallDevice(limit) as device:
        _, rooms = found(settings)
        assert device.num_refused > 0, "where nothing is measured, it is halved"
    assert (rooms[0].micro_batch, rooms[0].ran_out, rooms[-1].ran_out) == (64, False, True)


def test_a_rank_that_has_no_memory_to_measure_with_keeps_no_other_waiting(tmp_path: Path) -> None:
    assert run_processes(measured_on_ranks, tmp_path, number=2) == [0, 0]
    (first, refused_first), (second, refused_second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (refused_first, refused_second > 0) == (0, True)
    assert first == second
    assert 1 <= first[-1] <= 12


# --- what is said of it ---------------------------------------------------------------------------------------------


def test_reports_of_a_training_say_what_its_device_has_memory_for(
    small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def reports(number: int) -> list[Any]:
        return list(progress_reports(tiny_arch(), setup_for(small, tmp_path), number=number, device=CPU, seed=0))

    with SmallDevice(bytes_for(64) - 1):
        told = reports(0)
    assert {(report["status"], report["micro_batch"], report["activation_checkpointing"]) for report in told} == {
        ("running", 32, False)
    }
    assert {report["reason"] for report in told} == {
        "32 of the 64 images of a batch are trained at once: device memory ran out"
    }
    with SmallDevice(bytes_for(32)) as device:
        monkeypatch.setattr("cvt_nas.engine.reports.meter_of", lambda *_: device)
        told = reports(1)
    assert {report.get("reason") for report in told} == {None}, "there is nothing to be sorry for"
    assert 16 <= told[-1]["micro_batch"] < 64
    assert "no memory for more" in told[-1]["note"]
    with SmallDevice(1):
        (last,) = reports(2)
    assert (last["status"], last["epoch"]) == ("oom", 0)
    *_, of_supernet = supernet_reports(supernet_setup_for(tmp_path, config(epochs=1)), device=CPU, seed=0)
    assert (of_supernet.get("micro_batch"), of_supernet.get("note", "")) == (128, None)


def test_a_record_holds_how_batches_were_cut_and_older_ones_are_read() -> None:
    arch = tiny_arch()
    result = TrialResult(
        number=0, arch=arch, status="complete", epochs=1, accuracy=0.5, cost=cost_of(arch), curve=(0.5,), seconds=1.0,
        train_seconds=1.0, seed=0, micro_batch=512, activation_checkpointing=True,
    )  # fmt: skip
    line = result.to_json()
    assert (line["micro_batch"], line["activation_checkpointing"]) == (512, True)
    assert TrialResult.from_json(line) == result
    old = {name: value for name, value in line.items() if name not in ("micro_batch", "activation_checkpointing")}
    assert TrialResult.from_json(old).micro_batch is None
    assert TrialResult.from_json(old).to_json() == old
    assert arch_to_dict(arch) == old["arch"]


def test_a_search_says_once_that_batches_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    box = HypervolumeBox(least=Cost(params=1, flops=1), greatest=Cost(params=9, flops=9))
    progress = ConsoleProgress(
        Console(soft_wrap=True), results=(), metrics=("accuracy", "flops"), box=box, num_trials=2, num_epochs=2,
        deadline=None,
    )  # fmt: skip
    for number in range(2):
        progress(EpochDone(number=number, epoch=1, accuracy=0.5, note="8 at once"))
    assert capsys.readouterr().out.count("note: trial 0: 8 at once") == 1


def test_the_settings_are_checked_and_change_no_comparison(small: Experiment) -> None:
    def changed(**settings: Any) -> Experiment:
        return small.changed(training=settings)

    cut = changed(micro_batch=16, activation_checkpointing=True)  # as YAML reads `on`
    assert (cut.training.micro_batch, cut.training.activation_checkpointing) == (16, "on")
    assert cut.compares_with(small.manifest(seed=0, num_trials=1))
    for wrong in (0, 1.5, "all", True):
        with pytest.raises(SpaceFileError, match="micro_batch: got .*, must be auto, or a whole number of at least 1"):
            changed(micro_batch=wrong)
    with pytest.raises(SpaceFileError, match="activation_checkpointing: got .*, must be one of auto, off, on"):
        changed(activation_checkpointing="maybe")
    size = small.training.batch_size
    text = small.text.replace("training:\n", f"training:\n  micro_batch: {size}\n")
    (warning,) = parse_experiment(text, "my.yaml").warnings
    assert warning.endswith(f"micro_batch: has no effect: batch_size is {size}, so no batch is cut")
