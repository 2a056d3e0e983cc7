"""One trial, as it runs on a worker: train, report each epoch, keep the weights of a full training."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from cvt_nas.arch import arch_from_dict
from cvt_nas.config import DataConfig, TrainingConfig
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import DivergedError, evaluate, fit
from cvt_nas.model import load_model, save_model
from cvt_nas.results import RunFolder, TrialResult
from cvt_nas.race.resources import Resources


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSetup:
    """What all the trials of a search share."""

    training: TrainingConfig
    data: DataConfig
    data_root: Path | None
    image_size: int
    num_channels: int
    num_classes: int
    run_path: Path
    device: str
    num_threads: int

    @property
    def torch_device(self) -> torch.device:
        """On the worker: Ray shows a trial only the GPUs that are its own."""
        return torch.device("cuda:0" if self.device == "cuda" else "cpu")

    def open_data(self) -> ImageData:
        return _open_data(self.data, self.data_root, self.image_size, self.num_channels, self.num_classes)


@lru_cache(maxsize=1)
def _open_data(
    config: DataConfig, root: Path | None, image_size: int, num_channels: int, num_classes: int
) -> ImageData:
    """A worker that is reused from trial to trial opens the data set once."""
    return load_data(config, root=root, image_size=image_size, num_channels=num_channels, num_classes=num_classes)


def run_trial(config: Mapping[str, Any], setup: TrialSetup) -> None:
    """Trains the architecture of `config` and reports each epoch to Tune.

    A report holds epoch, accuracy, curve, train_seconds and status: `running`, or how the trial ended
    where that was not by reaching the last epoch.
    """
    run, number = RunFolder(setup.run_path), config["number"]
    arch = arch_from_dict(config["arch"])
    report = {"epoch": 0, "accuracy": 0.0, "curve": [], "train_seconds": 0.0, "status": "running", "device": _device()}
    torch.set_num_threads(setup.num_threads)
    checkpoint = run.checkpoint_path(number)
    try:
        epochs = fit(
            arch,
            setup.training,
            setup.open_data(),
            device=setup.torch_device,
            seed=config["seed"],
            checkpoint=checkpoint,
        )
        for epoch in epochs:
            report |= {
                "epoch": epoch.number,
                "accuracy": epoch.accuracy,
                "curve": list(epoch.curve),
                "train_seconds": epoch.train_seconds,
            }
            if epoch.number == setup.training.epochs:
                save_model(epoch.model, run.model_path(arch.id))  # before the report that makes it complete
            tune.report(dict(report))
    except DivergedError as error:
        tune.report({**report, "epoch": error.epoch, "curve": list(error.curve), "status": "diverged",
                     "reason": str(error)})
    except torch.OutOfMemoryError as error:
        tune.report({**report, "status": "oom", "reason": str(error).splitlines()[0]})
    except Exception:
        log = run.error_path(number)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc())
        raise
    finally:
        if setup.device == "cuda":
            torch.cuda.empty_cache()


def read_test_split(
    members: Sequence[TrialResult], setup: TrialSetup, resources: Resources
) -> list[tuple[float, int]]:
    """Accuracy on the test split of each member's trained weights, and the number of its images.

    Each is measured on a worker with the resources of a trial, several side by side.
    """
    remote = ray.remote(_test_accuracy).options(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial)
    return ray.get([remote.remote(member.arch_id, setup) for member in members])


def _test_accuracy(arch_id: str, setup: TrialSetup) -> tuple[float, int]:
    torch.set_num_threads(setup.num_threads)
    device = setup.torch_device
    model = load_model(RunFolder(setup.run_path).model_path(arch_id)).to(device)
    data = setup.open_data()
    accuracy = evaluate(model, data, "test", training=setup.training, device=device)
    return accuracy, data.num_images("test")


def _device() -> str:
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return "cpu" if not gpus else f"gpu {', '.join(gpus)}"
