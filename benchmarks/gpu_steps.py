"""What the stages of `gpu_stages.py` measure of a step: images a second, the GPU's busy share, and memory."""

import contextlib
import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.arch import ArchConfig, sides_of
from cvt_nas.config import SupernetConfig, TrainingConfig, load_experiment
from cvt_nas.data import Batch, Preprocessing, Split
from cvt_nas.engine import SharedWeights, fit, train_supernet
from cvt_nas.engine.optimization import is_out_of_memory
from cvt_nas.engine.speed import fastest_way
from cvt_nas.errors import first_line
from cvt_nas.model import CvT
from shared import eval_step, networks, train_step

GIB = 2**30
LIMITS = {"8 GiB": 8 * GIB, "16 GiB": 16 * GIB, "24 GiB": 24 * GIB}
TINY_LIMITS = {"1 MiB": 2**20, "4 MiB": 2**22}


def rates(name: str, device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Images a second of the network, precision and kind in `name`; others' speed over ours, by quartiles."""
    from test_model import hugging_face_twin

    is_compiled = name.endswith(", compiled")
    network, precision, kind = name.removesuffix(", compiled").rsplit(", ", 2)
    arch, size = (tiny_arch(), 4) if tiny else (networks()[network][0], 128)
    in_order = torch.are_deterministic_algorithms_enabled()

    def twin() -> Any:
        return hugging_face_twin(arch, quick_gelu=False).to(device)

    models: dict[str, Any] = {"ours": CvT(arch).to(device)}
    if is_compiled:
        torch.compiler.reset()
        compiled = functools.partial(torch.compile, disable=tiny)  # which takes half a minute, of whatever network
        models |= {"compiled": compiled(CvT(arch).to(device)), "transformers compiled": compiled(twin())}
    else:
        models["transformers"] = twin()
    make = train_step if kind == "training" else eval_step
    steps = {name: make(model, precision, device, in_order=in_order) for name, model in models.items()}
    images = torch.randn(size, *arch.image_shape, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, arch.num_classes, (size,), device=device)
    runs = {name: functools.partial(step, images, labels) for name, step in steps.items()}
    seconds, failed = interleaved(runs, device, num_rounds=2 if tiny else 9, chunk=0.0 if tiny else 0.15)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "batch": size, "images_per_second": {name: size / median for name, median in medians.items()},
        "over_ours": {name: _quartiles(seconds["ours"], times) for name, times in seconds.items() if name != "ours"},
        "gpu_busy": {name: busy_share(runs[name], device, medians[name]) for name in seconds},
        "launch_us": _launch_us(device), "failed": failed,
    }  # fmt: skip


