"""What only a GPU can show, measured where one is there for some minutes: the most important first.

Each stage of `gpu_stages.py` is a process of its own, which is ended with all that it started at its share of the time
that is left. Each measurement is a line of `OUT/gpu.jsonl` as soon as it is there. A run goes on with what has no line
yet for its card, in that file or in `benchmarks/gpu.jsonl`, where lines are kept; then it tries what failed again.

    python benchmarks/gpu.py --seconds 540
    python benchmarks/gpu.py --stages search feed --again
    python benchmarks/gpu.py --device cpu --tiny --out /tmp/tiny
    python benchmarks/gpu.py --table
"""

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
KEPT, README, STAGES_FILE = HERE / "gpu.jsonl", HERE / "README.md", HERE / "gpu_stages.py"
BEGIN, END = "<!-- gpu.py: begin -->", "<!-- gpu.py: end -->"
MARK = "CVT_NAS_GPU_STAGE"  # in the environment of all that a stage starts
START = "start"  # what a stage has failed at that came to no measurement
NETWORKS = ("CvT-13 at 224", "small, 28 px, stem stride 4", "small, 32 px, stem stride 2")  # as in shared.py
KINDS = ("training", "forward")
SUPERNET_STEP = "supernet step of tables"
PROJECTIONS = "depth-wise projections of CvT-13, bf16"


def _throughputs() -> Iterable[str]:
    large, *small = NETWORKS
    yield from (f"{large}, {precision}, {kind}" for precision in ("bf16", "fp32") for kind in KINDS)
    yield from (
        f"{name}, {precision}, ways" for precision, name in (("bf16", large), *(("fp32", one) for one in small))
    )
    yield SUPERNET_STEP
    yield PROJECTIONS
    yield from (f"{name}, {of}, {kind}" for of in ("fp32", "bf16") for name in small for kind in KINDS)
    yield from (f"{large}, bf16, {kind}, compiled" for kind in KINDS)  # each takes a minute to compile
    yield from (f"{name}, fp32, {kind}, compiled" for name in small for kind in KINDS)


