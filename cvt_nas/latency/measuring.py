"""Times functions and ONNX networks in turns, and makes a table of latencies from the times.

`cvt-nas measure` copies this file as `measure.py` into a folder for another machine. So this file needs nothing but
Python, numpy and the runtime. It imports nothing from this package.

In each round, all functions take turns in a new random order. If each were timed for a while on its own, the load of
the machine could change from one to the next, and their times would not be comparable. A low quantile over the rounds
estimates the time on a machine that does nothing else.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_QUANTILE = 0.1
_MIN_ROUNDS, _MAX_ROUNDS = 6, 40
_TURN_SECONDS, _MIN_PASSES, _MAX_PASSES = 2e-3, 3, 20  # per turn; the median call counts
_MOST_WAITING = 3  # limit of wall time, as a multiple of `max_seconds`
_MEMORY_PASSES = 5
PART_SECONDS, WHOLE_SECONDS = 0.1, 0.5  # budget per part, and per whole network
UNKNOWN_PROCESSOR = "unknown processor"  # how `processor_name` begins if only the architecture is known


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """Times of functions that took turns.

    Args:
        seconds: Median call of each function in each round, `(rounds, functions)`.
    """

    seconds: np.ndarray

    @property
    def low(self) -> np.ndarray:
        """Tenth percentile over the rounds, `(functions,)`."""
        return np.quantile(self.seconds, _QUANTILE, axis=0)

    @property
    def noise(self) -> np.ndarray:
        """Relative difference between `low` of the even rounds and `low` of the odd rounds, `(functions,)`."""
        even, odd = (np.quantile(self.seconds[first::2], _QUANTILE, axis=0) for first in (0, 1))
        return np.abs(even / odd - 1)

    @property
    def drift(self) -> float:
        """Relative slowdown from the first third of the rounds to the last third, as the median over functions."""
        third = len(self.seconds) // 3
        first, last = (np.median(rounds, axis=0) for rounds in (self.seconds[:third], self.seconds[-third:]))
        return float(np.median(last / first)) - 1


def time_in_turns(
    functions: Sequence[Callable[[], object]], *, clock: str = "perf_counter", max_seconds: float, seed: int = 0
) -> Turns:
    """Times each function once per round, for at least 6 and at most 40 rounds.

    Each turn starts with a call that is not timed, since the caches still hold the data of another function.

    Args:
        functions: The work of each must be done when it returns, also on a GPU.
        clock: Name of a function of module `time`. `thread_time` and `process_time` count CPU time, so the load of
            other processes does not count; see `clock_of`.
        max_seconds: No round begins after this time on `clock`, or after three times as much wall time. The first 6
            rounds always run.
        seed: Seed of the order in each round.
    """
    now: Callable[[], float] = getattr(time, clock)
    rng = np.random.default_rng(seed)

    def seconds_of(function: Callable[[], object], num_passes: int) -> float:
        function()
        times = [now()]
        for _ in range(num_passes):
            function()
            times.append(now())
        return float(np.median(np.diff(times)))

    ends, last_end = now() + max_seconds, time.perf_counter() + _MOST_WAITING * max_seconds
    first = [seconds_of(function, 1) for function in functions]
    passes = [int(np.clip(_TURN_SECONDS / max(took, 1e-9), _MIN_PASSES, _MAX_PASSES)) for took in first]
    rounds = list[np.ndarray]()
    while len(rounds) < _MIN_ROUNDS or (len(rounds) < _MAX_ROUNDS and now() < ends and time.perf_counter() < last_end):
        took = np.empty(len(functions))
        for index in rng.permutation(len(functions)):
            took[index] = seconds_of(functions[index], passes[index])
        rounds.append(took)
    return Turns(seconds=np.stack(rounds))


def clock_of(*, device: str, threads: int, runtime: str = "torch") -> str:
    """The best clock to time a runtime with.

    A single CPU thread is timed by its CPU time. It is the thread of the caller, except in OpenVINO, where it may be
    another one. Several threads wait for each other, and a GPU is waited for, so they are timed by the wall clock.
    """
    if device != "cpu" or threads != 1:
        return "perf_counter"
    return "process_time" if runtime.startswith("openvino") else "thread_time"


def table_of(turns: Turns, plan: Mapping[str, Any], *, device: str) -> dict[str, Any]:
    """The plain values of a `LatencyTable`.

    The sum of the times of parts is greater than the time of their network: in a network, the start and the end of a
    part overlap with other parts, and a runtime fuses operations across the border of two parts. A line fitted to the
    first whole networks corrects the sums. If some network would take no time by it, or a larger sum less time, a line
    through zero takes its place. The other networks measure how good the correction is.

    Args:
        turns: Times of the parts, then of the whole networks, in the order of `plan`.
        plan: Settings as in `plan.json`: the `keys` of the parts, the `networks` with their `counts` of each part in
            the same order, the number of networks to fit (`num_fitted`), the `deployment`, and the id of the `space`.
        device: Name of the processor, and what ran on it.
    """
    keys, num_fitted = plan["keys"], plan["num_fitted"]
    low_us = 1e6 * turns.low
    parts_us, wholes_us = low_us[: len(keys)], low_us[len(keys) :]
    counts = np.array([network["counts"] for network in plan["networks"]], dtype=float)
    sums_us = counts @ parts_us
    scale, constant = np.polyfit(sums_us[:num_fitted], wholes_us[:num_fitted], 1)
    if scale <= 0 or (scale * sums_us + constant).min() <= 0:  # such as where networks differ by noise alone
        scale, constant = float(wholes_us[:num_fitted].mean() / sums_us[:num_fitted].mean()), 0.0
    off = (scale * sums_us + constant)[num_fitted:] / wholes_us[num_fitted:] - 1
    return {
        "parts": {key: round(scale * us) for key, us in zip(keys, parts_us.tolist(), strict=True)},
        "constant_us": round(constant),
        "device": device,
        "error": float(np.median(np.abs(off))),
        "judged": {
            "number": len(off),
            "within_5": float((np.abs(off) <= 0.05).mean()),
            "within_10": float((np.abs(off) <= 0.1).mean()),
            "bias": float(off.mean()),
            "spearman": _spearman(sums_us[num_fitted:], wholes_us[num_fitted:]),
            "noise": float(np.median(turns.noise[len(keys) + num_fitted :])),
            "drift": turns.drift,
        },
        "deployment": plan["deployment"],
        "space": plan["space"],
    }


def _spearman(told: np.ndarray, measured: np.ndarray) -> float:
    ranks = _ranks(told), _ranks(measured)
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(rank) > 0 for rank in ranks) else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1. Equal values share the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def measure_kit(folder: Path, *, max_seconds: float | None = None) -> dict[str, Any]:
    """Measures the parts and networks of a folder on this machine, and returns their table. `plan.json` in the folder
    describes them."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    deployment, files = plan["deployment"], [*plan["files"], *(network["file"] for network in plan["networks"])]
    seconds = PART_SECONDS * len(plan["files"]) + WHOLE_SECONDS * len(plan["networks"])
    runs = [run_of(folder / file, deployment) for file in files]
    turns = time_in_turns(
        runs, clock=clock_of_deployment(deployment), max_seconds=max_seconds or seconds, seed=plan["seed"]
    )
    return table_of(turns, plan, device=described(deployment))


