"""Trainings in processes of their own, some to be killed: imported by each of them, so it imports little."""

import dataclasses
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cvt_nas.config import AugmentConfig, DataConfig, SupernetConfig, TrainingConfig
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import Checkpoint, SharedWeights, TrainingSetup, fit, supernet_reports, train_supernet
from cvt_nas.engine.criterion import Criterion
from cvt_nas.engine.memory import MicroBatches
from cvt_nas.engine.optimization import TrainingState, optimizer_of
from cvt_nas.engine.subnets import SubnetSampler
from cvt_nas.engine.supernet import _step as supernet_step
from cvt_nas.engine.training import _step as training_step
from cvt_nas.model import CvT
from cvt_nas.run import RunFolder
from cvt_nas.space import SearchSpace, StageSpace
from cvt_nas.supernet import Supernet
from small_device import SmallDevice
from strategies import per_stage

CPU = torch.device("cpu")
ALWAYS, NEVER = 1e-9, 0.0  # minutes
ARCH = per_stage(
    image_size=8, dims=(16, 32), depths=(1, 2), heads=(2, 2), kernels=(3, 3), strides=(2, 2), ratios=(2.0, 2.0),
    stem=(3, 1, 1), num_channels=1,
)  # fmt: skip
STAGE = StageSpace(
    patch_kernel=(3,), patch_stride=(2,), patch_padding=None, embed_dim=(8, 16), depth=(1, 2), kv_stride=(1, 2),
    kernel_size=(3,), num_heads=(1, 2), mlp_ratio=(1.0, 2.0), projection=("dw_bn",), class_token=True,
)  # fmt: skip
SPACE = SearchSpace(image_size=8, num_channels=1, num_classes=10, bounds={}, stages=(STAGE,))
PLAIN = dataclasses.replace(SPACE, stages=(dataclasses.replace(STAGE, projection=("avg",)),))  # without batch norm
CUT = {
    "epochs": 2, "batch_size": 16, "lr": 3e-3, "drop_path": 0.1, "augment": AugmentConfig(crop_padding=1, mixup=0.2),
}  # fmt: skip
STILL = {"epochs": 1, "batch_size": 32, "lr": 1e-30, "weight_decay": 0.0, "ema_decay": 0.0}  # weights do not move


FEW = 0.32  # of the training images: 22 batches of 16, of which checkpoints may be written after the 20th


def open_digits(train_fraction: float = 1.0) -> ImageData:
    config = DataConfig(dataset="digits", train_fraction=train_fraction)
    return load_data(config, root=None, image_size=8, num_channels=1, num_classes=10)


class Deadly:
    """`data`, but the process is killed when it asks for a certain batch."""

    def __init__(self, data: ImageData, at: tuple[int, int]) -> None:
        self._data, self._at = data, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def train_batches(self, *, epoch: int, first: int = 0, **options: Any) -> Iterator[Any]:
        for step, batch in enumerate(self._data.train_batches(epoch=epoch, first=first, **options), start=first):
            if (epoch, step) == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def trained(kind: str, data: ImageData, checkpoint: Checkpoint | None, minutes: float) -> list[Any]:
    options: dict[str, Any] = {"device": CPU, "seed": 0, "checkpoint": checkpoint}
    if kind == "trial":
        return list(fit(ARCH, TrainingConfig(**CUT, checkpoint_minutes=minutes), data, **options))
    shared = SharedWeights(space=SPACE, config=SupernetConfig(**CUT, sampling="front", checkpoint_minutes=minutes))
    return list(train_supernet(shared, data, **options))


def bits_of(kind: str, data: ImageData, checkpoint: Checkpoint | None, minutes: float) -> dict[str, Any]:
    """All that a training ends with, to the bit."""
    last = trained(kind, data, checkpoint, minutes)[-1]
    module = last.model if kind == "trial" else last.supernet
    told = {"curve": last.curve, "loss": last.loss} if kind == "trial" else {"losses": last.losses}
    return {**{name: tensor.clone() for name, tensor in module.state_dict().items()}, **told}


