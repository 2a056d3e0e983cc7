"""One training on two workers, against one on one."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from cvt_nas import load_model
from cvt_nas.config import AugmentConfig, Experiment
from cvt_nas.data import ImageData
from cvt_nas.engine import TrainingSetup, evaluate, progress_reports
from cvt_nas.launch.cluster import local_ray
from cvt_nas.launch.devices import training_reports
from cvt_nas.run import RunFolder
from test_engine import tiny_arch

ON_TWO: dict[str, Any] = {"seed": 0, "num_devices": 2, "cpus_per_device": 1, "use_gpus": False}


@pytest.mark.slow
def test_two_workers_train_as_one_with_the_whole_batch(small: Experiment, tmp_path: Path) -> None:
    # without augmentation, which each worker draws for itself, and without batch norm, whose statistics are of a
    # worker's share of the batch
    # and by SGD: where gradients are about 0, Adam makes a step of the sign of what is left by rounding
    plain = dataclasses.replace(small.training, augment=AugmentConfig(), optimizer="sgd", lr=0.05)
    setup = TrainingSetup(
        training=plain,
        data=small.data,
        data_root=None,
        image_size=8,
        num_channels=1,
        num_classes=10,
        run=RunFolder(tmp_path / "two"),
    )
    arch = tiny_arch("linear")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    by_itself = dataclasses.replace(setup, run=RunFolder(tmp_path / "one"))
    alone = list(progress_reports(arch, by_itself, number=0, device=torch.device("cpu"), seed=0))
    with local_ray(num_cpus=2, num_gpus=0):
        together = list(training_reports(arch, setup, number=0, **ON_TWO))
    assert [report["accuracy"] for report in together] == pytest.approx(
        [report["accuracy"] for report in alone], abs=0.006
    )
    one, two = (load_model(each.run.model_path(arch.id)) for each in (by_itself, setup))
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_what_two_workers_keep_is_what_they_evaluated(small: Experiment, tmp_path: Path) -> None:
    setup = TrainingSetup.of(small, run=RunFolder(tmp_path), data=None)
    arch = tiny_arch()
    with local_ray(num_cpus=2, num_gpus=0):
        *_, last = training_reports(arch, setup, number=0, **ON_TWO)
    model = load_model(setup.run.model_path(arch.id))
    found = evaluate(model, setup.open_data(), "search", training=small.training, device=torch.device("cpu"))
    assert found == pytest.approx(last["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_memory_that_runs_out_on_one_worker_ends_all_and_leaves_room_for_another_try(
    small: Experiment, tmp_path: Path
) -> None:
    class Full(TrainingSetup):
        """For the second worker alone."""

        def open_data(self) -> ImageData:
            if torch.distributed.get_rank() == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().open_data()

    class FullInMidEpoch(TrainingSetup):
        """For the second worker alone, once, where all go through their images."""

        def open_data(self) -> ImageData:
            data, marker = super().open_data(), self.run.path / "was-full"
            batches = data.train_batches

            def until_it_is_full(**options):  # no types: what travels to the worker does not know their names
                for number, batch in enumerate(batches(**options)):
                    if number == 3 and torch.distributed.get_rank() == 1 and not marker.exists():
                        marker.touch()
                        raise torch.OutOfMemoryError("CUDA out of memory")
                    yield batch

            data = copy.copy(data)
            data.train_batches = until_it_is_full
            return data

    setup = Full.of(small, run=RunFolder(tmp_path), data=None)
    with local_ray(num_cpus=2, num_gpus=0):
        (report,) = training_reports(tiny_arch(), setup, number=0, **ON_TWO)
        assert (report["status"], report["reason"]) == ("oom", "CUDA out of memory")
        again = TrainingSetup.of(small, run=RunFolder(tmp_path), data=None)
        reports = list(training_reports(tiny_arch(), again, number=0, **ON_TWO))
        fuller = FullInMidEpoch.of(small, run=RunFolder(tmp_path), data=None)
        halved = list(training_reports(tiny_arch(), fuller, number=1, **ON_TWO))
    share = small.training.batch_size // 2
    for found, at_once in ((reports, share), (halved, share // 2)):
        assert [report["status"] for report in found] == ["running"] * small.training.epochs
        assert {report["micro_batch"] for report in found} == {at_once}
    assert "device memory ran out" in halved[-1]["reason"]
