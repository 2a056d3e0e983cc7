"""Latency as a cost of the search: the table of parts, the space that goes by it, and a real search."""

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau
from torch.utils._python_dispatch import TorchDispatchMode

from cvt_nas import search
from cvt_nas.arch import ArchConfig, cost_of
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.engine.latency_table import measure_latencies, measure_table
from cvt_nas.errors import RunFolderError, SpaceFileError
from cvt_nas.latency import LatencyTable, block_key, embedding_key, head_key
from cvt_nas.latency.measuring import Turns, table_of
from cvt_nas.report import front_frame, front_table, write_report
from cvt_nas.results import ParetoFront, TrialResult
from cvt_nas.run import RunFolder
from cvt_nas.space import SearchSpace

SPACE = """
format: 1
name: timed
space:
  image_size: [32, 40]
  num_classes: 10
  stages:
    - {patch: {kernel: [3, 7], stride: 4, padding: 3}, embed_dim: [16, 64], depth: [1, 2], num_heads: [1, 2],
       mlp_ratio: [1.0, 4.0], kernel_size: 3, kv_stride: [1, 2], per_block: [kv_stride]}
    - {patch: {kernel: 3, stride: 2}, embed_dim: [32, 128], depth: [1, 4], num_heads: 2, mlp_ratio: 2.0,
       kernel_size: 3, kv_stride: 2, projection: [dw_bn, linear]}
objectives: {accuracy: maximize, latency_ms: minimize}
data: {dataset: cifar10}
training: {epochs: 2}
"""


DIGITS = """
format: 1
name: digits-timed
space:
  image_size: 8
  num_channels: 1
  num_classes: 10
  stages:
    - {patch: {kernel: 3, stride: 1, padding: 1}, embed_dim: [8, 32], depth: 1, num_heads: 1, mlp_ratio: [1.0, 2.0],
       kernel_size: 3, kv_stride: 1}
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: 32, depth: [1, 3], num_heads: 1, mlp_ratio: 2.0,
       kernel_size: 3, kv_stride: [1, 2]}
objectives: {accuracy: maximize, latency_ms: minimize}
data: {dataset: digits, search_fraction: 0.25}
training: {epochs: 1, warmup_epochs: 0, lr: 3.0e-3}
search: {trials: 4, sampler: surrogate, scheduler: none, seed: 0}
"""


@pytest.fixture(scope="module")
def timed() -> Experiment:
    return parse_experiment(SPACE, "timed.yaml")


def made_up_table(space: SearchSpace) -> LatencyTable:
    """Times that no two parts share."""
    parts = space.parts()
    keys = [embedding_key(s, in_channels=c, grid=s.grid_after(grid)) for s, c, grid in parts.embeddings]
    keys += [block_key(b, embed_dim=d, grid=g, class_token=t) for b, d, g, t in parts.blocks]
    keys += [head_key(dim=d, grid=g) for d, g in parts.heads]
    assert len(keys) == len(set(keys))
    rng = random.Random(0)
    return LatencyTable(parts={k: rng.randrange(100, 9_000) for k in keys}, constant_us=77, device="made up", error=0.0)


def sum_of_parts(arch: ArchConfig, table: LatencyTable) -> int:
    total, channels = table.constant_us, arch.num_channels
    for stage, grid in zip(arch.stages, arch.grids, strict=True):
        total += table.parts[embedding_key(stage, in_channels=channels, grid=grid)]
        for block in stage.blocks:
            key = block_key(block, embed_dim=stage.embed_dim, grid=grid, class_token=stage.class_token)
            total += table.parts[key]
        channels = stage.embed_dim
    return total + table.parts[head_key(dim=channels, grid=arch.grids[-1])]


@given(st.integers(0, 2**32))
def test_the_latency_of_a_network_is_the_sum_of_its_parts_and_its_other_costs_are_as_ever(seed: int) -> None:
    space = parse_experiment(SPACE, "timed.yaml").space
    table = made_up_table(space)
    told = parse_experiment(SPACE, "timed.yaml").with_latency(table).space
    genome = space.sample(random.Random(seed))
    arch, cost = space.decode(genome), told.cost(genome)
    assert cost.latency_us == sum_of_parts(arch, table)
    assert (cost.params, cost.flops) == (cost_of(arch).params, cost_of(arch).flops)
    least, greatest = told.cost_range
    assert least.latency_us <= cost.latency_us <= greatest.latency_us


