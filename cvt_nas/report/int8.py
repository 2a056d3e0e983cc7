"""What networks are worth in fp32 and int8, for the tables and the scripts of the page."""

from collections.abc import Mapping

from cvt_nas.latency import Int8Runtime
from cvt_nas.results import Int8, plain_name
from cvt_nas.run import RunFolder

NOT_MEASURED = "not measured"


def judged_runtimes(run: RunFolder) -> tuple[Int8Runtime, ...]:
    """Runtimes in whose int8 any network of the run was judged, by name."""
    found: set[Int8Runtime] = {runtime for figures in run.int8.by_arch().values() for runtime in figures}
    plan = run.confirmations.plan()
    if plan is not None and plan.runtime is not None:
        found.add(plan.runtime)
    return tuple(sorted(found))


def int8_heads(runtimes: tuple[Int8Runtime, ...]) -> list[str]:
    """Heads of the columns that `int8_cells` fills."""
    return [
        head
        for runtime in runtimes
        for name in [plain_name(runtime)]
        for head in (f"these weights: fp32 | int8, {name}", f"MB: fp32 | int8, {name}", f"ms: fp32 | int8, {name}")
    ]


def int8_cells(known: Mapping[Int8Runtime, Int8], runtimes: tuple[Int8Runtime, ...]) -> list[str]:
    """Accuracy, size and latency of a network in fp32 and int8, for each runtime."""
    return [cell for runtime in runtimes for cell in _cells(known.get(runtime))]


def _cells(found: Int8 | None) -> tuple[str, str, str]:
    if found is None:
        return NOT_MEASURED, NOT_MEASURED, NOT_MEASURED
    int8 = "failed" if found.faults or found.accuracy is None else f"{found.accuracy:.4f}"
    size = NOT_MEASURED if found.num_bytes is None else " | ".join(f"{size / 1e6:.3g}" for size in found.num_bytes)
    time = NOT_MEASURED if found.ms is None else " | ".join(f"{ms:.3g}" for ms in found.ms)
    return f"{found.judgement.score:.4f} | {int8}", size, time


def int8_data(known: Mapping[Int8Runtime, Int8]) -> dict[str, dict[str, object]] | None:
    """Figures of one network for the scripts, by plain name of the runtime. None if there are none."""
    return {
        plain_name(runtime): {
            "fp32": found.judgement.score,
            "int8": None if found.faults else found.accuracy,
            "mb": None if found.num_bytes is None else [size / 1e6 for size in found.num_bytes],
            "ms": None if found.ms is None else list(found.ms),
            "images": found.judgement.num_images,
            "where": f"{found.software}, {found.num_threads} thread{'s' if found.num_threads > 1 else ''}",
            "faults": list(found.faults),
        }
        for runtime, found in known.items()
    } or None
