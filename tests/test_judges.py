"""Candidates of a supernet that is not trained, ranked through Ray: their order, and which ones are proposed."""

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import pytest

from conftest import own_processes
from cvt_nas.engine import SharedWeights, TrainingSetup
from cvt_nas.engine.inheritance import save_supernet
from cvt_nas.engine.supernet import supernet_of
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.search import Search
from cvt_nas.pipeline.inherit import rank_candidates
from cvt_nas.results import Candidate
from cvt_nas.run import RunFolder
from test_inherit import with_supernet

NUM_CANDIDATES = 16  # of which the surrogate proposes the last six
EXPERIMENT = with_supernet(sampler="surrogate", candidates=NUM_CANDIDATES)
pytestmark = pytest.mark.usefixtures("two_cpus", "fast_disk")

Ranked = list[tuple[int, str, float]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert EXPERIMENT.supernet is not None
    path = tmp_path_factory.mktemp("supernet") / "weights.safetensors"
    save_supernet(supernet_of(SharedWeights(space=EXPERIMENT.space, config=EXPERIMENT.supernet)), path)
    return path


@pytest.fixture(scope="module")
def new_search(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Search]:
    """Makes a search whose supernet is trained, for a number of workers."""

    def made(num_workers: int) -> Search:
        manifest = EXPERIMENT.manifest(seed=0, num_trials=3)
        run = RunFolder.create(tmp_path_factory.mktemp("ranked") / "run", manifest)
        run.supernet.weights_path.parent.mkdir()
        run.supernet.weights_path.write_bytes(weights.read_bytes())
        setup = TrainingSetup.of(EXPERIMENT, run=run, data=None).checked()
        resources = Resources(num_slots=num_workers, cpus_per_trial=1, gpus_per_trial=0, device="cpu")
        return Search(
            experiment=EXPERIMENT, run=run, setup=setup, resources=resources, seed=0, num_trials=3,
            stop=threading.Event(),
        )  # fmt: skip

    return made


def candidates(search: Search) -> Generator[Candidate, None, None]:
    search.stop.clear()
    yield from (event for event in rank_candidates(search, EXPERIMENT.space) if isinstance(event, Candidate))


def recorded(search: Search) -> Ranked:
    return [(each.number, each.arch.id, each.accuracy) for each in search.run.candidates()]


@pytest.fixture(scope="module")
def by_one(new_search: Callable[[int], Search]) -> Ranked:
    list(candidates(search := new_search(1)))
    return recorded(search)


def test_a_ranking_that_stops_or_is_killed_goes_on_as_one_that_was_not(
    by_one: Ranked, new_search: Callable[[int], Search]
) -> None:
    search = new_search(1)
    for candidate in candidates(search):
        if candidate.number == 11:
            search.stop.set()
    assert len(recorded(search)) == 12  # it does not wait for the ones in hand
    with closing(candidates(search)) as killed:
        next(killed)
    list(candidates(search))
    assert recorded(search) == by_one
    assert [number for number, _, _ in by_one] == list(range(NUM_CANDIDATES))


def test_candidates_are_the_same_and_in_order_if_one_worker_falls_behind(new_search: Callable[[int], Search]) -> None:
    list(candidates(even := new_search(2)))
    uneven, suspended = new_search(2), list[int]()
    for _ in candidates(uneven):
        if not suspended:
            suspended += own_processes("_Judge")[:1]
            os.kill(suspended[0], signal.SIGSTOP)
            threading.Timer(2, os.kill, (suspended[0], signal.SIGCONT)).start()
    assert recorded(uneven) == recorded(even)
    assert [number for number, _, _ in recorded(uneven)] == list(range(NUM_CANDIDATES))
