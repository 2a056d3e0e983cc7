"""On a real GPU, what neither the CPU nor a logical GPU can show. Run with -m gpu."""

import dataclasses
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cvt_nas import load_model, search
from cvt_nas.arch import arch_to_dict, load_arch
from cvt_nas.config import AugmentConfig, DataConfig, Experiment
from cvt_nas.data import ImageData, load_data, made_beside_steps
from cvt_nas.engine import (
    Checkpoint,
    Inheritance,
    SharedWeights,
    TrainingSetup,
    answer_images,
    find_teacher,
    fit,
    progress_reports,
    train_supernet,
)
from cvt_nas.launch.cluster import local_ray
from cvt_nas.launch.ranks import reports_of_ranks
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.trial import run_trial
from cvt_nas.model import CvT, save_model
from cvt_nas.plan.planning import plan
from cvt_nas.run import RunFolder
from cvt_nas.supernet import extract
from test_augment import array_data, image_folder
from test_engine import CPU, tiny_arch, training, weights_of
from test_inherit import with_supernet
from test_supernet_training import SPACE, config

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode")]  # warns once a process
CUDA = torch.device("cuda:0")
AUGMENTED = AugmentConfig(flip=True, crop_padding=1, mixup=0.2, random_erasing=0.25)


@pytest.fixture(scope="module")
def digits_data() -> ImageData:
    return load_data(DataConfig(dataset="digits"), root=None, image_size=8, num_channels=1, num_classes=10)


