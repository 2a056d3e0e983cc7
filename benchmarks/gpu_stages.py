"""The stages of `gpu.py`, which runs each in a process of its own. Only `tests` and `search` need Ray.

What a stage finds is a line as soon as it is measured; what fails is a line that says so, and the next one is measured.
"""

import contextlib
import dataclasses
import datetime
import functools
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpu
from cohort import fit_cohort
from cvt_nas.arch import ArchConfig, cost_of, load_arch
from cvt_nas.config import DataConfig, TrainingConfig, load_experiment
from cvt_nas.data import DEBIAN_FASHION_MNIST, ImageData, load_data
from cvt_nas.engine import fit, prepare_device
from cvt_nas.engine.latency import measure_latency
from cvt_nas.errors import first_line
from cvt_nas.model import CvT
from cvt_nas.space import spread_over_flops
from gpu_steps import memory_of, projections, rates, supernet_step, synchronise, tiny_arch, ways
from shared import make_photographs, networks

TINY_TEST = "tests/test_ablations.py::test_a_grid_that_patches_cannot_have_is_refused"
SECONDS_TO_COMPILE = 75  # ours, and that of transformers; or our blocks
SECONDS_TO_END = 25  # of a search that is asked to stop: the front's test accuracies, the report, and Ray
SAMPLES_A_SECOND = 2  # of nvidia-smi


def main() -> None:
    told = json.loads(sys.argv[1])
    gc.freeze()  # what was imported, so that memory is collected soon
    gpu.end_with_parent()
    bench = Bench(
        setting=gpu.Setting(**told["setting"]), stage=told["stage"], skip=frozenset(told["skip"]),
        deadline=time.monotonic() + told["seconds"],
    )  # fmt: skip
    STAGES[bench.stage](bench)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A stage at work.

    Args:
        skip: The measurements that are not to be made.
        deadline: When it is ended, by `time.monotonic`.
    """

    setting: gpu.Setting
    stage: str
    skip: Collection[str] = ()
    deadline: float = float("inf")

    @property
    def is_tiny(self) -> bool:
        return self.setting.tiny

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:0" if self.setting.device == "cuda" else "cpu")

    @property
    def _at(self) -> Path:
        return Path(self.setting.out) / "now"

    def measure(self, name: str, function: Callable[[], dict[str, Any]]) -> None:
        """Adds the line of what `function` returns, or of why it failed; nothing where `name` is to be skipped."""
        if name in self.skip:
            return
        self.begin(name)
        try:
            found = function()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {first_line(error)}"}
        self.emit(name, **found)
        if self.device.type == "cuda":
            gc.collect()  # tensors that a traceback held
            torch.cuda.empty_cache()

    def begin(self, name: str) -> None:
        """Leaves word of what is measured now, for a line should the process not come to its end."""
        self._at.write_text(name)

    def emit(self, name: str, **found: Any) -> None:
        self.setting.append(self.stage, name, **found)
        self._at.unlink(missing_ok=True)


def tests(bench: Bench) -> None:
    """`pytest -m gpu`, a line a test, and one that counts them; those written last go first, which go through Ray."""
    import pytest

    reporter = Reporter(bench)
    # settings of plugins that are not there, and plugins that this process has imported already
    quiet = [f"-Wignore::pytest.{name}Warning" for name in ("PytestConfig", "PytestAssertRewrite")]
    # only files that have such tests: others may need what is not installed where the GPU is
    files = [str(path) for path in sorted((gpu.ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    chosen = [TINY_TEST] if bench.is_tiny else ["-m", "gpu", "--continue-on-collection-errors", *files]
    pytest.main(["-p", "no:cacheprovider", *quiet, "--rootdir", str(gpu.ROOT), *chosen], plugins=[reporter])
    (name,) = gpu.STAGES["tests"]
    last = {line["name"]: line for line in bench.setting.lines() if line["stage"] == "tests"}
    counted = [last.get(name, {"name": name, "error": "not run"}) for name in [*reporter.names, *reporter.broken]]
    failed = [line["name"] for line in counted if "error" in line]
    outcomes = [line.get("outcome") for line in counted]
    num_passed, num_skipped = outcomes.count("passed"), outcomes.count("skipped")
    found: dict[str, Any] = {"tests": len(counted), "passed": num_passed, "skipped": num_skipped}
    if failed or not counted:
        found["error"] = f"{num_passed} of {len(counted)} passed, not {', '.join(failed) or 'one was found'}"
    bench.emit(name, **found)


class Reporter:
    """Plugin of pytest: makes a line of each test's outcome, and leaves out the tests that have one."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.names, self.broken = bench, [], []
        self._outcome, self._why, self._started = "", "", 0.0

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.broken.append(report.nodeid)
            self.bench.emit(report.nodeid, outcome="failed", error=_error_of(report.longreprtext))

    def pytest_collection_finish(self, session: Any) -> None:
        self.names = [item.nodeid for item in session.items]
        session.items[:] = [item for item in reversed(session.items) if item.nodeid not in self.bench.skip]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.bench.begin(nodeid)
        self._outcome, self._why, self._started = "passed", "", time.perf_counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed or (report.skipped and self._outcome == "passed"):
            skipped = report.longrepr if isinstance(report.longrepr, tuple) else None  # path, line and reason
            why = skipped[2] if skipped else _error_of(report.longreprtext)
            self._outcome, self._why = report.outcome, self._why or why

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        found: dict[str, Any] = {"outcome": self._outcome, "seconds": round(time.perf_counter() - self._started, 2)}
        if self._outcome != "passed":
            found["error" if self._outcome == "failed" else "reason"] = self._why
        self.bench.emit(nodeid, **found)