def test_the_range_of_latency_is_exact(timed: Experiment) -> None:
    space = timed.with_latency(made_up_table(timed.space)).space
    genomes = itertools.product(*(range(len(gene.options)) for gene in space.genes))
    every = [space.cost(genome).latency_us for genome in genomes]
    least, greatest = space.cost_range
    assert (least.latency_us, greatest.latency_us) == (min(every), max(every))


def test_a_table_survives_its_file_and_nothing_else_becomes_one(timed: Experiment) -> None:
    table = made_up_table(timed.space)
    assert LatencyTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    for tree in ([], {}, {**table.to_json(), "parts": {"block": "slow"}}):
        with pytest.raises(RunFolderError, match="latency_table: is none"):
            LatencyTable.from_json(tree)


@pytest.mark.parametrize("least_us", [-3_000, 0])
def test_a_table_by_which_a_network_takes_no_time_is_refused(timed: Experiment, least_us: int) -> None:
    table = made_up_table(timed.space)
    least = timed.with_latency(table).space.cost_range[0].latency_us
    table = dataclasses.replace(table, constant_us=table.constant_us + least_us - least)
    message = f"latency_table: the fastest network of the space would take {least_us / 1e3:g} ms; measure it again"
    with pytest.raises(RunFolderError, match=message):
        timed.with_latency(table)


def test_a_line_by_which_a_network_takes_no_time_gives_way_to_one_through_zero() -> None:
    counts, wholes_us = (1, 2, 10, 4), (1, 2, 500, 150)
    plan = {
        "keys": ["part"], "networks": [{"counts": [count]} for count in counts], "num_fitted": 3, "deployment": None,
        "space": None,
    }  # fmt: skip
    table = table_of(Turns(seconds=np.tile([100, *wholes_us], (6, 1)) / 1e6), plan, device="made up")
    assert table["constant_us"] == 0
    assert table["parts"] == {"part": round(sum(wholes_us[:3]) / sum(counts[:3]))}
    assert min(table["constant_us"] + count * table["parts"]["part"] for count in counts) > 0


class OperatorClock(TorchDispatchMode):
    """A clock that each operator moves on, by a fixed time and by what it writes: the same on every machine."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.now += 5e-2 + (1e-5 * result.numel() if isinstance(result, torch.Tensor) else 0.0)
        return result

    def perf_counter(self) -> float:
        return self.now

    thread_time = perf_counter


def test_a_measured_table_tells_the_latency_of_networks_that_had_no_part_in_it(
    timed: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    with OperatorClock() as clock:
        monkeypatch.setattr("cvt_nas.latency.measuring.time", clock)
        space = timed.with_latency(measure_table(timed.space, device=device)).space
        genomes = [space.sample(random.Random(seed)) for seed in range(16)]
        latencies = measure_latencies([space.decode(genome) for genome in genomes], device=device)
    predicted = [space.cost(genome).latency_ms for genome in genomes]
    assert predicted == pytest.approx([latency.p10_ms for latency in latencies], rel=0.02)
    assert space.latency is not None
    assert space.latency.error < 0.02
    judged = space.latency.judged
    assert judged is not None
    assert (judged.within_5, judged.within_10) == (1.0, 1.0)
    assert judged.spearman > 0.98
    assert (judged.noise, judged.drift) == pytest.approx((0, 0), abs=1e-6)
    assert abs(judged.bias) < 0.02


@pytest.mark.slow  # other work on the machine changes the times while they are taken
def test_a_table_of_real_times_ranks_networks_that_had_no_part_in_it(timed: Experiment) -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")
    space = timed.with_latency(measure_table(timed.space, device=device)).space
    rng = random.Random(1)
    genomes = [space.sample(rng) for _ in range(16)]
    latencies = measure_latencies([space.decode(genome) for genome in genomes], device=device)
    measured = [latency.p10_ms for latency in latencies]
    predicted = [space.cost(genome).latency_ms for genome in genomes]
    found: Any = kendalltau(predicted, measured)
    assert found.statistic > 0.7
    assert np.median(np.abs(np.array(predicted) / measured - 1)) < 0.1


def test_constraints_on_latency_hold_once_there_is_a_table(timed: Experiment) -> None:
    table = made_up_table(timed.space)
    limit = timed.with_latency(table).space.cost_range[0].latency_ms * 1.5
    text = SPACE + f"constraints: {{latency_ms: {{max: {limit}}}}}\n"
    bounded = parse_experiment(text, "timed.yaml")
    assert bounded.goes_by_latency
    space = bounded.with_latency(table).space
    genome = space.sample_feasible(random.Random(0))
    assert genome is not None
    assert space.cost(genome).latency_ms <= limit
    too_slow = parse_experiment(text.replace(str(limit), "0.001"), "timed.yaml")
    with pytest.raises(
        SpaceFileError, match="latency_ms.max: got 0.001, no architecture meets it .* begins at .* made up"
    ):
        too_slow.with_latency(table)


def test_anchors_that_are_too_slow_are_left_out(timed: Experiment) -> None:
    anchors = """anchors:
  slow: {patch_kernel: [7, 3], embed_dim: [64, 128], depth: [2, 4], num_heads: [2, 2], mlp_ratio: [4.0, 2.0],
         kv_stride: [1, 2], projection: [dw_bn, dw_bn]}
