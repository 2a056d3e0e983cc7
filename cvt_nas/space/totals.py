"""Costs of parts, added up to those of networks: of one network, and of many as rows of an array."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from cvt_nas.arch import Cost
from cvt_nas.latency import Deployment

COLUMNS = ("params", "flops", "latency_us", "model_bytes", "value_bytes")  # all are sums over parts but the last


def deployed(cost: Cost, deployment: Deployment | None, *, latency: int | None, num_values: Callable[[], int]) -> Cost:
    """The cost of a part with what a deployment tells of it: its time, its bytes, and those of its values."""
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
    """`sums` of two parts of each network."""
    return np.column_stack([totals[:, :-1] + more[:, :-1], np.maximum(totals[:, -1], more[:, -1])])


def sums(*parts: Sequence[int]) -> list[int]:
    """`COLUMNS` of parts that run one after the other."""
    *columns, values = zip(*parts, strict=True)
    return [*map(sum, columns), max(values)]


def as_at(cost: Cost, there: Cost) -> Cost:
    """`cost`, whose images have another size where it is deployed, with what is of there."""
    return replace(there, params=cost.params, flops=cost.flops)


def distinct(rows: Int[np.ndarray, "rows values"]) -> tuple[list[list[int]], Int[np.ndarray, " rows"]]:
    """Distinct rows, and the index of each row among them."""
    codes, num_codes = np.zeros(len(rows), dtype=np.int64), 1
    for column in rows.T:
        width = int(column.max(initial=0)) + 1
        if num_codes * width >= 2**63:
            codes, num_codes = np.unique(codes, return_inverse=True)[1], len(rows)
        codes, num_codes = codes * width + column, num_codes * width
    _, first, which = np.unique(codes, return_index=True, return_inverse=True)
    return rows[first].tolist(), which