def clock_of_deployment(deployment: Mapping[str, Any]) -> str:
    return clock_of(device=deployment["device"], threads=deployment["threads"], runtime=deployment["runtime"])


def described(deployment: Mapping[str, Any]) -> str:
    """Text with the processor of this machine, and the runtime, version, precision and threads of a deployment."""
    threads = f", threads: {deployment['threads']}" if deployment["device"] == "cpu" else ", CUDA"
    return f"{processor_name()}, {version_of(deployment)}, {deployment['precision']}{threads}"


def version_of(deployment: Mapping[str, Any]) -> str:
    """The runtime of a deployment, with its installed version."""
    version = str(_module_of(deployment["runtime"]).__version__).partition("-")[0]  # OpenVINO adds its build
    return f"{deployment['runtime']} {version}"


def _module_of(runtime: str) -> Any:
    if runtime.startswith("openvino"):
        import openvino  # pyright: ignore[reportMissingImports]

        return openvino
    import onnxruntime  # pyright: ignore[reportMissingImports]

    return onnxruntime


def run_of(file: Path, deployment: Mapping[str, Any]) -> Callable[[], object]:
    """A function that runs a file of a network once on a batch of noise, in the runtime of a deployment."""
    make = _run_in_openvino if deployment["runtime"].startswith("openvino") else _run_in_onnxruntime
    return make(file, deployment)


def _run_in_onnxruntime(file: Path, deployment: Mapping[str, Any]) -> Callable[[], object]:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = deployment["threads"], 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning would count as CPU time
    options.log_severity_level = 3
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[deployment["device"]]
    settings: dict[str, str] = {}
    if deployment["runtime"] == "tensorrt":
        provider, settings = "TensorrtExecutionProvider", {"trt_fp16_enable": str(deployment["precision"] == "fp16")}
    session = onnxruntime.InferenceSession(str(file), options, providers=[provider], provider_options=[settings])
    if provider not in session.get_providers():  # onnxruntime drops a provider that it cannot load
        raise RuntimeError(f"this onnxruntime cannot use {provider}: pip install onnxruntime-gpu")
    given, kind = session.get_inputs()[0], deployment["device"]
    binding = session.io_binding()  # without it, each run would copy from the CPU and back
    binding.bind_ortvalue_input(
        given.name, onnxruntime.OrtValue.ortvalue_from_numpy(_noise(given.shape, deployment), kind)
    )
    binding.bind_output(session.get_outputs()[0].name, kind)
    return lambda: session.run_with_iobinding(binding)


