"""A real search, broken on purpose again and again, and at its end compared with one that nothing happened to.

Each round is a search on digits with one worker. At random moments a supervisor does one of these: kills the driver,
the worker, or Ray under them; asks the driver to end, as SLURM does; stops the worker without a word; fills the disk;
tears the last line of the record or of the journal; damages a checkpoint. Where the search ends by that, it is resumed.
For `node`, the round is on a cluster of three nodes, one of which is killed and replaced.

Since a search with one worker and the same seed is the same, whatever differs at the end was lost, done twice, or
wrong. A full disk is a tmpfs of a few MiB, which takes root; without it that kind is left out, and said to be.

    python benchmarks/fault_drill.py --faults 100 --seed 0
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

KINDS = ("driver", "worker", "ray", "sigterm", "hang", "full disk", "torn record", "torn journal", "damaged", "node")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
DISK_MIB = 64
WORKER = "ray::ImplicitFunc"  # of a trial
TIMEOUT = 180.0  # of a search that does nothing any more
SPACE = """
format: 1
name: drill
space:
  image_size: 8
  num_channels: 1
  num_classes: 10
  stages:
    - {patch: {kernel: 3, stride: 1, padding: 1}, embed_dim: [8, 16, 32], depth: [1, 2], num_heads: 1,
       mlp_ratio: [1.0, 2.0], kernel_size: 3, kv_stride: [1, 2]}
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: [32, 48, 64], depth: [1, 2, 3], num_heads: [1, 2],
       mlp_ratio: [1.0, 2.0], kernel_size: 3, kv_stride: [1, 2]}
objectives: {accuracy: maximize, params: minimize, flops: minimize}
data: {dataset: digits, search_fraction: 0.25}
training: {epochs: 4, batch_size: 16, lr: 3.0e-3, augment: {crop_padding: 1}}
"""
RACE = "search: {{trials: {}, sampler: surrogate, grace_period: 1, reduction_factor: 2, seed: 0, trial_timeout: 12}}\n"
# with two workers, only what does not depend on who is first can be compared
ON_NODES = "search: {trials: 12, sampler: random, scheduler: none, seed: 0, max_failures: 9}\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One that was made.

    Args:
        is_over: Whether the search ended by it, and was resumed.
        seconds_to_work: Until the next epoch was trained, and its checkpoint on disk; None where none was left to do.
    """

    kind: str
    is_over: bool
    seconds_to_work: float | None


@dataclass(kw_only=True, slots=True)
class Outcome:
    """How a round compares with what nothing happened to.

    Args:
        lost, twice, wrong: Trials.
        epochs_again: Epochs that were trained in full more than once.
    """

    lost: int
    twice: int
    wrong: int
    epochs_again: int
    faults: list[Fault] = field(default_factory=list)


class Search:
    """A search as a process of its own, started again after each end that was not its own.

    Args:
        out: The run folder.
        more: Arguments of `cvt-nas search`.
    """

    def __init__(self, space: Path, out: Path, *more: str) -> None:
        self.out, self._arguments = out, ["--space", str(space), "--out", str(out), *more]
        self.num_epochs, self._seen, self._process, self._log = 0, {}, None, out.parent / f"{out.name}.log"
        self._is_over = threading.Event()
        self._watch = threading.Thread(target=self._count_epochs, daemon=True)
        self._watch.start()

    def start(self) -> None:
        resume = ["--resume"] if (self.out / "manifest.json").exists() else []
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cvt_nas.cli", "search", *self._arguments, *resume],
                stdout=log, stderr=log, start_new_session=True, env=ENVIRONMENT,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait(self, seconds: float = TIMEOUT) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def close(self) -> None:
        self._is_over.set()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait_for_epoch(self, after: int, seconds: float = TIMEOUT) -> bool:
        """Until one more is trained than `after`; False where the search ended before."""
        deadline = time.monotonic() + seconds
        while self.num_epochs <= after:
            if self.status is not None:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"no epoch within {seconds:g} s: {self.log[-2000:]}")
            time.sleep(0.02)
        return True

    def _count_epochs(self) -> None:
        """By the checkpoints: one is written after each epoch."""
        while not self._is_over.wait(0.01):
            with contextlib.suppress(OSError):
                for path in (self.out / "checkpoints").glob("[0-9]*.pt"):
                    if path.stem.isdigit() and self._seen.get(path.stem) != (mark := path.stat().st_mtime_ns):
                        self._seen[path.stem] = mark
                        self.num_epochs += 1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--json", type=Path, help="also write each fault and each round to this file")
    options = parser.parse_args(arguments)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="drill") as folder:
        for outcome in drill(Path(folder), kinds=options.kinds, num_faults=options.faults, seed=options.seed):
            outcomes.append(outcome)
            num_done = sum(len(each.faults) for each in outcomes)
            print(
                f"{num_done}/{options.faults} faults: lost {outcome.lost}, twice {outcome.twice}, wrong "
                f"{outcome.wrong}, epochs again {outcome.epochs_again}",
                flush=True,
            )
    if options.json is not None:
        trees = [{**vars_of(outcome), "faults": [vars_of(fault) for fault in outcome.faults]} for outcome in outcomes]
        options.json.write_text(json.dumps(trees, indent=1))
    faults = pd.DataFrame([vars_of(fault) for outcome in outcomes for fault in outcome.faults])
    seconds = faults.groupby("kind")["seconds_to_work"]
    table = pd.DataFrame(
        {"faults": faults.groupby("kind").size(), "median s": seconds.median(), "max s": seconds.max()}
    )
    print(table.round(1).to_string())
    totals = Counter[str]()
    for outcome in outcomes:
        totals.update({name: getattr(outcome, name) for name in ("lost", "twice", "wrong", "epochs_again")})
    print(f"rounds {len(outcomes)}, faults {len(faults)}, " + ", ".join(f"{k} {v}" for k, v in totals.items()))