"""
    table = made_up_table(timed.space)
    free = parse_experiment(SPACE + anchors, "timed.yaml").with_latency(table)
    took = free.space.cost(free.anchors["slow"]).latency_ms
    bounded = parse_experiment(SPACE + anchors + f"constraints: {{latency_ms: {{max: {took - 0.01}}}}}\n", "timed.yaml")
    assert bounded.with_latency(table).anchors == {}


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (
            "{accuracy: maximize, params: minimize, flops: minimize, latency_ms: minimize}",
            "got three costs, must hold one",
        ),
        ("{accuracy: maximize}", "got accuracy alone, must hold one or two of params, flops, latency_ms"),
    ],
)
def test_one_or_two_costs_are_objectives(objectives: str, message: str) -> None:
    line = "objectives: {accuracy: maximize, latency_ms: minimize}"
    with pytest.raises(SpaceFileError, match=message):
        parse_experiment(SPACE.replace(line, f"objectives: {objectives}"), "timed.yaml")


def test_a_front_by_latency_alone_has_a_knee(timed: Experiment) -> None:
    space = timed.with_latency(made_up_table(timed.space)).space
    results = []
    for number in range(12):
        genome = space.sample(random.Random(number))
        results.append(
            TrialResult(
                number=number, arch=space.decode(genome), status="complete", epochs=2, accuracy=0.5 + number / 100,
                cost=space.cost(genome), curve=(0.4, 0.5 + number / 100), seconds=1.0, train_seconds=1.0, seed=0,
            )
        )  # fmt: skip
    front = ParetoFront.of(results, timed.objectives)
    assert front.knee() in front.members
    for result in results:
        assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.usefixtures("two_cpus")
def test_a_search_goes_by_latency_measures_its_front_and_keeps_its_table(tmp_path: Path) -> None:
    experiment = parse_experiment(DIGITS, "digits.yaml")
    run = search(experiment, out=tmp_path / "run", trials=2, cpus=1, gpus=0)
    table = run.manifest["latency_table"]
    assert table["device"]
    run = search(experiment, out=tmp_path / "run", trials=4, cpus=1, gpus=0, resume=True)
    assert run.manifest["latency_table"] == table
    space = experiment.with_latency(LatencyTable.from_json(table)).space
    results = run.results()
    assert [result.number for result in results] == [0, 1, 2, 3]
    for result in results:
        assert result.cost == space.cost(space.encode(result.arch))
        assert result.cost.latency_us > 0
    assert run.box.greatest.latency_us == space.cost_range[1].latency_us
    members = run.front().members
    assert run.latencies().keys() >= {member.arch_id for member in members}
    frame = front_frame(run)
    assert frame["latency_ms"].tolist() == [member.cost.latency_ms for member in members]
    assert all(ms > 0 for ms in frame["measured_ms"])
    assert "ms" in [column.header for column in front_table(run).columns]
    limit = members[0].cost.latency_ms + 0.001
    assert run.pick(f"latency_ms<{limit}") == members[0]
    write_report(RunFolder.open(run.path))
    assert (run.path / "pareto_latency_ms.html").exists()
    assert not (run.path / "pareto_flops.html").exists()


@pytest.mark.usefixtures("two_cpus")
def test_what_no_network_is_fast_enough_for_costs_no_run_folder(tmp_path: Path) -> None:
    text = DIGITS + "constraints: {latency_ms: {max: 1.0e-6}}\n"
    with pytest.raises(SpaceFileError, match="no architecture meets it"):
        search(parse_experiment(text, "digits.yaml"), out=tmp_path / "run", cpus=1, gpus=0)
    assert not (tmp_path / "run").exists()