def ways(name: str, device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Images a second of a training by `fit`, by each value of `training.compile`, on noise."""
    network, precision, _ = name.rsplit(", ", 2)
    arch, size = (tiny_arch(), 4) if tiny else (networks()[network][0], 128)
    settings: dict[str, Any] = {"precision": precision, "clip_grad_norm": 1.0, "drop_path": 0.1}
    found = fastest_way(
        arch, TrainingConfig(epochs=1, batch_size=size, **settings), Noise(arch, size, num_batches=1000), device=device,
        seconds=0.01 if tiny else 3.0, worth_compiling=float("inf") if tiny else 0.0,
    )  # fmt: skip
    if found is None:
        raise RuntimeError(f"a batch of {size} does not fit")
    return {"batch": size, **found.to_json()}


def projections(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Whether one convolution for keys and values pays: speed, against one for each, of forward and backward.

    By stage, with a query's convolution of stride 1 beside them in both.
    """
    batch, found = 2 if tiny else 128, {}
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    for channels, side in ((64, 56), (192, 28), (384, 14)):
        maps = torch.randn(batch, channels, side, side, device=device, dtype=dtype, requires_grad=True)
        weights = [torch.randn(times * channels, 1, 3, 3, device=device, dtype=dtype) for times in (1, 1, 1, 2)]
        query, key, value, both = (weight.requires_grad_() for weight in weights)

        def convolve(weights: Sequence[Tensor], maps: Tensor = maps, query: Tensor = query) -> None:
            nhwc = maps.contiguous(memory_format=torch.channels_last)
            parts = [(query, 1), *((weight, 2) for weight in weights)]
            outs = [F.conv2d(nhwc, weight, None, stride, 1, groups=maps.shape[1]) for weight, stride in parts]
            torch.autograd.backward([out.sum() for out in outs])

        steps = {"apart": lambda k=key, v=value: convolve((k, v)), "at once": lambda kv=both: convolve((kv,))}
        seconds, _ = interleaved(steps, device, num_rounds=1 if tiny else 5, chunk=0.01 if tiny else 0.1)
        apart, at_once = (statistics.median(seconds[way]) for way in steps)
        found[f"{channels} x {side} x {side}"] = apart / at_once
    return {"batch": batch, "speed_at_once": found}


def tiny_arch() -> ArchConfig:
    """The smallest that transformers' CvT can be, too."""
    from strategies import per_stage

    three = {"heads": (1,) * 3, "kernels": (3,) * 3, "strides": (1,) * 3, "ratios": (1.0,) * 3}
    return per_stage(image_size=8, stem=(3, 1, 1), dims=(4, 8, 16), depths=(1, 2, 3), **three)  # type: ignore[arg-type]


def interleaved(
    steps: dict[str, Callable[[], None]], device: torch.device, *, num_rounds: int, chunk: float
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each step in each round, after some that warm up and compile; and why others could not run.

    Args:
        chunk: Seconds of a step's steps in a round, between which the device is not waited for; at most 50 of them.

    Raises:
        RuntimeError: The first cannot, with which the others are compared.
    """
    counts: dict[str, int] = {}
    failed: dict[str, str] = {}
    for name, step in steps.items():
        try:
            seconds_of(step, device, 3)
            counts[name] = max(1, min(50, round(chunk / seconds_of(step, device, 2))))
        except Exception as error:
            if not counts:
                raise
            failed[name] = f"{type(error).__name__}: {first_line(error)}"
    times = {name: [] for name in counts}
    for _ in range(num_rounds):
        for name, count in counts.items():
            times[name].append(seconds_of(steps[name], device, count))
    return times, failed


def seconds_of(step: Callable[[], object], device: torch.device, number: int) -> float:
    """Seconds of one of `number` steps, between two moments at which the device has nothing left to do."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(number):
        step()
    synchronise(device)
    return (time.perf_counter() - started) / number


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _quartiles(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return statistics.quantiles(ratios, n=4, method="inclusive")


def _launch_us(device: torch.device) -> float | None:
    """Microseconds of the host to launch a kernel, which bounds small networks; CUPTI may raise it once it was used."""
    if device.type != "cuda":
        return None
    one = torch.zeros(1, device=device)
    return 1e6 * seconds_of(lambda: one.add_(1), device, 10_000)


def busy_share(step: Callable[[], None], device: torch.device, seconds: float) -> float | None:
    """Share of a step's `seconds`, as it takes them without the profiler, in which the GPU works; None if untold."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            step()
        synchronise(device)
    return _share(profiler, 3 * seconds)


def _share(profiler: torch.profiler.profile, seconds: float) -> float | None:
    """Of the seconds, that in which at least one kernel or copy ran; None where the profiler saw none."""
    busy = covered(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ) / 1e6  # fmt: skip
    return min(busy / seconds, 1.0) if busy else None


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of what at least one of the intervals covers."""
    total, last = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(stop - max(start, last), 0.0)
        last = max(last, stop)
    return total


def supernet_step(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """A step of `train_supernet`, as it is: four subnets, averaged weights, and a look at all of them every 20."""
    from supernet import BASE, SPACES, file_of

    space = load_experiment(file_of(SPACES[0])).space
    num_warm, num_timed, num_profiled, size = (1, 1, 1, 8) if tiny else (10, 40, 5, 128)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    times: dict[int, float] = {}
    ends = num_warm, num_warm + num_timed, num_warm + num_timed + num_profiled

    def before(number: int) -> None:
        if number in ends:
            synchronise(device)
            times[number] = time.perf_counter()
            if device.type == "cuda" and number != ends[0]:
                profiler.start() if number == ends[1] else profiler.stop()

    data = Noise(space, size, num_batches=ends[2], before=before)
    config = SupernetConfig(epochs=1, **{**BASE, "batch_size": size})
    for _ in train_supernet(SharedWeights(space=space, config=config), data, device=device, seed=0):
        pass
    seconds = (times[ends[1]] - times[ends[0]]) / num_timed
    busy = _share(profiler, num_profiled * seconds) if device.type == "cuda" else None
    return {"batch": size, "ms": 1e3 * seconds, "gpu_busy": busy, "launch_us": _launch_us(device)}


class Noise:
    """A data set of one batch of noise, made on the device, which is trained on `num_batches` times an epoch.

    Args:
        shape: Has the images' `num_channels`, `image_size` and `num_classes`.
        before: Called with the number of each batch before it is given out, and with `num_batches` at the end.
    """

    def __init__(
        self, shape: Any, batch_size: int, *, num_batches: int = 1, before: Callable[[int], None] = lambda _: None
    ) -> None:
        self.shape, self.batch_size, self.num_batches, self.before = shape, batch_size, num_batches, before
        self.class_names = tuple(map(str, range(shape.num_classes)))
        self.preprocessing = Preprocessing(image_size=shape.image_size, mean=(0.0,), std=(1.0,))

    is_multi_label = is_taught = False

    def num_images(self, split: Split) -> int:
        return self.batch_size * self.num_batches if split == "train" else 1

    def labels(self, split: Split) -> Any:
        raise AssertionError(f"the labels of noise, {split}, are made with each batch")

    def train_batches(self, *, device: torch.device, **_: Any) -> Iterator[Batch]:
        sides = sides_of(self.shape.image_size)
        images = torch.randn(self.batch_size, self.shape.num_channels, *sides, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        targets = torch.randint(0, self.shape.num_classes, (self.batch_size,), device=device)
        for number in range(self.num_batches):
            self.before(number)
            yield images, targets
        self.before(self.num_batches)

    def eval_batches(self, *_: Any, **__: Any) -> Iterator[Batch]:
        """None, since accuracy is not asked for."""
        return iter(())

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        return images  # they were made so

    def close(self) -> None:
        """Nothing is read ahead."""

    def identity(self) -> Any:
        raise AssertionError("noise has no identity, and a step asks for none")

    def of_classes(self, classes: Collection[int]) -> Any:
        raise AssertionError(f"a step is of all classes, not of {classes}")


def memory_of(arch: ArchConfig, training: TrainingConfig, device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Bytes of an image in a training step; the largest batch below each limit, and whether the file's is."""
    few, many, step = (4, 8, 4) if tiny else (32, 96, 16)
    wanted = 512 if tiny else training.batch_size
    peaks = {size: peak_of_step(arch, training, size, device) for size in (few, many)}
    least, most = peaks[few], peaks[many]
    if least is None or most is None:
        raise RuntimeError(f"a batch of {many} does not fit")
    slope = (most - least) / (many - few)
    largest: dict[str, int] = {}
    fits_whole: dict[str, bool] = {}
    for name, limit in (TINY_LIMITS if tiny else LIMITS).items():
        if device.type == "cuda" and limit > torch.cuda.mem_get_info(device)[1]:
            continue

        def fits(size: int, limit: int = limit) -> bool:
            return peak_of_step(arch, training, size, device, limit=limit) is not None

        fits_whole[name] = fits(wanted)
        guess = min(few + int((limit - least) / slope), wanted)
        largest[name] = wanted if fits_whole[name] else largest_batch(fits, guess, step=step)
    return {
        "arch": arch.id, "bytes_per_image": slope, "peak_bytes": peaks,
        "precision": training.precision, "batch_of_the_file": wanted, "batch_of_the_file_fits": fits_whole,
        "largest_batch": largest,
    }  # fmt: skip


def largest_batch(fits: Callable[[int], bool], guess: int, *, step: int) -> int:
    """The largest multiple of `step` that fits, looked for from `guess` on; 0 where none does."""
    low, high = max(guess // step, 1), 0  # in steps: what fits, and what does not, as far as it is known
    while low and not fits(low * step):
        low, high = low * 9 // 10, low
    while not high or high - low > 1:
        middle = (low + high) // 2 if high else low + max(low // 10, 1)
        if fits(middle * step):
            low = middle
        else:
            high = middle
    return low * step


def peak_of_step(
    arch: ArchConfig, training: TrainingConfig, size: int, device: torch.device, *, limit: int | None = None
) -> int | None:
    """Bytes that a training of one step on `size` images takes at most; None where they are more than `limit`."""
    settings = dataclasses.replace(training.lasting(1), batch_size=size)
    with limited(device, limit) as peak:
        try:
            for _ in fit(arch, settings, Noise(arch, size), device=device, seed=0):
                pass
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return peak()


@contextlib.contextmanager
def limited(device: torch.device, limit: int | None) -> Iterator[Callable[[], int]]:
    """Allows this process so many bytes of the GPU, and tells the peak; of a CPU, of what the backward pass needs."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.init()  # or there are no statistics to reset
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        if limit is not None:
            torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info(device)[1], device)
        try:
            yield lambda: torch.cuda.max_memory_allocated(device)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        if limit is not None and kept > limit:
            raise torch.OutOfMemoryError(f"{kept} bytes are more than {limit}")
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: kept
