"""Measures how fast this machine trains networks and loads images, by a few steps of a real training."""

import dataclasses
import tempfile
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cvt_nas.arch import ArchConfig, cost_of
from cvt_nas.config import TrainingConfig
from cvt_nas.data import Batch, ImageData, Split
from cvt_nas.engine.checkpoint import Checkpoint
from cvt_nas.engine.memory import Room, meter_of
from cvt_nas.engine.optimization import batch_size_of_rank, is_out_of_memory
from cvt_nas.engine.setup import SharedWeights
from cvt_nas.engine.supernet import train_supernet
from cvt_nas.engine.training import fit
from cvt_nas.results import DataIdentity

T = TypeVar("T", bound=TrainingConfig)
_FLOPS_OF_STEP = 10**10  # of a forward pass on a CPU, so that a step takes at most seconds
_BLOCKS_GAIN = 1.1
_WARM_UPS = 3  # batches on a GPU; if steps are replayed, the last one is recorded
_MOST_EPOCHS = 10**6  # of a training that is timed
_LOADED_AT_ONCE = 64  # images of a batch while the loader is timed, since a first large batch takes long


class Timing(NamedTuple):
    """Times of a batch.

    It holds the time when the batch was asked for, by `time.perf_counter`, which processes of a machine share on Linux;
    the seconds until it was loaded; and the seconds until its step was done.
    """

    num_images: int
    began: float
    load: float
    step: float

    @property
    def ended(self) -> float:
        return self.began + self.load + self.step


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Seconds of the parts of a training.

    Args:
        batches: Consecutive batches that are counted.
        step: Seconds of an image in a training step, including its share of the optimizer's work.
        load: Seconds of an image that a step waits for.
        evaluation: Seconds of an image in an evaluation, including its loading.
        begin: Seconds before the first step.
        epoch_end: Seconds after the last image of an epoch, for a checkpoint.
        room: What fits into the device's memory; None on a CPU, where batches are whole.
    """

    batches: tuple[Timing, ...]
    step: float
    load: float
    evaluation: float
    begin: float
    epoch_end: float
    room: Room | None


class _TimedData:
    """A data set that times the use of its batches, and ends an epoch after some seconds.

    If it `repeats`, the epoch continues with the images of the next epochs until then.
    """

    def __init__(
        self, data: ImageData, device: torch.device, *, seconds: float, most_images: int, repeats: bool = False
    ) -> None:
        self.preprocessing, self.class_names = data.preprocessing, data.class_names
        self._data, self._device, self._seconds, self._most_images = data, device, seconds, most_images
        self._repeats = repeats
        self.num_warm_ups = _WARM_UPS if device.type == "cuda" else 1
        self.trained, self.evaluated = list[Timing](), list[Timing]()
        self.first_asked = self.last_done = 0.0

    def identity(self) -> DataIdentity:
        return self._data.identity()

    def num_images(self, split: Split) -> int:
        return self._data.num_images(split)

    @property
    def is_multi_label(self) -> bool:
        return self._data.is_multi_label

    def labels(self, split: Split) -> np.ndarray:
        return self._data.labels(split)

    @property
    def is_taught(self) -> bool:
        return self._data.is_taught

    def of_classes(self, classes: Collection[int]) -> Self:
        raise AssertionError(f"nothing that is timed is of some classes alone: {classes}")

    def train_batches(
        self, *, epoch: int, until: int | None = None, evaluated: tuple[Split, int] | None = None, **settings: Any
    ) -> Iterator[Batch]:
        del until, evaluated  # nothing is read ahead after a shortened epoch
        self.first_asked = time.perf_counter()
        last = epoch + (_MOST_EPOCHS if self._repeats else 1)
        batches = (
            batch
            for number in range(epoch, last)
            for batch in self._data.train_batches(epoch=number, until=last if self._repeats else None, **settings)
        )
        return self._timed(batches, self.trained, self._seconds)

    def eval_batches(self, split: Split, *, batch_size: int, **settings: Any) -> Iterator[Batch]:
        batch_size = min(batch_size, self._most_images)
        batches = self._data.eval_batches(split, batch_size=batch_size, **settings)
        return self._timed(batches, self.evaluated, self._seconds / 2)

    def prepared(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self._data.prepared(images)

    def close(self) -> None:
        self._data.close()

    def _timed(self, batches: Iterator[Batch], timings: list[Timing], seconds: float) -> Iterator[Batch]:
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            loaded = self._now()
            yield batch
            self.last_done = self._now()
            timings.append(Timing(len(batch[0]), asked, loaded - asked, self.last_done - loaded))
            if sum(timing.load + timing.step for timing in timings[self.num_warm_ups :]) >= seconds:
                return

    def _now(self) -> float:
        """Time after the device has finished its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def measure_training(
    arch: ArchConfig,
    training: TrainingConfig,
    data: ImageData,
    *,
    device: torch.device,
    seconds: float,
    num_devices: int = 1,
    memory_share: float = 1.0,
    repeats: bool = False,
) -> Speed | None:
    """Trains `arch` with `fit` for about `seconds`, and evaluates it for half as long.

    Warm-up batches are not counted. On a CPU, large networks get smaller batches, since the time of an image is the
    same.

    Args:
        num_devices: Devices that share a batch. One of them is measured.
        repeats: Whether to repeat the images of a small data set until the time is over.

    Returns:
        The speed; None if the device has not enough memory.
    """
    most_images = _most_images(cost_of(arch).flops, device)
    timed = _TimedData(data, device, seconds=seconds, most_images=most_images, repeats=repeats)
    short = _cut(training, batch_size=min(batch_size_of_rank(training, num_devices), most_images))
    rooms = list[Room]()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        epochs = fit(
            arch, short, timed, device=device, seed=0, checkpoint=Checkpoint(Path(folder) / "checkpoints" / "0.pt"),
            meter=meter_of(device, memory_share), on_room=rooms.append,
        )  # fmt: skip
        if not _has_memory_for(epochs, device):
            return None
        ended = time.perf_counter()
    load, step = _mean(timed.trained, timed.num_warm_ups)
    return Speed(
        batches=_counted(timed.trained, timed.num_warm_ups),
        step=step,
        load=load,
        evaluation=sum(_mean(timed.evaluated, timed.num_warm_ups)),
        begin=timed.first_asked - started,
        epoch_end=ended - timed.last_done,
        room=rooms[-1] if rooms and device.type == "cuda" else None,
    )


