"""Training of one architecture, in this process or on several devices."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cvt_nas.arch import ArchConfig
from cvt_nas.engine import TrainingReport, TrainingSetup, progress_reports
from cvt_nas.errors import CvtNasError
from cvt_nas.latency import Int8Runtime

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


def training_reports(
    arch: ArchConfig,
    setup: TrainingSetup,
    *,
    number: int,
    seed: int,
    num_devices: int,
    cpus_per_device: float,
    use_gpus: bool,
    keep_model: bool = True,
    judge_as: Int8Runtime | None = None,
    num_known: int = 0,
    may_move: bool = False,
    group: "PlacementGroup | None" = None,
) -> Generator[TrainingReport, None, None]:
    """Trains `arch` like `progress_reports`, on one device in this process, or on ranks that share each batch.

    With several ranks, it yields the reports of the first rank; see `reports_of_ranks`.
    """
    options = {
        "arch": arch, "setup": setup, "number": number, "seed": seed, "keep_model": keep_model, "judge_as": judge_as,
        "num_known": num_known,
    }  # fmt: skip
    if num_devices == 1:
        return progress_reports(device=setup.torch_device, **options)
    from cvt_nas.launch.ranks import reports_of_ranks  # imports Ray, which one device does not need

    return reports_of_ranks(
        progress_reports, num_ranks=num_devices, cpus_per_rank=cpus_per_device, use_gpus=use_gpus, may_move=may_move,
        group=group, **options,
    )  # fmt: skip


class WorkersFailedError(Exception):
    """Workers died repeatedly, or raised an error that users cannot fix. Its cause is Ray's error."""


class WorkerLostError(WorkersFailedError):
    """A worker died, and the training can continue elsewhere."""


@contextmanager
def ending_in(kind: type[CvtNasError], what: str) -> Iterator[None]:
    """Turns a failure of workers in the block into an error of `kind`, with `what` and the reason."""
    try:
        yield
    except WorkersFailedError as error:
        raise kind(f"{what}: {error}") from error.__cause__
