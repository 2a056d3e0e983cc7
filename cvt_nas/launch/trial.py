"""One trial on a worker: it trains, reports each epoch, and keeps the weights of a full training."""

import contextlib
import json
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import TypedDict

import ray
import torch
from ray import tune

from cvt_nas.arch import arch_from_dict, cost_of
from cvt_nas.engine import TrainingSetup, fvcore_cost
from cvt_nas.engine.quantised import judged_in_int8
from cvt_nas.engine.shown import judge_with_mistakes
from cvt_nas.latency import Int8Runtime
from cvt_nas.launch.devices import WorkerLostError, WorkersFailedError, training_reports
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.tasks import as_they_end, on_devices
from cvt_nas.model import load_model
from cvt_nas.results import Int8, TrialResult
from cvt_nas.run.folder import CLASSES_FILE

WAITING_CPUS = 0.01  # CPUs of a trial's own process while its ranks do the work


class TrialConfig(TypedDict):
    """Settings of a trial, which Tune hands to its worker.

    Args:
        arch: The architecture as JSON. Tune writes the settings of all trials repeatedly, and a string is short.
        num_known: Epochs that the trial has finished.
        costs: Costs of the architecture, in the order of the objectives.
    """

    number: int
    arch: str
    seed: int
    num_known: int
    costs: tuple[float, ...]
    gpus: float


def run_trial(
    config: TrialConfig,
    setup: TrainingSetup,
    resources: Resources,
    keep_model: bool = True,
    judge_as: Int8Runtime | None = None,
) -> None:
    """Trains the architecture of `config`, here or on several ranks, and passes each report to Tune."""
    number, num_devices = config["number"], max(int(config["gpus"]), 1)
    device = _device() if num_devices == 1 else f"{num_devices} gpus"
    try:
        with contextlib.closing(  # ranks end at once if Tune ends the trial
            training_reports(
                arch_from_dict(json.loads(config["arch"])),
                setup,
                number=number,
                seed=config["seed"],
                num_devices=num_devices,
                cpus_per_device=cpus_of_rank(resources, num_devices),
                use_gpus=True,
                keep_model=keep_model,
                judge_as=judge_as,
                num_known=config["num_known"],
                may_move=num_devices > resources.num_workers,
                group=ray.util.get_current_placement_group(),
            )
        ) as reports:
            for report in reports:
                tune.report({**report, "device": device})
    except WorkerLostError:
        raise  # not the trial's fault, so there is no log, and the searcher tries it again
    except Exception as error:
        log = setup.run.error_path(number)
        log.parent.mkdir(parents=True, exist_ok=True)
        known = error.__cause__ if isinstance(error, WorkersFailedError) else error
        setup.run.store.write(log, "".join(traceback.format_exception(known)))
        raise


def cpus_of_rank(resources: Resources, num_ranks: int) -> float:
    """CPUs of each rank of a trial. The trial's own process, which waits for them, takes a small part."""
    return resources.cpus_per_worker - WAITING_CPUS / num_ranks


def read_test_split(
    members: Sequence[TrialResult], setup: TrainingSetup, resources: Resources
) -> list[tuple[float, int]]:
    """Measures the test accuracy of each member's trained weights, and the number of test images.

    Workers measure side by side, each on one device.
    """
    return on_devices(resources, _test_accuracy, [(member.arch_id, setup) for member in members])


def _test_accuracy(arch_id: str, setup: TrainingSetup) -> tuple[float, int]:
    torch.set_num_threads(setup.num_threads)
    device = setup.torch_device
    model = load_model(setup.run.fetched_model(arch_id)).to(device)
    assert fvcore_cost(model) == cost_of(model.arch), f"closed form and fvcore disagree on {arch_id}"
    data = setup.open_data()
    num_images = data.num_images("test")
    judged = judge_with_mistakes(model, data, training=setup.training, device=device)
    setup.run.store.write(setup.run.model_path(arch_id) / CLASSES_FILE, json.dumps(judged.classes) + "\n")
    if setup.data.show_images:
        setup.run.store.write(setup.run.mistakes_path(arch_id), json.dumps(judged.mistakes) + "\n")
    return judged.value, num_images


def judge_kept(
    arch_ids: Sequence[str], runtime: Int8Runtime, setup: TrainingSetup, resources: Resources, *, stop: threading.Event
) -> Iterator[tuple[str, Int8]]:
    """Judges networks that the run keeps in int8. Yields each as soon as it is judged, until `stop` is set.

    Workers judge side by side.
    """
    calls = [(arch_id, runtime, setup) for arch_id in arch_ids]
    for index, found in as_they_end(resources, _judge_kept, calls, stop=stop):
        yield arch_ids[index], found


def _judge_kept(arch_id: str, runtime: Int8Runtime, setup: TrainingSetup) -> Int8:
    torch.set_num_threads(setup.num_threads)
    data = setup.open_data()
    with contextlib.closing(data):
        return judged_in_int8(
            load_model(setup.run.fetched_model(arch_id)), runtime, data, setup.training, is_timed=True
        )


def _device() -> str:
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return "cpu" if not gpus else f"gpu {', '.join(gpus)}"
