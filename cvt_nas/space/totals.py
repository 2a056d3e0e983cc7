"""Adds up the costs of parts to the costs of networks: of one network, or of many as rows of an array."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from cvt_nas.arch import Cost
from cvt_nas.latency import Deployment

COLUMNS = ("params", "flops", "latency_us", "model_bytes", "value_bytes")  # sums over parts; the last is a maximum


def deployed(cost: Cost, deployment: Deployment | None, *, latency: int | None, num_values: Callable[[], int]) -> Cost:
    """The cost of a part, completed for a deployment with its time, the bytes of its weights, and of its values.

    Args:
        latency: Microseconds from a table of latencies, if there is one.
        num_values: Function that gives the number of values that the part holds at once for one image.
    """
    if deployment is None:
        return cost if latency is None else replace(cost, latency_us=latency)
    return replace(
        cost,
        latency_us=latency or 0,
        model_bytes=deployment.weight_bytes * cost.params,
        value_bytes=deployment.value_bytes * deployment.batch * num_values(),
        batch=deployment.batch,
    )


def joined(totals: Int[np.ndarray, "networks 5"], more: Int[np.ndarray, "networks 5"]) -> Int[np.ndarray, "networks 5"]:
    """Like `sums`, for many networks: joins two parts of each network. Columns are `COLUMNS`."""
    return np.column_stack([totals[:, :-1] + more[:, :-1], np.maximum(totals[:, -1], more[:, -1])])


def sums(*parts: Sequence[int]) -> list[int]:
    """Joins `COLUMNS` of parts that run one after the other."""
    *columns, values = zip(*parts, strict=True)
    return [*map(sum, columns), max(values)]


def as_at(cost: Cost, there: Cost) -> Cost:
    """`cost` with the deployment facts of `there`, for a network that is deployed with another image size.

    Parameters and FLOPs stay those of `cost`.
    """
    return replace(there, params=cost.params, flops=cost.flops)


def distinct(rows: Int[np.ndarray, "rows values"]) -> tuple[list[list[int]], Int[np.ndarray, " rows"]]:
    """Distinct rows, and for each row its index among them."""
    codes, num_codes = np.zeros(len(rows), dtype=np.int64), 1
    for column in rows.T:
        width = int(column.max(initial=0)) + 1
        if num_codes * width >= 2**63:
            codes, num_codes = np.unique(codes, return_inverse=True)[1], len(rows)
        codes, num_codes = codes * width + column, num_codes * width
    _, first, which = np.unique(codes, return_index=True, return_inverse=True)
    return rows[first].tolist(), which