def vars_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def drill(folder: Path, *, kinds: Sequence[str], num_faults: int, seed: int, num_trials: int = 16) -> Iterator[Outcome]:
    """Rounds, until `num_faults` faults were made, each kind as often as any other."""
    rng, left = random.Random(seed), num_faults
    (folder / "race.yaml").write_text(SPACE + RACE.format(num_trials))
    (folder / "nodes.yaml").write_text(SPACE + ON_NODES)
    on_one = [kind for kind in kinds if kind != "node"]
    if "full disk" in on_one and os.geteuid() != 0:
        on_one.remove("full disk")
        print("full disk: left out, since it takes root to mount a small one", flush=True)
    due, number = Counter[str](), 0
    reference = _reference(folder / "race.yaml", folder / "reference") if on_one else []
    while left > 0 and on_one:
        if "node" in kinds and due["node"] < min(due[kind] for kind in on_one):
            outcome = node_round(folder / "nodes.yaml", folder / f"nodes-{number}", rng, limit=left)
        else:
            outcome = one_round(
                folder / "race.yaml", folder / f"round-{number}", reference, rng, kinds=on_one, due=due, limit=left
            )
        due.update(fault.kind for fault in outcome.faults)
        left, number = left - len(outcome.faults), number + 1
        yield outcome
    if not on_one:
        yield node_round(folder / "nodes.yaml", folder / "nodes", rng, limit=left)


def _reference(space: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    search = Search(space, out, *(more or ("--cpus", "1")))
    search.start()
    status = search.wait(600)
    search.close()
    assert status == 0, search.log
    return record_of(out)


def record_of(out: Path) -> list[dict[str, Any]]:
    """Every line of the record, in its order, less what no two runs have in common."""
    names = ("number", "arch_id", "status", "epochs", "accuracy", "curve", "seed")
    lines = (out / "trials.jsonl").read_text().splitlines()
    return [{name: tree[name] for name in names} for tree in map(json.loads, lines)]


def one_round(
    space: Path, out: Path, reference: list[dict[str, Any]], rng: random.Random, *,
    kinds: Sequence[str], due: Counter[str], limit: int,
) -> Outcome:  # fmt: skip
    """A search with one worker, and a fault every few epochs until it is done."""
    made, faults = Counter(due), list[Fault]()
    with _small_disk(out.parent / f"{out.name}-disk") as disk:
        search = Search(space, out if disk is None else disk / "run", "--cpus", "1")
        try:
            search.start()
            while len(faults) < limit:
                if not search.wait_for_epoch(search.num_epochs + rng.randrange(4)):
                    break
                time.sleep(rng.random())  # anywhere in an epoch
                kind = min(rng.sample(list(kinds), len(kinds)), key=lambda kind: made[kind])
                if search.status is not None:
                    break
                faults.append(_break(search, kind, rng, disk))
                made[kind] += 1
            status = search.wait(600)
            assert status == 0, f"{faults}\n{search.log[-5000:]}"
        finally:
            search.close()
        return _compare(search, reference, faults, is_ordered=True)


def _break(search: Search, kind: str, rng: random.Random, disk: Path | None) -> Fault:
    """Makes a fault, waits until the search has ended by it if it does, resumes it, and waits until it works again."""
    at, started, workers = search.num_epochs, time.monotonic(), _below(search.pid, WORKER)
    if kind == "worker":
        _signal(search.pid, WORKER, signal.SIGKILL)
    elif kind == "hang":
        _signal(search.pid, WORKER, signal.SIGSTOP)
    elif kind == "ray":
        _signal(search.pid, "raylet/raylet", signal.SIGKILL)
        search.wait()
    elif kind == "sigterm":
        os.kill(search.pid, signal.SIGTERM)
        search.wait()
    elif kind == "full disk":
        assert disk is not None
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(2**16))
        search.wait()
        (disk / "filler").unlink()
    else:
        os.kill(search.pid, signal.SIGKILL)
        search.wait()
        if kind == "damaged":
            _damage(rng, [path for path in (search.out / "checkpoints").glob("*.pt") if path.stem.isdigit()])
        elif kind != "driver":
            name = "trials.jsonl" if kind == "torn record" else "study.journal"
            if (path := search.out / name).exists():
                with path.open("a") as file:
                    file.write('{"number": 3, "arch_')
    is_over = search.status is not None
    if is_over:
        started = time.monotonic()
        search.start()
        while any(map(_is_alive, workers)):  # one that outlives its driver by an epoch
            time.sleep(0.02)
        at = search.num_epochs
    works = search.wait_for_epoch(at)
    return Fault(kind=kind, is_over=is_over, seconds_to_work=time.monotonic() - started if works else None)


