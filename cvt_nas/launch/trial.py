"""One trial, as it runs on a worker: train, report each epoch, keep the weights of a full training."""

import contextlib
import json
import traceback
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray import tune

from cvt_nas.arch import arch_from_dict, cost_of
from cvt_nas.engine import TrainingSetup, evaluate, fvcore_cost, progress_reports
from cvt_nas.launch.ranks import WorkerLostError, fit_on_workers, get_from_workers
from cvt_nas.launch.resources import Resources
from cvt_nas.model import load_model
from cvt_nas.results import TrialResult

WAITING_CPUS = 0.01


def run_trial(config: Mapping[str, Any], setup: TrainingSetup, resources: Resources, keep_model: bool = True) -> None:
    """Trains the architecture of `config`, here or on workers of its own, and passes each report on to Tune.

    Args:
        keep_model: Whether the trained weights go to the run folder, as the architecture's.
    """
    run, number = setup.run, config["number"]
    arch = arch_from_dict(json.loads(config["arch"]))
    num_workers = max(int(config["gpus"]), 1)
    device = _device() if num_workers == 1 else f"{num_workers} gpus"

    def reports() -> Generator[dict[str, Any], None, None]:
        if num_workers == 1:
            return progress_reports(
                arch,
                setup,
                device=setup.torch_device,
                seed=config["seed"],
                number=number,
                keep_model=keep_model,
                num_known=config["num_known"],
            )
        return fit_on_workers(
            arch,
            setup,
            number=number,
            seed=config["seed"],
            num_workers=num_workers,
            cpus_per_worker=resources.cpus_per_worker - WAITING_CPUS / num_workers,
            use_gpus=True,
            keep_model=keep_model,
            num_known=config["num_known"],
            may_move=num_workers > resources.num_workers,
        )

    try:
        with contextlib.closing(reports()) as of_trial:  # workers end at once where Tune ends the trial
            for report in of_trial:
                tune.report({**report, "device": device})
    except WorkerLostError:
        raise  # which is no fault of the trial, so it has no log: the searcher tries it again
    except Exception:
        log = run.error_path(number)
        log.parent.mkdir(parents=True, exist_ok=True)
        run.store.write(log, traceback.format_exc())
        raise


def read_test_split(
    members: Sequence[TrialResult], setup: TrainingSetup, resources: Resources
) -> list[tuple[float, int]]:
    """Accuracy on the test split of each member's trained weights, and the number of its images.

    Measured on workers, several side by side, each with one device.
    """
    num_gpus = min(resources.gpus_per_trial, 1)
    remote = ray.remote(_test_accuracy).options(num_cpus=min(resources.cpus_per_trial, 1), num_gpus=num_gpus)
    return get_from_workers([remote.remote(member.arch_id, setup) for member in members])


def _test_accuracy(arch_id: str, setup: TrainingSetup) -> tuple[float, int]:
    torch.set_num_threads(setup.num_threads)
    device = setup.torch_device
    model = load_model(setup.run.fetched_model(arch_id)).to(device)
    assert fvcore_cost(model) == cost_of(model.arch), f"closed form and fvcore disagree on {arch_id}"
    data = setup.open_data()
    accuracy = evaluate(model, data, "test", training=setup.training, device=device)
    return accuracy, data.num_images("test")


def _device() -> str:
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return "cpu" if not gpus else f"gpu {', '.join(gpus)}"
