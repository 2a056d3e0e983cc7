"""What a search may use: counted on a real Ray with logical GPUs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from conftest import Watch, small_digits
from cvt_nas import search
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.errors import ResourceError
from cvt_nas.launch.cluster import start_local_ray
from cvt_nas.launch.judges import supernet_workers
from cvt_nas.launch.resources import claim_resources

EPOCH = {"  epochs:": "  epochs: 1", "  warmup_epochs:": "  warmup_epochs: 0"}


@pytest.fixture(scope="class")
def logical_gpus() -> Iterator[None]:
    """Eight GPUs that exist only in Ray's books."""
    start_local_ray(num_cpus=8, num_gpus=8)
    yield
    ray.shutdown()


def test_more_than_there_is_is_refused_before_anything_starts(small: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"--cpus 4096: this machine has \d+"):
        search(small, out=tmp_path / "run", cpus=4096)
    with pytest.raises(ResourceError, match=r"--gpus 64: this machine has \d+"):
        search(small, out=tmp_path / "run", gpus=64)
    assert not (tmp_path / "run").exists()
    assert not ray.is_initialized()


@pytest.mark.usefixtures("logical_gpus")
class TestWithLogicalGpus:
    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"gpus": 9}, "--gpus 9: the cluster has 8"),
            (
                {"gpus": 8, "gpus_per_trial": 1.5},
                "--gpus-per-trial: got 1.5, must be a fraction below 1 or a whole number",
            ),
            ({"gpus": 2, "gpus_per_trial": 4}, "--gpus-per-trial 4: more than the 2 of --gpus"),
            ({"gpus_per_trial": 16}, "--gpus-per-trial 16: no node has more than 8"),
            ({"gpus": 0, "gpus_per_trial": 1}, "--gpus-per-trial: got 1 with --gpus 0; drop one of the two"),
            ({"gpus": 0, "gpus_per_trial": "auto"}, "--gpus-per-trial: got auto with --gpus 0; drop one of the two"),
            ({"cpus": 9}, "--cpus 9: the cluster has 8"),
        ],
    )
    def test_what_a_cluster_cannot_give_is_refused(self, asked: dict[str, Any], message: str) -> None:
        with pytest.raises(ResourceError, match=message), claim_resources(**asked):
            pass

    @pytest.mark.parametrize("gpus_per_trial", [0.3, 0.35, 0.4, 0.5, 0.7, 1, 2, 3, 5, 8])
    def test_a_supernet_is_trained_by_one_worker_a_gpu_however_trials_share_them(self, gpus_per_trial: float) -> None:
        with claim_resources(gpus_per_trial=gpus_per_trial) as resources:
            assert supernet_workers(resources, batch_size=128) == (8, 1)
        with claim_resources(gpus=6, cpus=3, gpus_per_trial=min(gpus_per_trial, 6)) as resources:
            assert supernet_workers(resources, batch_size=128) == (6, 0.5)

    def test_slots_follow_from_gpus_and_share_the_cpus(self) -> None:
        def slots(**asked: Any) -> tuple[int, float, int]:
            with claim_resources(**asked) as resources:
                return resources.num_slots, resources.cpus_per_trial, resources.num_workers

        assert slots() == (8, 1, 1)
        assert slots(gpus=4) == slots(gpus=4, gpus_per_trial="auto") == (4, 1, 1)
        assert slots(gpus=8, gpus_per_trial=0.25) == (32, 0.25, 1)
        assert slots(gpus=8, gpus_per_trial=0.3) == (24, 1 / 3, 1)
        assert slots(gpus=8, gpus_per_trial=2) == (4, 2, 2)
        assert slots(gpus=0, cpus=3) == (3, 1, 1)

    @pytest.mark.slow
    def test_eight_gpus_run_eight_trials_side_by_side_each_on_its_own(self, tmp_path: Path) -> None:
        experiment = parse_experiment(
            small_digits(**EPOCH, **{"search:": "search: {trials: 8, sampler: random, scheduler: none}"}), "eight.yaml"
        )
        started: list[str] = []
        watch = Watch(lambda event: started.append(type(event).__name__))
        run = search(experiment, out=tmp_path / "run", gpus=8, device="cpu", progress=watch)
        assert sorted(result.device for result in run.results()) == [f"gpu {index}" for index in range(8)]
        assert started[:8] == ["TrialStarted"] * 8

    @pytest.mark.slow
    def test_a_trial_with_two_gpus_trains_on_two_workers(self, tmp_path: Path) -> None:
        experiment = parse_experiment(
            small_digits(**{"search:": "search: {trials: 1, sampler: random, scheduler: none}"}), "two.yaml"
        )
        run = search(experiment, out=tmp_path / "run", gpus=4, gpus_per_trial=2, device="cpu")
        assert [(result.status, result.device) for result in run.results()] == [("complete", "2 gpus")]
        assert all(len(result.curve) == 3 for result in run.results())