def _damage(rng: random.Random, checkpoints: list[Path]) -> None:
    """One byte in the middle of the newest."""
    if checkpoints:
        path = max(checkpoints, key=lambda path: path.stat().st_mtime_ns)
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content) // 4, len(content) // 2)] ^= 0xFF
        path.write_bytes(content)


def node_round(space: Path, out: Path, rng: random.Random, *, limit: int) -> Outcome:
    """A search on a head and two nodes with a worker each, of which one after the other is killed and replaced."""
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    # keeps the cluster's nodes on loopback, and the search that joins them
    ray_constants.ENABLE_RAY_CLUSTER = False
    ENVIRONMENT[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    cluster, faults = Cluster(initialize_head=True, head_node_args={"num_cpus": 0}), list[Fault]()
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    reference = _reference(space, out.with_name(f"{out.name}-reference"), "--address", str(cluster.address))
    search = Search(space, out, "--address", str(cluster.address))
    try:
        search.start()
        while len(faults) < limit and search.wait_for_epoch(search.num_epochs + 4 + rng.randrange(8)):
            at, started = search.num_epochs, time.monotonic()
            cluster.remove_node(nodes.pop(rng.randrange(2)), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1))
            # two more: one of the node that stayed, and that could be all
            works = search.wait_for_epoch(at + 2)
            faults.append(
                Fault(kind="node", is_over=False, seconds_to_work=time.monotonic() - started if works else None)
            )
        status = search.wait(600)
        assert status == 0, f"{faults}\n{search.log[-5000:]}"
    finally:
        search.close()
        cluster.shutdown()
    return _compare(search, reference, faults, is_ordered=False)


def _compare(search: Search, reference: list[dict[str, Any]], faults: list[Fault], *, is_ordered: bool) -> Outcome:
    record = record_of(search.out)
    numbers = Counter(tree["number"] for tree in record)
    expected = {tree["number"]: tree for tree in reference}
    wrong = sum(tree != expected.get(tree["number"]) for tree in record)
    if is_ordered and not wrong and len(record) == len(reference):
        wrong += sum(ours != theirs for ours, theirs in zip(record, reference, strict=True))
    return Outcome(
        lost=len(expected.keys() - numbers.keys()),
        twice=sum(count - 1 for count in numbers.values()),
        wrong=wrong,
        epochs_again=max(search.num_epochs - sum(tree["epochs"] for tree in reference), 0),
        faults=faults,
    )


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[Path | None]:
    """A file system of its own, which can be filled; None without the right to mount one."""
    if os.geteuid() != 0:
        yield None
        return
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "drill", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _signal(driver: int, name: str, number: int) -> None:
    for pid in _below(driver, name):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.kill(pid, number)


def _below(driver: int, name: str) -> list[int]:
    """Every process below `driver` that has `name` in its command line."""
    found = []
    for pid in _descendants(driver):
        with contextlib.suppress(OSError):
            if name in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _descendants(of: int) -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])

    def is_below(pid: int) -> bool:
        return pid in parents and (parents[pid] == of or is_below(parents[pid]))

    return [pid for pid in parents if is_below(pid)]


if __name__ == "__main__":
    main()
