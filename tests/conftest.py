"""What several test files share: one small real search, one Ray, and paths that no user's data lies in."""

import contextlib
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

import forked_workers
from cvt_nas.config import Experiment, load_experiment, parse_experiment
from cvt_nas.run import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SPACES = Path(__file__).parent.parent / "search_spaces"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before a test imports MLflow
os.environ["RAY_AUTH_MODE"] = "disabled"  # or a token of the user's, where there is one, would switch it on
os.environ.update(RAY_worker_niceness="0")  # by default 15, at which the tests beside them would starve them
os.environ.update(RAY_worker_register_timeout_seconds="300")  # by default 60; on a busy machine, the first to be forked

# No test is about how long an example takes, and a machine that does other work takes longer.
settings.register_profile("cvt-nas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cvt-nas")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data sets go to a folder of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch  # here, as pytest-xdist waits for its own process, which runs no test, to read this file

    torch.set_num_threads(1)  # the networks are small: more threads only wait for each other


def small_digits(**replaced: str) -> str:
    """The demo's space file, cut down to seconds; `replaced` maps a line's start to the new line."""
    lines = {
        "  epochs:": "  epochs: 3",
        "  warmup_epochs:": "  warmup_epochs: 1",
        "search:": "search: {trials: 8, sampler: random, grace_period: 1, reduction_factor: 2, seed: 0}",
        **replaced,
    }
    text = (SPACES / "digits.yaml").read_text().splitlines()
    return "\n".join(next((new for start, new in lines.items() if line.startswith(start)), line) for line in text)


class Watch:
    """Follows a search, and calls `react` with each event."""

    def __init__(self, react: Callable[[Any], None]) -> None:
        self._react = react

    def __call__(self, *about: Any) -> "Watch":
        return self

    def __enter__(self) -> Callable[[Any], None]:
        return self._react

    def __exit__(self, *exc_info: object) -> None: ...


def own_processes(name: str) -> list[int]:
    """Those that this one started, directly or not, with `name` in their command line."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            pid = int(path.name)
            parents[pid] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if name in (path / "cmdline").read_text():
                found.append(pid)

    def is_own(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_own(parents[pid]))

    return [pid for pid in found if is_own(pid) and pid != os.getpid()]


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna waits for the disk several times a trial, and tests of what is proposed need not."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="session")
def digits() -> Experiment:
    return load_experiment(SPACES / "digits.yaml")


@pytest.fixture(scope="session")
def small() -> Experiment:
    return parse_experiment(small_digits(), "small.yaml")


@pytest.fixture(scope="session")
def made_up(digits: Experiment, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A made-up run of 60 trials, with its report written."""
    from cvt_nas.report import write_report
    from pages import made_up_run

    run = made_up_run(tmp_path_factory.mktemp("made-up") / "run", digits, 60)
    write_report(run)
    return run


@pytest.fixture
def complaints() -> list[str]:
    """What a page of `page` complains of, and what it asks for."""
    return []


@pytest.fixture
def page(browser: "Browser", complaints: list[str]) -> Iterator["Page"]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: complaints.append(request.url) if "://" in request.url
              and not request.url.startswith(("file:", "blob:", "data:")) else None)  # fmt: skip
    yield opened
    context.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process makes the finished run, while another begins with what does not wait for it."""
    needing = list(dict.fromkeys(item.path for item in items if "finished_run" in getattr(item, "fixturenames", ())))
    items.sort(key=lambda item: (item.path not in needing[:1], item.path in needing[1:]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """The workers of each Ray that this process starts, and what loads exports again, are forked."""
    gc.freeze()  # what is imported by now stays, and need not be looked at again and again
    stack = contextlib.ExitStack()
    session.config.add_cleanup(stack.close)
    stack.enter_context(forked_workers.forking_server())
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setattr("ray._private.ray_constants.SETUP_WORKER_FILENAME", forked_workers.__file__)
    patch.setattr("cvt_nas.export.exporting.subprocess", SimpleNamespace(run=forked_workers.run_forked))


_SHARES_RAY = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def two_cpus() -> None:
    """A Ray with two CPUs and no GPU for tests in a row, whose searches use what they find."""


@pytest.hookimpl(tryfirst=True)  # before any fixture, as some start another Ray
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Starts Ray before a test that asks for `two_cpus`, itself or by a fixture; ends it before one that does not.

    To start and end a Ray takes about six seconds of CPU time, so tests that follow one another share it.
    """
    import ray

    from cvt_nas.launch.cluster import start_local_ray

    stash, asks = item.config.stash, "two_cpus" in getattr(item, "fixturenames", ())
    if asks and not ray.is_initialized():
        start_local_ray(num_cpus=2, num_gpus=0)
    if not asks and stash.get(_SHARES_RAY, False):
        ray.shutdown()
    stash[_SHARES_RAY] = asks


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def finished_run(small: Experiment, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A real search of eight trials, through Ray, with its report written.

    It is made once for all processes of pytest-xdist; each has a copy, which its tests may lock.
    """
    from cvt_nas import search
    from cvt_nas.report import write_report

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished-run"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            run = search(small, out=shared.with_name("unfinished-run"), cpus=1, gpus=0)
            write_report(run)
            run.path.rename(shared)
    return RunFolder(shutil.copytree(shared, tmp_path_factory.mktemp("finished") / "run"))