Way = Literal["off", "graph", "blocks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FastestWay:
    """The fastest value of `training.compile` on a device, and the rates of all values that were tried."""

    fastest: Way
    images_per_second: dict[Way, float]

    @classmethod
    def of(cls, images_per_second: dict[Way, float]) -> Self:
        """Picks the fastest way. Compiled blocks must gain a tenth, since they change results by rounding, and each
        machine compiles each kind again."""

        def worth(way: Way) -> float:
            return images_per_second[way] / (_BLOCKS_GAIN if way == "blocks" else 1)

        return cls(fastest=max(images_per_second, key=worth), images_per_second=images_per_second)

    def describe(self) -> str:
        rates = ", ".join(f"{way} {rate:,.0f}" for way, rate in self.images_per_second.items())
        return f"{self.fastest}, by images/s: {rates}"

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def fastest_way(
    arch: ArchConfig,
    training: TrainingConfig,
    data: ImageData,
    *,
    device: torch.device,
    num_devices: int = 1,
    memory_share: float = 1.0,
    seconds: float = 1.0,
    worth_compiling: float = 600.0,
) -> FastestWay | None:
    """Trains `arch` for some seconds in each way, without loading images.

    Args:
        num_devices, memory_share: See `measure_training`. Only a training on one device can be replayed.
        seconds: Seconds of each way, without its warm-up.
        worth_compiling: Compiled blocks are tried if the training would otherwise take more than these seconds.

    Returns:
        The fastest way; None if the device has not enough memory.
    """
    rates: dict[Way, float] = {}
    ways: list[Way] = ["off", "graph"] if num_devices == 1 else ["off"]

    def measure(way: Way) -> bool:
        by_way = dataclasses.replace(training, compile=way)
        found = measure_training(
            arch, by_way, data,
            device=device, seconds=seconds, num_devices=num_devices, memory_share=memory_share, repeats=True,
        )  # fmt: skip
        if found is not None:
            rates[way] = 1 / found.step
        return found is not None

    if not all(measure(way) for way in ways):
        return None
    if training.epochs * data.num_images("train") / max(rates.values()) / num_devices >= worth_compiling:
        measure("blocks")
    return FastestWay.of(rates)


def measure_supernet(
    shared: SharedWeights, data: ImageData, *, device: torch.device, seconds: float, num_devices: int
) -> float | None:
    """Seconds of an image in a step of the supernet's training on one of `num_devices`, including its loading.

    Communication between devices is not counted. None if the device has not enough memory.
    """
    most_images = _most_images(2 * cost_of(shared.space.largest).flops, device)
    timed = _TimedData(data, device, seconds=seconds, most_images=most_images)
    batch_size = min(batch_size_of_rank(shared.config, num_devices), most_images)
    config = _cut(dataclasses.replace(shared.config, opening={}), batch_size=batch_size)
    epochs = train_supernet(dataclasses.replace(shared, config=config), timed, device=device, seed=0)
    if not _has_memory_for(epochs, device):
        return None
    return sum(_mean(timed.trained, timed.num_warm_ups))


def _has_memory_for(epochs: Generator[object, None, None], device: torch.device) -> bool:
    """Whether the first epoch of a training fits into memory. The training ends after it."""
    try:
        next(epochs)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        epochs.close()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def measure_loader(data: ImageData, training: TrainingConfig, *, device: torch.device, seconds: float) -> float:
    """Images a second of `train_batches` without any training, after the first two batches."""
    batches = data.train_batches(
        batch_size=min(training.batch_size, _LOADED_AT_ONCE), augment=training.augment, device=device, seed=0, epoch=0
    )
    num_images, started = 0, time.perf_counter()
    for number, (images, _) in enumerate(batches):
        if number == 1:
            num_images, started = 0, time.perf_counter()
        num_images += len(images) if number != 1 else 0
        if number > 2 and time.perf_counter() - started >= seconds:
            break
    return num_images / max(time.perf_counter() - started, 1e-9)


def _most_images(flops: int, device: torch.device) -> int:
    if device.type == "cuda":
        return 2**20
    return max(2 * (_FLOPS_OF_STEP // (2 * flops)), 2)  # even, for mixing


def _cut(training: T, *, batch_size: int) -> T:
    """Settings for a measurement, with a learning rate that keeps losses finite. Times do not change."""
    epochs = max(training.epochs, 2)
    return dataclasses.replace(
        training, epochs=epochs, batch_size=batch_size, lr=1e-8, min_lr=0.0, warmup_epochs=0.0, restarts=[]
    )


def _counted(timings: Sequence[Timing], num_warm_ups: int) -> tuple[Timing, ...]:
    """Timings without those of warm-up batches; the last timing if there are no others."""
    return tuple(timings[num_warm_ups:]) or tuple(timings[-1:])


def _mean(timings: Sequence[Timing], num_warm_ups: int) -> tuple[float, float]:
    """Mean seconds of an image: to load it, and to finish its step."""
    counted = _counted(timings, num_warm_ups)
    num_images = max(sum(timing.num_images for timing in counted), 1)
    return sum(timing.load for timing in counted) / num_images, sum(timing.step for timing in counted) / num_images