STAGES: dict[str, tuple[str, ...]] = {  # their measurements; the most important first
    "tests": ("pytest -m gpu",),
    "search": ("from scratch", "with a supernet"),
    "throughput": tuple(_throughputs()),
    "memory": ("smallest", "median", "largest", "CvT-13"),
    "feed": ("1 worker", "a quarter of the CPUs", "half of the CPUs", "every CPU"),
    "latency": tuple(f"{name}, batch {size}" for name in NETWORKS for size in (1, 64)),
    "cohort": ("one training, by fit", "3 seeds", "10 seeds"),
}
SHARES = {  # of the time; a process may take 15 s to begin
    "tests": 200, "search": 240, "throughput": 200, "memory": 90, "feed": 60, "latency": 40, "cohort": 40,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540, help="in all; 540 if absent")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="all of them if absent")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu", help="folder; results/gpu if absent")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="that everything runs, and nothing more")
    parser.add_argument("--again", action="store_true", help="measure anew what has a line")
    parser.add_argument("--table", action="store_true", help="write the lines into benchmarks/README.md, and end")
    options = parser.parse_args(arguments)
    if options.table:
        write_table(README, [KEPT, options.out / "gpu.jsonl"])
        return

    card, version = "CPU", metadata.version("torch")
    if options.device == "cuda":  # asked by another process, since this one would keep a part of the GPU's memory
        ask = "import torch; print(torch.cuda.get_device_name(0)); print(torch.__version__)"
        found = subprocess.run([sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True, check=False)
        if found.returncode != 0:
            parser.error("torch finds no CUDA device here; --device cpu --tiny shows that all runs")
        card, version = found.stdout.splitlines()[-2:]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    setting = Setting(
        out=str(options.out.absolute()), device=options.device, card=card, torch=version, tiny=options.tiny, run=now
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stage ends, too
    run_stages(setting, options.stages, seconds=options.seconds - time.monotonic() + started, again=options.again)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Where and how a run measures; each of its lines says so.

    Args:
        out: Folder of `gpu.jsonl`, `gpu.log` and the searches' run folders.
        card: The GPU's name.
        torch: Its version.
        run: When it began, which tells it from others.
    """

    out: str
    device: str
    card: str
    torch: str
    tiny: bool
    run: str

    def append(self, stage: str, name: str, **result: Any) -> dict[str, Any]:
        """Adds a line to `gpu.jsonl`; it is on disk when this returns."""
        own = {name: value for name, value in dataclasses.asdict(self).items() if name != "out"}
        assert not own.keys() & result.keys(), "a result would be lost"
        line = {"stage": stage, "name": name, **result, **own}
        with (Path(self.out) / "gpu.jsonl").open("a+b") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                file.write(b"\n")  # a line was torn
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return line

    def lines(self, *, again: bool = False) -> list[dict[str, Any]]:
        """Those of this card; of this run alone where `again`."""
        own = {"device": self.device, "card": self.card, "tiny": self.tiny, **({"run": self.run} if again else {})}
        found = read_lines([KEPT, Path(self.out) / "gpu.jsonl"])
        return [line for line in found if all(line.get(key) == value for key, value in own.items())]


def read_lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of all files that are there; without those that were torn."""
    lines = []
    for path in paths:
        for text in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return lines


def run_stages(setting: Setting, stages: Iterable[str], *, seconds: float, again: bool = False) -> None:
    """First the measurements without a line, stage by stage; then once more those that failed or were not come to."""
    deadline = time.monotonic() + seconds
    Path(setting.out).mkdir(parents=True, exist_ok=True)

    def open_ones(*, retry: bool) -> list[str]:
        return [
            stage
            for stage in stages
            if not set(STAGES[stage]) <= settled(setting, stage, again=again, retry=retry)
            and not (retry and START in settled(setting, stage, again=True, retry=True))
        ]

    for retry in (False, True):
        to_do = open_ones(retry=retry)
        while to_do and (left := deadline - time.monotonic()) > 1:
            stage, *rest = to_do
            bound = left * SHARES[stage] / sum(SHARES[other] for other in to_do)
            to_do = rest
            skip = settled(setting, stage, again=again, retry=retry)
            num_known = len(setting.lines())
            run_stage(setting, stage, skip, seconds=bound)
            for line in setting.lines()[num_known:]:
                print(f"{stage}: {line['name']}: {text_of(line)}", flush=True)


def settled(setting: Setting, stage: str, *, again: bool, retry: bool) -> set[str]:
    """The measurements that are not to be made now: with a line, or where `retry`, with a result or an error of this
    run."""
    last = {line["name"]: line for line in setting.lines(again=again) if line["stage"] == stage}
    return {name for name, line in last.items() if not retry or "error" not in line or line["run"] == setting.run}


def run_stage(setting: Setting, stage: str, skip: Iterable[str], *, seconds: float) -> None:
    """Runs a stage in a process of its own, for `seconds` at most; what stops it becomes the line of what it was at."""
    out, mark = Path(setting.out), uuid.uuid4().hex
    at, log = out / "now", out / "gpu.log"
    at.unlink(missing_ok=True)
    told = {"setting": dataclasses.asdict(setting), "stage": stage, "skip": sorted(skip), "seconds": seconds}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # for Ray's workers, too
    env = {**os.environ, MARK: mark, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    why = ""
    with log.open("ab") as output:
        output.write(f"--- {stage}, at most {seconds:.0f} s\n".encode())
        output.flush()
        process = subprocess.Popen(
            [sys.executable, str(STAGES_FILE), json.dumps(told)],
            cwd=ROOT, env=env, process_group=0,
            stdin=subprocess.PIPE,  # at whose end the stage ends itself, should this process be killed
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            status = process.wait(timeout=seconds)
            why = "" if status == 0 else f"ended with status {status}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            why = f"ended at its bound of {seconds:.0f} s"
        finally:
            end(process, mark)
    if why:
        setting.append(stage, at.read_text() if at.exists() else START, error=why)
    at.unlink(missing_ok=True)


def end(process: subprocess.Popen[bytes], mark: str, *, grace: float = 5.0) -> None:
    """Ends a stage and all that it has started, in its process group or not, as the mark in their environment tells.

    Args:
        grace: Seconds to end by themselves, before they are killed.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + grace
        while (process.poll() is None or marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
    if process.stdin is not None:
        process.stdin.close()


def end_with_parent() -> None:
    """From now on, this stage and its process group end when the process that started it does, even if it is killed."""

    def wait(stdin: int) -> None:
        while os.read(stdin, 1):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, args=(os.dup(0),), daemon=True).start()


def marked(mark: str) -> list[int]:
    """The processes with this mark; none where the system has no `/proc`."""
    found, wanted = [], f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it is another user's, or has ended meanwhile
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def last_line(log: Path) -> str:
    """That is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]


def write_table(readme: Path, sources: Iterable[Path]) -> None:
    """Puts the table of all lines between its two markers in `readme`."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{table(read_lines(sources))}\n{END}{after}", encoding="utf-8")


def table(lines: Iterable[dict[str, Any]]) -> str:
    """A row a measurement, and a column a card: Markdown. Lines of a CPU, and of tiny settings, are left out.

    Of several lines the last counts that is no error, if there is one.
    """
    columns: dict[str, dict[tuple[str, str], str]] = {}
    for line in sorted(lines, key=lambda line: "error" not in line):
        if line["device"] == "cuda" and not line["tiny"]:
            cells = columns.setdefault(f"{line['card']}, torch {line['torch']}", {})
            cells[line["stage"], line["name"]] = text_of(line).replace("|", "\\|")
    columns = columns or {"figure": {}}
    rows = [
        [f"{stage}: {name}", *(cells.get((stage, name), "not measured") for cells in columns.values())]
        for stage, names in STAGES.items()
        for name in names
    ]
    return "\n".join(
        f"| {' | '.join(row)} |"
        for row in itertools.chain([["measurement", *columns], ["---"] * (1 + len(columns))], rows)
    )


def text_of(line: dict[str, Any]) -> str:
    """A measurement in words."""
    if "error" in line:
        return f"failed: {line['error']}"
    return TEXTS[line["stage"]](line)


def _tests_text(line: dict[str, Any]) -> str:
    if "outcome" in line:
        return line["outcome"]
    return f"{line['passed']} of {line['tests']} passed" + (f", {line['skipped']} skipped" if line["skipped"] else "")


def _search_text(line: dict[str, Any]) -> str:
    statuses = ", ".join(f"{number} {status}" for status, number in line["statuses"].items())
    shared = line.get("trials_per_gpu")  # lines of an earlier version have none
    return (
        f"{line['dataset']}: {line['trials']} trials ({statuses}) in {line['seconds']:.0f} s, "
        f"front of {line['front']}, best {line['best']:.3f}, hypervolume {line['hypervolume']:.3f}"
        f"{'' if shared is None else f', {shared} trials at a time'}{_busy(line['gpu_busy'])}"
    )


def _throughput_text(line: dict[str, Any]) -> str:
    if "fastest" in line:
        rates = line["images_per_second"]
        ratios = (f"{way} {rate:,.0f} ({rate / rates['off']:.2f} times)" for way, rate in rates.items() if way != "off")
        return f"training by fit, batch {line['batch']}: off {rates['off']:,.0f} images/s, {', '.join(ratios)}"
    if "speed_at_once" in line:
        speeds = ", ".join(f"{speed:.2f} times at {shape}" for shape, speed in line["speed_at_once"].items())
        return f"keys and values by one convolution, against one each: {speeds}; batch {line['batch']}"
    if "ms" in line:
        return f"{line['ms']:.1f} ms, batch {line['batch']}{_busy(line['gpu_busy'])}"
    text = f"{line['images_per_second']['ours']:,.0f} images/s, batch {line['batch']}{_busy(line['gpu_busy']['ours'])}"
    for name, (low, middle, high) in line["over_ours"].items():
        text += f"; {name} {middle:.2f} times as fast ({low:.2f} to {high:.2f}){_busy(line['gpu_busy'][name])}"
    return text + "".join(f"; {name} failed: {why}" for name, why in line["failed"].items())


def _memory_text(line: dict[str, Any]) -> str:
    text = f"{line['bytes_per_image'] / 2**20:.1f} MiB an image; largest batch "
    text += ", ".join(f"{most:,} in {limit}" for limit, most in line["largest_batch"].items())
    fit = [limit for limit, fits in line["batch_of_the_file_fits"].items() if fits]
    return text + f"; {line['batch_of_the_file']:,} fit in {' and '.join(fit) if fit else 'none of these'}"


def _feed_text(line: dict[str, Any]) -> str:
    return f"{line['images_per_second']:,.0f} images/s by {line['workers']} of {line['cpus']} CPUs"


def _latency_text(line: dict[str, Any]) -> str:
    return f"{line['median_ms']:.2f} ms ({line['p10_ms']:.2f} to {line['p90_ms']:.2f})"


def _cohort_text(line: dict[str, Any]) -> str:
    return f"{line['images_per_second']:,.0f} images/s, trained and evaluated, batch {line['batch']} each"


def _busy(share: float | None) -> str:
    return "" if share is None else f", GPU busy {share:.0%}"


TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "tests": _tests_text, "search": _search_text, "throughput": _throughput_text, "memory": _memory_text,
    "feed": _feed_text, "latency": _latency_text, "cohort": _cohort_text,
}  # fmt: skip


if __name__ == "__main__":
    main()
