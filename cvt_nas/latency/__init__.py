"""Latency of networks where they will run: the settings of a deployment, and a table of the times of parts."""

from cvt_nas.latency.deployment import (
    Deployment,
    DeployPrecision,
    Int8Runtime,
    Runtime,
    RuntimeDevice,
    check_installed,
    deployment_of,
    facts_of,
)
from cvt_nas.latency.table import Judged, LatencyTable, Parts, block_key, embedding_key, head_key, part_counts