def _run_in_openvino(file: Path, deployment: Mapping[str, Any]) -> Callable[[], object]:
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {
        "INFERENCE_NUM_THREADS": deployment["threads"],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bf16 on newer CPUs
        # pinning moves the caller to one core and back in each call: 3 to 4 us, where the median part takes 32
        "ENABLE_CPU_PINNING": False,
    }
    model = _openvino_core().read_model(str(file))
    shape = [
        side.get_length() if side.is_static else deployment["batch"] for side in model.input(0).get_partial_shape()
    ]
    model.reshape(shape)  # with a free batch, small networks take three to eight times as long, and vary by a half
    request = _openvino_core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(_noise(shape, deployment)))
    return request.infer


@cache
def _openvino_core() -> Any:
    """One for all files, since each one loads the plugin for CPUs again."""
    return _module_of("openvino").Core()


def _noise(shape: Sequence[Any], deployment: Mapping[str, Any]) -> np.ndarray:
    """Random values of a shape. A side without a number is the batch."""
    sides = [side if isinstance(side, int) else deployment["batch"] for side in shape]
    return np.random.default_rng(0).standard_normal(sides, dtype=np.float32)


def processor_name() -> str:
    """Product name of the CPU.

    Linux has none for ARM. There, the name consists of the model of the machine, as far as it is known, and the number
    of cores of each kind. If only the architecture is known, the name begins with `UNKNOWN_PROCESSOR`.
    """
    lines = [line.partition(":") for line in _text_of("/proc/cpuinfo").splitlines()]

    def values(name: str) -> list[str]:
        return [value.strip() for key, _, value in lines if key.strip() == name]

    if cores := Counter(zip(values("CPU implementer"), values("CPU part"), strict=False)):
        model = (values("Model") or [_text_of("/proc/device-tree/model").strip("\0\n ")])[0]
        return ", ".join([model or "ARM", *(f"{number} x {' '.join(kind)}" for kind, number in cores.items())])
    if names := values("model name"):
        return names[0]
    name = _mac_processor() if platform.system() == "Darwin" else platform.processor()
    return name if " " in name else f"{UNKNOWN_PROCESSOR} ({platform.machine()})"  # one word is an architecture


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError:
        return ""


def _mac_processor() -> str:
    words = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def memory_growth(load: Callable[[], Callable[[], object]]) -> float | None:
    """Peak growth of this process in MB, from before `load` to the passes of the function that it returns.

    None if the system does not report it. Only Linux does. A short peak while loading does not count.
    """
    before = _resident_mb("VmRSS")
    run = load()
    run()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    except OSError:
        return None
    for _ in range(_MEMORY_PASSES):
        run()
    peak = _resident_mb("VmHWM")
    return None if before is None or peak is None else max(peak - before, 0.0)


def _resident_mb(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(f"{name}:")]
    return kilobytes[0] * 1024 / 1e6 if kilobytes else None


def measured_memory(file: Path, deployment: Mapping[str, Any]) -> float | None:
    """`memory_growth` of a file of a network, measured in a new process, since memory that other networks left behind
    would hide it. None also if that process fails."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", str(file), "--deployment", json.dumps(deployment)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": str(deployment["threads"])},
    )  # fmt: skip
    return None if done.returncode else json.loads(done.stdout)


def _print_memory(file: Path, deployment: Mapping[str, Any]) -> None:
    _module_of(deployment["runtime"])
    print(json.dumps(memory_growth(lambda: run_of(file, deployment))))


def _why_not_writable(file: Path) -> str | None:
    if file.is_dir():
        return "it is a folder"
    if not file.parent.is_dir():
        return f"there is no folder {file.parent}"
    return None if os.access(file if file.exists() else file.parent, os.W_OK) else "permission denied"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the networks of this folder on this machine.")
    parser.add_argument("--to", type=Path, metavar="TABLE", help="file to write the table of latencies to")
    parser.add_argument("--seconds", type=float, help="limit of the measurement; as many as the plan needs if absent")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deployment", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory is not None:
        return _print_memory(options.memory, options.deployment)
    if options.to is None:
        parser.error("--to TABLE is missing")
    if why := _why_not_writable(options.to):
        parser.error(f"--to {options.to}: cannot be written: {why}")
    folder = Path(__file__).resolve().parent
    try:
        table = measure_kit(folder, max_seconds=options.seconds)
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is missing: pip install numpy {error.name}")
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    options.to.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    judged = table["judged"]
    print(
        f"{table['device']}: {len(table['parts'])} parts; of {judged['number']} networks that had no part in the table "
        f"{judged['within_5']:.0%} are within 5 %, {judged['within_10']:.0%} within 10 %"
    )
    print(f"{options.to}: give it to cvt-nas search --latency-table")
    return None


if __name__ == "__main__":
    main()