def test_a_network_answers_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    model, images = CvT(tiny_arch()).eval(), torch.randn(64, 1, 8, 8)
    with torch.inference_mode():
        expected = model(images)
        found = model.to(CUDA)(images.to(CUDA)).cpu()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)  # TF32 has ten bits


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_learns_in_every_precision(digits_data: ImageData, precision: str) -> None:
    settings = training(epochs=10, warmup_epochs=1, precision=precision, clip_grad_norm=1.0)
    *_, last = fit(tiny_arch(), settings, digits_data, device=CUDA, seed=0)
    assert last.accuracy > 0.85
    assert {weight.dtype for weight in last.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_training_that_was_cut_off_ends_as_if_it_was_not(
    digits_data: ImageData, tmp_path: Path, precision: str
) -> None:
    def rest(checkpoint: Checkpoint | None = None) -> Iterator[Any]:
        settings = training(precision=precision, drop_path=0.1, augment=AUGMENTED)
        return fit(tiny_arch(), settings, digits_data, device=CUDA, seed=0, checkpoint=checkpoint)

    *_, whole = rest()
    cut = rest(Checkpoint(tmp_path / "checkpoint.pt"))
    next(cut)
    cut.close()  # type: ignore[attr-defined]
    *_, last = rest(Checkpoint(tmp_path / "checkpoint.pt"))
    assert last.curve == whole.curve
    assert torch.equal(weights_of(last), weights_of(whole))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_attention_to_many_keys_adds_gradients_in_the_same_order_each_time(precision: str) -> None:
    data = MadeOnTheDevice(num_images=32)

    def weights() -> torch.Tensor:
        settings = training(epochs=1, batch_size=4, precision=precision, lr=1e-3)
        *_, last = fit(load_arch("cvt-13"), settings, cast(Any, data), device=CUDA, seed=0)
        return weights_of(last)

    first = weights()
    assert all(torch.equal(weights(), first) for _ in range(3))


def num_syncs(run: Callable[[], Any]) -> int:
    """Times that the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_few_steps_of_a_training_wait_for_the_gpu(digits_data: ImageData, precision: str) -> None:
    def syncs(batch_size: int) -> int:
        settings = training(epochs=1, batch_size=batch_size, precision=precision, drop_path=0.1, augment=AUGMENTED)
        return num_syncs(lambda: list(fit(tiny_arch(), settings, digits_data, device=CUDA, seed=0)))

    syncs(16)  # what is done once
    num_steps = digits_data.num_images("train") // 16
    assert 0 < syncs(16) <= syncs(256) + num_steps / 10  # every twentieth looks whether all is finite


def test_few_steps_of_a_supernet_wait_for_the_gpu(digits_data: ImageData) -> None:
    def syncs(batch_size: int) -> int:
        settings = config(epochs=1, batch_size=batch_size, distillation="alpha", clip_grad_norm=1.0)
        return num_syncs(
            lambda: list(train_supernet(SharedWeights(space=SPACE, config=settings), digits_data, device=CUDA, seed=0))
        )

    syncs(16)
    num_steps = digits_data.num_images("train") // 16
    assert 0 < syncs(16) <= syncs(256) + num_steps / 10  # every twentieth looks whether all is finite


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_that_is_replayed_ends_as_one_that_is_not(digits_data: ImageData, precision: str) -> None:
    def ended(way: str) -> tuple[torch.Tensor, float]:
        settings = training(
            compile=way, precision=precision, drop_path=0.2, clip_grad_norm=0.5, augment=AUGMENTED, micro_batch=64
        )
        *_, last = fit(tiny_arch(), settings, digits_data, device=CUDA, seed=0)
        return weights_of(last), last.loss

    (weights, loss), (plain, plain_loss) = ended("graph"), ended("off")
    assert torch.equal(weights, plain)
    assert loss == plain_loss


def test_a_supernet_whose_largest_and_smallest_are_replayed_ends_as_one_without(digits_data: ImageData) -> None:
    def ended(way: str) -> dict[str, torch.Tensor]:
        shared = SharedWeights(space=SPACE, config=config(compile=way, drop_path=0.2, distillation="alpha"))
        *_, last = train_supernet(shared, digits_data, device=CUDA, seed=0)
        return {name: tensor.clone() for name, tensor in last.supernet.state_dict().items()}

    replayed, plain = ended("graph"), ended("off")
    assert all(torch.equal(tensor, plain[name]) for name, tensor in replayed.items())


def test_a_pass_is_one_launch_once_it_is_recorded(digits_data: ImageData) -> None:
    def num_launches(way: str) -> int:
        settings = training(epochs=1, compile=way, micro_batch=64)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            list(fit(tiny_arch(), settings, digits_data, device=CUDA, seed=0))
        return sum(event.count for event in profiler.key_averages() if event.key == "cudaLaunchKernel")

    assert num_launches("graph") < num_launches("off") / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_train_as_those_that_are_not_compiled(digits_data: ImageData, precision: str) -> None:
    def ended(way: str) -> Any:
        settings = training(epochs=10, compile=way, precision=precision, drop_path=0.1)
        *_, last = fit(tiny_arch(), settings, digits_data, device=CUDA, seed=0)
        return last

    compiled, plain = ended("blocks"), ended("off")
    assert compiled.loss == pytest.approx(plain.loss, rel=0.05)
    assert compiled.accuracy == pytest.approx(plain.accuracy, abs=0.05)


@pytest.fixture
def memory_for() -> Iterator[Callable[[int], None]]:
    """Allows this process no more of the GPU's memory than so many bytes."""

    def allow(size: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(size / torch.cuda.mem_get_info()[1])

    yield allow
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_trial_takes_no_more_memory_than_there_is_and_ends_as_if_it_was_told(
    small: Experiment, tmp_path: Path, memory_for: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr("cvt_nas.launch.trial.tune.report", reports.append)
    monkeypatch.setattr("cvt_nas.launch.trial._device", lambda: "gpu 0")
    resources = Resources(num_slots=1, cpus_per_trial=1, gpus_per_trial=1, device="cuda")

    def run(number: int, **settings: Any) -> int:
        """Bytes that it reserved."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        setup = dataclasses.replace(
            TrainingSetup.of(small, run=RunFolder(tmp_path), data=None),
            device="cuda",
            training=training(epochs=1, batch_size=1024, **settings),
        )
        arch = json.dumps(arch_to_dict(small.space.largest))
        run_trial(
            {"number": number, "arch": arch, "seed": 0, "num_known": 0, "costs": (), "gpus": resources.gpus_per_trial},
            setup,
            resources,
        )
        return torch.cuda.max_memory_reserved()

    whole = run(0)
    assert reports[-1]["micro_batch"] == 1024
    assert run(1, micro_batch=256) < 0.8 * whole
    memory_for(whole // 2)
    assert run(2) <= whole // 2
    assert reports[-1]["status"] == "running"
    found = reports[-1]["micro_batch"]
    assert 16 <= found < 1024
    run(3, micro_batch=found)
    assert reports[-1]["accuracy"] == reports[-2]["accuracy"]
    run(4, micro_batch=1024, activation_checkpointing="off")  # which is not there
    assert (reports[-1]["status"], reports[-1]["micro_batch"] < 1024) == ("running", True)
    assert "device memory ran out" in reports[-1]["reason"]


class MadeOnTheDevice:
    """Batches of the same noise, with images of ImageNet's size. An epoch has `num_images`."""

    class_names = tuple(map(str, range(1000)))
    is_taught = is_multi_label = False

    def __init__(self, num_images: int = 2048) -> None:
        self._num_images = num_images

    def num_images(self, split: str) -> int:
        return self._num_images if split == "train" else 64

    def _batch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator(CUDA).manual_seed(number)
        images = torch.randn(number, 3, 224, 224, device=CUDA, generator=generator)
        return images.contiguous(memory_format=torch.channels_last), torch.arange(number, device=CUDA) % 1000

    def train_batches(self, *, batch_size: int, **options: Any) -> Iterator[Any]:
        for _ in range(self._num_images // batch_size):
            yield self._batch(batch_size)

    def eval_batches(self, split: str, **options: Any) -> Iterator[Any]:
        yield self._batch(self.num_images(split))

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        return images  # they were made so

    def close(self) -> None:
        pass


@pytest.mark.parametrize("gigabytes", [8, 16, 24])
def test_cvt_13_trains_a_batch_of_2048_on_a_small_card(memory_for: Callable[[int], None], gigabytes: int) -> None:
    if torch.cuda.mem_get_info()[0] < gigabytes * 2**30:
        pytest.skip("the card is smaller, or not free")
    rooms, settings = list[Any](), training(epochs=1, batch_size=2048, precision="bf16", lr=1e-4)
    memory_for(gigabytes * 2**30)
    torch.cuda.reset_peak_memory_stats()
    data: Any = MadeOnTheDevice()
    *_, last = fit(load_arch("cvt-13"), settings, data, device=CUDA, seed=0, on_room=rooms.append)
    print(gigabytes, [(room.micro_batch, room.activation_checkpointing) for room in rooms])
    assert math.isfinite(last.loss)
    assert torch.cuda.max_memory_reserved() <= gigabytes * 2**30
    assert not rooms[-1].activation_checkpointing
    assert 16 <= rooms[-1].micro_batch < 2048


def test_blocks_that_are_computed_again_change_no_bit(digits_data: ImageData) -> None:
    found = []
    for again in ("off", "on"):
        settings = training(epochs=1, micro_batch=24, drop_path=0.2, activation_checkpointing=again)
        *_, last = fit(tiny_arch(), settings, digits_data, device=CUDA, seed=0)
        found.append(weights_of(last))
    assert torch.equal(*found)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_supernet_learns_as_on_the_cpu(digits_data: ImageData, precision: str) -> None:
    settings = config(epochs=10, lr=3e-3, precision=precision, distillation="alpha")
    *_, last = train_supernet(SharedWeights(space=SPACE, config=settings), digits_data, device=CUDA, seed=0)
    plain = dataclasses.replace(settings, precision="fp32")
    *_, on_cpu = train_supernet(SharedWeights(space=SPACE, config=plain), digits_data, device=CPU, seed=0)
    assert last.losses == pytest.approx(on_cpu.losses, rel=0.15)
    expected = Inheritance(on_cpu.supernet, plain, digits_data, CPU).measure(SPACE.largest).accuracy
    found = Inheritance(last.supernet, settings, digits_data, CUDA).measure(SPACE.largest).accuracy
    assert found == pytest.approx(expected, abs=0.1)
    arch, images = SPACE.decode(SPACE.sample(random.Random(0))), torch.randn(8, 1, 8, 8, device=CUDA)
    supernet = last.supernet.eval()
    with torch.inference_mode():
        torch.testing.assert_close(extract(supernet, arch).eval()(images), supernet(images, arch), rtol=0, atol=0)


@pytest.mark.parametrize("gpus_per_trial", [0.5, "auto"])
def test_trials_share_a_gpu_and_their_models_load_anywhere(
    small: Experiment, tmp_path: Path, gpus_per_trial: Any
) -> None:
    run = search(small, out=tmp_path / "run", gpus=1, gpus_per_trial=gpus_per_trial)
    found = run.manifest.get("sharing", {"trials_per_gpu": 2})
    assert run.manifest["resources"]["num_slots"] == found["trials_per_gpu"]
    trials = run.results()
    assert len(trials) == 8
    assert {trial.device for trial in trials} == {"gpu 0"}
    complete = [trial for trial in trials if trial.status == "complete"]
    model = load_model(run.model_path(complete[0].arch_id))
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_plan_measures_how_many_trials_share_a_gpu(small: Experiment, tmp_path: Path) -> None:
    found = plan(small, gpus=1, gpus_per_trial="auto", out=tmp_path / "run")
    number = found.machine.num_slots
    outcome = "each trial has a GPU of its own" if number == 1 else f"{number} trials share a GPU"
    assert found.notes[0].startswith(f"{outcome}; images/s by the number of processes on it: 1: ")


def test_a_run_with_a_supernet_trains_ranks_and_races_on_the_gpu(tmp_path: Path) -> None:
    run = search(with_supernet(), out=tmp_path / "run", gpus=1)
    assert run.supernet.is_trained
    assert {trial.device for trial in run.results()} == {"gpu 0"}


def test_workers_of_a_training_share_their_work_by_nccl(small: Experiment, tmp_path: Path) -> None:
    """One worker only, where there is one GPU: that is a process group all the same."""
    num_workers = torch.cuda.device_count()
    assert num_workers > 0, "no GPU is here"
    run = RunFolder(tmp_path)
    setup = TrainingSetup.of(small, run=run, data=None)
    setup = dataclasses.replace(setup, device="cuda", training=training(epochs=2))
    with local_ray(num_cpus=num_workers, num_gpus=num_workers):
        *_, last = reports_of_ranks(
            progress_reports, setup=setup, num_ranks=num_workers, cpus_per_rank=1, use_gpus=True, arch=tiny_arch(),
            number=0, seed=0, keep_model=True, num_known=0,
        )  # fmt: skip
    assert (last["epoch"], last["status"]) == (2, "running")


def pictures(kind: str, folder: Path) -> ImageData:
    if kind == "arrays":
        return array_data(60)
    image_folder(folder, 60)
    config = DataConfig(dataset="imagefolder", search_fraction=0.1, num_workers=1)
    return load_data(config, root=folder, image_size=16, num_channels=3, num_classes=2)


def test_a_teacher_answers_as_on_the_cpu_and_batches_carry_it_without_waiting(
    small: Experiment, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_model(CvT(small.space.largest), tmp_path / "teacher")
    experiment, found = small.changed(training={"teacher": str(tmp_path / "teacher")}), {}
    for device in ("cpu", "cuda"):
        setup = TrainingSetup.of(experiment, run=RunFolder(tmp_path / device), data=None)
        setup = dataclasses.replace(setup, device=device).checked()
        teacher = find_teacher(setup, init=None, run=None)
        assert teacher is not None
        list(answer_images(setup, teacher))
        data = dataclasses.replace(setup, answers=teacher.answers).open_data()
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        try:
            batches = data.train_batches(
                batch_size=64, augment=AugmentConfig(), device=setup.torch_device, seed=0, epoch=0, temperature=2.0
            )
            found[device] = [targets for _, targets in made_beside_steps(batches, setup.torch_device)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=5e-3, atol=5e-3)  # TF32 has ten bits


@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_batches_are_augmented_as_on_the_cpu_and_wait_for_nothing(kind: str, tmp_path: Path) -> None:
    augment = AugmentConfig(flip=True, randaugment="rand-m9-mstd0.5-inc1-p1")
    data = pictures(kind, tmp_path)

    def batches(device: torch.device) -> list[torch.Tensor]:
        found = data.train_batches(batch_size=8, augment=augment, device=device, seed=0, epoch=0)
        return [images.clone() for images, _ in made_beside_steps(found, device)]

    expected = batches(CPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = batches(CUDA)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    away = (torch.cat(found).cpu() - torch.cat(expected)).abs().mean() * 255 * min(data.preprocessing.std)
    assert away < 0.05  # of 255


@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_batches_that_are_made_beside_steps_are_the_same_to_the_bit(kind: str, tmp_path: Path) -> None:
    augment = AugmentConfig(
        flip=True, randaugment="rand-m9-mstd0.5-inc1-p1", random_erasing=0.5, mixup=0.2, cutmix=1.0
    )  # fmt: skip
    data, work = pictures(kind, tmp_path), torch.randn(4096, 4096, device=CUDA)
    product = work @ work

    def seen(*, beside: bool) -> list[torch.Tensor]:
        """Batches as they are at the end of a long step, and what is drawn in it."""
        found = list[torch.Tensor]()
        for epoch in range(3):
            batches = data.train_batches(batch_size=8, augment=augment, device=CUDA, seed=0, epoch=epoch)
            for images, targets in made_beside_steps(batches, CUDA) if beside else batches:
                for _ in range(20):
                    torch.matmul(work, work, out=product)
                found += [images.clone(), targets.clone(), torch.rand(2, device=CUDA), torch.rand(2)]
        return found

    pairs = list(zip(seen(beside=True), seen(beside=False), strict=True))
    assert len(pairs) == 4 * 3 * (data.num_images("train") // 8)
    assert all(torch.equal(*pair) for pair in pairs)


def test_two_batches_are_in_memory_at_a_time_however_far_the_host_is_ahead() -> None:
    size, work = 2**24, torch.randn(4096, 4096, device=CUDA)
    product = work @ work  # with what cuBLAS takes at first

    def noise() -> Iterator[Any]:
        for _ in range(12):
            yield torch.randn(size // 4, device=CUDA), torch.zeros(1, device=CUDA)

    def bytes_of(batches: Iterator[Any]) -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        for images, _ in batches:
            for _ in range(20):
                torch.matmul(work, work, out=product)
            images.mul_(2)
        return torch.cuda.max_memory_reserved() - before

    assert bytes_of(made_beside_steps(noise(), CUDA)) < 2.5 * size + 2**23  # and a little for the targets


def test_a_training_whose_batches_are_made_beside_its_steps_ends_as_one_without(
    digits_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for beside in (True, False):
        if not beside:
            monkeypatch.setattr("cvt_nas.engine.keeper.made_beside_steps", lambda batches, device: batches)
        settings = training(epochs=2, drop_path=0.1, augment=AUGMENTED)
        *_, last = fit(tiny_arch(), settings, digits_data, device=CUDA, seed=0)
        found.append(weights_of(last))
    assert torch.equal(*found)