def killed(kind: str, folder: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        join(folder / "killed", rank, world_size)
    trained(
        kind, cast(ImageData, Deadly(open_digits(FEW), (1, 21))), Checkpoint(folder / "checkpoints" / "0.pt"), ALWAYS
    )


def join(at: Path, rank: int, world_size: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    warnings.simplefilter("error", FutureWarning)  # each rank would print it
    dist.init_process_group("gloo", init_method=f"file://{at}", rank=rank, world_size=world_size)


def on_ranks(folder: Path, rank: int, world_size: int) -> None:
    """After the kill: the training goes on; one is not disturbed; one loses its newest checkpoint; and a short one."""
    torch.set_num_threads(1)
    join(folder / "again", rank, world_size)
    data = open_digits(FEW)
    found: dict[str, Any] = {"on": bits_of("trial", data, Checkpoint(folder / "checkpoints" / "0.pt"), NEVER)}
    found["whole"] = bits_of("trial", data, Checkpoint(folder / "checkpoints" / "1.pt"), ALWAYS)
    if rank == 0:
        newest = folder / "checkpoints" / "1.pt"
        newest.write_bytes(newest.read_bytes()[:5000])
    dist.barrier()
    epochs = trained("trial", data, Checkpoint(folder / "checkpoints" / "1.pt"), NEVER)
    found["numbers"] = [epoch.number for epoch in epochs]
    found["damaged"] = {name: tensor.clone() for name, tensor in epochs[-1].model.state_dict().items()}
    settings = TrainingConfig(**STILL)
    *_, last = fit(ARCH, settings, data, device=CPU, seed=0, checkpoint=Checkpoint(folder / "checkpoints" / "2.pt"))
    found["statistics"], found["accuracy"] = statistics_of(last.model), last.accuracy
    torch.save(found, folder / f"{rank}.pt")


def supernet_on_ranks(folder: Path, rank: int, world_size: int) -> None:
    """Ranks on nodes of their own, of which the second has weights that the first has not; then the other way round."""
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(folder / f"node{rank}")
    join(folder / "supernet", rank, world_size)
    setup = TrainingSetup(
        training=TrainingConfig(**STILL), data=DataConfig(dataset="digits", train_fraction=FEW), data_root=None,
        image_size=8, num_channels=1, num_classes=10, run=RunFolder.at(f"file://{folder}/there"),
        shared=SharedWeights(space=SPACE, config=SupernetConfig(**STILL)),
    )  # fmt: skip
    weights, there = setup.weights_path, folder / "there" / "supernet" / "weights.safetensors"
    if rank == 1:
        weights.parent.mkdir(parents=True)
        weights.touch()
    assert [report["losses"] != {} for report in supernet_reports(setup, device=CPU, seed=0)] == [True]
    dist.barrier()
    if rank == 0:
        there.unlink()
    else:
        weights.unlink()
    dist.barrier()
    assert [report["losses"] for report in supernet_reports(setup, device=CPU, seed=0)] == [{}], "nothing is left to do"
    dist.barrier()
    assert there.exists(), "for the trials, which run elsewhere"


def statistics_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def spoil(path: Path, rank: int, world_size: int) -> None:
    """Replaces, damages and deletes a checkpoint, again and again."""
    good = path.with_name("good.pt").read_bytes()
    for number in range(400):
        partial = path.with_name("partial")
        partial.write_bytes(good if number % 2 else good[: len(good) // 2])
        partial.replace(path)
        if number % 5 == 4:
            path.unlink(missing_ok=True)
    path.with_name("over").touch()


def gradients_on_ranks(folder: Path, rank: int, world_size: int) -> None:
    """Of one step on 101 images, which do not divide by two, in parts; of a network, and of a supernet."""
    torch.set_num_threads(1)
    if world_size > 1:
        join(folder / "gradients", rank, world_size)
    torch.save(gradients(rank, world_size), folder / f"{rank}.pt")


def gradients(rank: int = 0, world_size: int = 1, **settings: Any) -> dict[str, torch.Tensor]:
    """Of one step on a rank's share of 101 images."""
    data = torch.Generator().manual_seed(0)
    images = torch.randn(101, 1, 8, 8, generator=data)[rank::world_size]
    targets = torch.randint(0, 10, (101,), generator=data)[rank::world_size]
    plain = {"epochs": 1, "batch_size": 128, "optimizer": "sgd", "lr": 1e-9, "ema_decay": 0.0, "label_smoothing": 0.1}
    found = {}
    for kind in ("trial", "supernet"):
        config = SupernetConfig(**(plain | settings), distillation="alpha", project_gradients=True)
        torch.manual_seed(0)
        model: Any = CvT(PLAIN.largest) if kind == "trial" else Supernet(PLAIN)
        state = TrainingState(
            model=model, averaged=None, optimizer=optimizer_of(model, config, CPU),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            criterion=Criterion("cross_entropy", label_smoothing=config.label_smoothing),
        )  # fmt: skip
        cut = MicroBatches(config, model, CPU, batch_size=51, meter=None, is_uneven=True)
        if kind == "trial":
            trained = DistributedDataParallel(model) if world_size > 1 else model
            training_step(state, trained, images, targets, config, cut)
        else:
            sampler = SubnetSampler(PLAIN, config, seed=0)
            supernet_step(state, sampler.draw(0, 0), images, targets, config, cut, sampler.greediest())
        found |= {f"{kind} {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found


def measured_on_ranks(folder: Path, rank: int, world_size: int) -> None:
    """A supernet whose batch norm has the statistics of all ranks; the second has memory for twelve images at once."""
    torch.set_num_threads(1)
    join(folder / "measured", rank, world_size)
    data = open_digits().of_classes((0,))
    plain = {
        "epochs": 1, "batch_size": 64, "lr": 3e-3, "num_random": 1, "activation_checkpointing": "off",
        "sync_batch_norm": True,
    }  # fmt: skip
    micro_batches = list[int]()

    def train(**settings: Any) -> None:
        shared = SharedWeights(space=SPACE, config=SupernetConfig(**(plain | settings)))
        list(
            train_supernet(
                shared,
                data,
                device=CPU,
                seed=0,
                meter=device,
                on_room=lambda room: micro_batches.append(room.micro_batch),
            )
        )

    with SmallDevice() as device:
        train(micro_batch=12)
    with SmallDevice(device.peak if rank == 1 else 1e9) as device:
        train()
    torch.save((micro_batches, device.num_refused), folder / f"{rank}.pt")