def _error_of(text: str) -> str:
    """Of pytest's report: the first line that is marked as the error, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line[1:].strip() for line in lines if line.startswith("E ")), lines[-1] if lines else "")[:300]


def search(bench: Bench) -> None:
    """Whole searches by the command line, through Ray; one that was cut off goes on in its run folder."""
    wanted = [name for name in gpu.STAGES["search"] if name not in bench.skip]
    for number, name in enumerate(wanted):
        seconds = (bench.deadline - time.monotonic()) / (len(wanted) - number) - SECONDS_TO_END
        bench.measure(name, functools.partial(_search, bench, name, seconds))


def _search(bench: Bench, name: str, seconds: float) -> dict[str, Any]:
    slug, out = f"search-{name.split()[-1]}", Path(bench.setting.out)
    space, run = out / f"{slug}.yaml", out / slug
    tree = space_file(with_supernet=name == "with a supernet", tiny=bench.is_tiny)
    space.write_text(json.dumps(tree, indent=1))  # JSON is YAML
    has_gpu = bench.device.type == "cuda"
    resources = ["--gpus", "1", "--gpus-per-trial", "auto"] if has_gpu else ["--gpus", "0", "--cpus", "1"]
    if run.exists() and any(line["name"] == name for line in _results(bench)):
        run.rename(run.with_name(f"{slug}-before-{time.time_ns()}"))  # it is to be measured anew
    resume = ["--resume"] if (run / "manifest.json").exists() else []
    command = [
        sys.executable, "-m", "cvt_nas.cli", "search", "--space", str(space), "--out", str(run), "--json", *resources,
        *resume,
    ]  # fmt: skip
    started, began = time.perf_counter(), time.time()
    with gpu_utilisation(has_gpu) as samples:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            output, _ = process.communicate(timeout=max(seconds, 10))
        except subprocess.TimeoutExpired:
            process.terminate()  # it stops in order
            output, _ = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode not in (0, 130):
        if run.exists():
            run.rename(run.with_name(f"{slug}-failed-{time.time_ns()}"))  # the next one begins afresh
        raise RuntimeError(f"cvt-nas search ended with status {process.returncode}: {gpu.last_line(out / 'gpu.log')}")
    found = json.loads(output)
    if not found["front"]:
        raise RuntimeError(f"no trial was complete after {seconds:.0f} s")  # another one goes on with this run
    trials = (run / "trials.jsonl").read_text().splitlines()
    manifest = json.loads((run / "manifest.json").read_text())
    # what shares the GPU was measured before the run was there, by fewer processes and with breaks
    before = max(datetime.datetime.fromisoformat(manifest["created"]).timestamp() - began, 0.0)
    # from the first to the last moment that anything of the search ran
    busy = np.trim_zeros(np.array(samples[int(before * SAMPLES_A_SECOND) :])) / 100
    return {
        "dataset": tree["data"]["dataset"], "trials": found["trials"], "statuses": found["statuses"],
        "seconds": round(seconds, 1), "front": len(found["front"]), "hypervolume": found["hypervolume"],
        "best": max(member["accuracy"] for member in found["front"]), "resumed": bool(resume),
        "devices": sorted({json.loads(trial)["device"] for trial in trials}),
        "gpu_busy": float(busy.mean()) if len(busy) else None, "folder": run.name,
        "trials_per_gpu": manifest["sharing"]["trials_per_gpu"] if "sharing" in manifest else None,
    }  # fmt: skip


def _results(bench: Bench) -> list[dict[str, Any]]:
    return [line for line in bench.setting.lines() if line["stage"] == bench.stage and "error" not in line]


def space_file(*, with_supernet: bool, tiny: bool) -> dict[str, Any]:
    """A search of a minute on a GPU: on Fashion-MNIST where Debian's package is installed, else on digits."""
    import yaml

    has_fashion = DEBIAN_FASHION_MNIST.is_dir() and not tiny
    file = gpu.ROOT / "search_spaces" / ("fashion_mnist.yaml" if has_fashion else "digits.yaml")
    tree = yaml.safe_load(file.read_text())
    epochs, trials, candidates = (1, 2, 4) if tiny else (9, 24, 200)
    if has_fashion:
        tree["data"]["train_fraction"] = 0.1
    tree["training"] |= {"epochs": epochs, "warmup_epochs": 0}
    tree["search"] |= {"trials": trials, "grace_period": 1}
    if tiny:
        tree["search"]["scheduler"] = "none"
    if with_supernet:
        tree["supernet"] = {"epochs": epochs, "batch_size": 64, "lr": 5.0e-3, "ema_decay": 0.9, "sampling": "flops"}
        tree["training"]["epochs"] = max(epochs // 3, 1)
        tree["search"] |= {"weights": "supernet", "candidates": candidates, "trials": max(trials // 3, 2)}
    return tree


@contextlib.contextmanager
def gpu_utilisation(has_gpu: bool) -> Iterator[list[int]]:
    """What nvidia-smi tells, in percent of the time; filled at the end, and empty without it."""
    samples: list[int] = []
    command = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    command += ["-lms", f"{1000 // SAMPLES_A_SECOND}"]
    try:
        smi = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if has_gpu else None
    except FileNotFoundError:
        smi = None
    try:
        yield samples
    finally:
        if smi is not None:
            smi.terminate()
            samples += [int(line) for line in smi.communicate()[0].splitlines() if line.strip().isdigit()]


def throughput(bench: Bench) -> None:
    """Training steps and forward passes, ours against transformers' and against both compiled, interleaved."""
    prepare_device(bench.device)
    for name in gpu.STAGES["throughput"]:
        if (
            name.endswith(("compiled", "ways"))
            and bench.deadline - time.monotonic() < SECONDS_TO_COMPILE
            and not bench.is_tiny
        ):
            continue  # another run, or the end of this one, has more time for it
        function = functools.partial(ways if name.endswith("ways") else rates, name)
        function = {gpu.SUPERNET_STEP: supernet_step, gpu.PROJECTIONS: projections}.get(name, function)
        bench.measure(name, functools.partial(function, bench.device, tiny=bench.is_tiny))


def memory(bench: Bench) -> None:
    """How many images of a training step, as `fit` makes it, go into 8, 16 and 24 GiB; CUDA's own half a GiB beside."""
    name = "digits.yaml" if bench.is_tiny else "cvt13.yaml"
    experiment = load_experiment(gpu.ROOT / "search_spaces" / name)
    space = experiment.space
    rng = random.Random(0)
    drawn = [genome for _ in range(51) if (genome := space.sample_feasible(rng)) is not None]
    archs = [space.decode(genome) for genome in sorted(drawn, key=lambda genome: space.cost(genome).flops)]
    named = {"smallest": space.smallest, "median": archs[len(archs) // 2], "largest": archs[-1]}
    named["CvT-13"] = archs[0] if bench.is_tiny else load_arch("cvt-13")
    for name, arch in named.items():
        function = functools.partial(memory_of, arch, experiment.training, bench.device, tiny=bench.is_tiny)
        bench.measure(name, function)


def feed(bench: Bench) -> None:
    """Images a second of ImageNet's recipe from JPEGs to batches on the device, by the loader of folders of images."""
    from joblib import cpu_count

    cpus = cpu_count()
    workers = dict(zip(gpu.STAGES["feed"], (1, max(cpus // 4, 1), max(cpus // 2, 1), cpus), strict=True))
    num_files, num_links = (24, 1) if bench.is_tiny else (400, 10 + 2 * cpus)
    with tempfile.TemporaryDirectory() as folder:
        make_photographs(Path(folder), num_files, num_links=num_links)
        for name, number in workers.items():
            bench.measure(name, functools.partial(_feed, bench, Path(folder), number, cpus))


def _feed(bench: Bench, folder: Path, workers: int, cpus: int) -> dict[str, Any]:
    batch_size = 4 if bench.is_tiny else 64
    experiment = load_experiment(gpu.ROOT / "search_spaces" / "cvt13.yaml")
    data = load_data(
        dataclasses.replace(experiment.data, dataset="imagefolder", num_workers=workers, search_fraction=0.1),
        root=folder, image_size=32 if bench.is_tiny else 224, num_channels=3, num_classes=2,
    )  # fmt: skip
    batches = data.train_batches(
        batch_size=batch_size, augment=experiment.training.augment, device=bench.device, seed=0, epoch=0
    )
    for _ in range(1 if bench.is_tiny else 3 * workers):  # what workers have ready at first comes all at once
        next(batches)
    number, started = 0, time.perf_counter()
    for images, _ in batches:
        number += len(images)
        if time.perf_counter() - started > 4:
            break
    synchronise(bench.device)
    rate = number / (time.perf_counter() - started)
    return {"workers": workers, "cpus": cpus, "images_per_second": rate}


def latency(bench: Bench) -> None:
    """A forward pass in fp32 with TF32, by `measure_latency`."""
    prepare_device(bench.device)
    for name in gpu.STAGES["latency"]:
        network, size = name.rsplit(", batch ", 1)
        arch = tiny_arch() if bench.is_tiny else networks()[network][0]
        bench.measure(name, functools.partial(_latency, bench, arch, int(size)))


def _latency(bench: Bench, arch: ArchConfig, size: int) -> dict[str, Any]:
    seconds = 0.1 if bench.is_tiny else 1.5
    found = measure_latency(CvT(arch), device=bench.device, batch_size=size, max_seconds=seconds).to_json()
    return {name: value for name, value in found.items() if name != "device"}  # which each line has


def cohort(bench: Bench) -> None:
    """Whole epochs of the median network of CvT-Bench on digits: several seeds at once, and one by `fit`."""
    experiment = load_experiment(gpu.ROOT / "benchmarks" / "tables" / "cvt-bench.yaml")
    epochs = 2 if bench.is_tiny else 12
    training = dataclasses.replace(experiment.training, epochs=epochs, decay_fraction=0.5)
    space, share = experiment.space, 0.1 if bench.is_tiny else 1.0
    archs = [space.smallest] if bench.is_tiny else [space.decode(genome) for genome in spread_over_flops(space, 9)]
    arch = sorted(archs, key=lambda arch: cost_of(arch).flops)[len(archs) // 2]
    data = load_data(
        DataConfig(dataset="digits", train_fraction=share), root=None, image_size=arch.image_size,
        num_channels=arch.num_channels, num_classes=arch.num_classes,
    )  # fmt: skip
    for name in gpu.STAGES["cohort"]:
        number = int(name.split()[0]) if name[0].isdigit() else None
        bench.measure(name, functools.partial(_cohort, bench, arch, training, data, number))


def _cohort(
    bench: Bench, arch: ArchConfig, training: TrainingConfig, data: ImageData, number: int | None
) -> dict[str, Any]:
    if number is None:
        epochs: Iterator[object] = fit(arch, training, data, device=bench.device, seed=0)
    else:
        epochs = fit_cohort(arch, training, data, device=bench.device, seeds=range(number))
    next(epochs)  # libraries warm up
    started = time.perf_counter()
    num_epochs = sum(1 for _ in epochs)
    seconds = time.perf_counter() - started  # each epoch ends with its accuracy, for which the device is waited
    num_images = num_epochs * (number or 1) * data.num_images("train")
    return {"seeds": number or 1, "batch": training.batch_size, "images_per_second": num_images / seconds}


STAGES: dict[str, Callable[[Bench], None]] = {
    "tests": tests, "search": search, "throughput": throughput, "memory": memory, "feed": feed, "latency": latency,
    "cohort": cohort,
}  # fmt: skip


if __name__ == "__main__":
    main()
