"""Networks as they are deployed: the section `deploy`, its costs, tables of other runtimes, and kits that make them."""

import dataclasses
import errno
import itertools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt_nas import search
from cvt_nas.cli import main
from cvt_nas.config import Experiment, load_experiment, parse_experiment
from cvt_nas.engine import latency_parts
from cvt_nas.errors import ResourceError, RunFolderError, SpaceFileError, StorageError
from cvt_nas.export.kit import made_up_weights, write_part
from cvt_nas.latency import Deployment, LatencyTable, deployment, measuring
from cvt_nas.latency.measuring import run_of
from cvt_nas.model import build_model
from cvt_nas.pipeline.latency import measure_locally, read_table, write_kit_of
from cvt_nas.report import front_frame, front_table
from cvt_nas.results import HypervolumeBox, ParetoFront, TrialResult
from cvt_nas.space import Genome

SPACE = """
format: 1
name: deployed
space:
  image_size: 8
  num_channels: 1
  num_classes: 10
  stages:
    - {patch: {kernel: 3, stride: 1, padding: 1}, embed_dim: 8, depth: 1, num_heads: 1, mlp_ratio: 1.0, kernel_size: 3,
       kv_stride: 1}
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: [8, 64], depth: [1, 3], num_heads: 1,
       mlp_ratio: [1.0, 4.0], kernel_size: 3, kv_stride: [1, 2], per_block: [kv_stride], pos_embed: true}
objectives: {accuracy: maximize, throughput: maximize, peak_memory_mb: minimize}
deploy: {runtime: onnxruntime, batch: 4, threads: 1, image_size: 12}
data: {dataset: digits, search_fraction: 0.25}
training: {epochs: 1, warmup_epochs: 0, lr: 3.0e-3}
search: {trials: 2, sampler: surrogate, scheduler: none, seed: 0}
"""


def with_deploy(section: str, *, objectives: str | None = None) -> Experiment:
    text = SPACE.replace("{runtime: onnxruntime, batch: 4, threads: 1, image_size: 12}", section)
    if objectives is not None:
        text = text.replace("throughput: maximize, peak_memory_mb: minimize", objectives)
    return parse_experiment(text, "deployed.yaml")


def table_for(experiment: Experiment) -> LatencyTable:
    parts, rng = experiment.space.as_deployed.parts(), random.Random(0)
    return LatencyTable(
        parts={key: rng.randrange(100, 9_000) for key in parts.keys}, constant_us=7, device="made up", error=0.0,
        deployment=dataclasses.replace(experiment.deployment, device="cpu"), space=parts.id,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{runtime: onnx}", "deploy.runtime: got \"onnx\", must be one of torch, torch-compile, onnxruntime"),
        ("{runtime: onnxruntime, precision: fp16}", "deploy.precision: got fp16, onnxruntime runs in fp32"),
        ("{runtime: openvino-int8, precision: fp32}", "deploy.precision: got fp32, openvino-int8 runs in int8"),
        ("{runtime: openvino, device: cuda}", "deploy.device: got cuda, openvino runs on cpu"),
        ("{runtime: tensorrt, device: cpu}", "deploy.device: got cpu, tensorrt runs on cuda"),
        ("{device: cpu, precision: fp16}", "deploy.precision: got fp16 with device cpu, must be fp32 or bf16"),
        ("{device: cuda, threads: 4}", "deploy.threads: got 4 with device cuda: threads are of a CPU; leave it out"),
        ("{batch: 0}", "deploy.batch: got 0"),
        ("{threads: 0}", "deploy.threads: got 0, must be auto, or a whole number of at least 1"),
        ("{image_size: [4, 0]}", "deploy.image_size: got"),
    ],
)  # fmt: skip
def test_what_no_runtime_can_do_is_refused(section: str, message: str) -> None:
    with pytest.raises(SpaceFileError) as raised:
        with_deploy(section)
    assert message in str(raised.value)


def test_images_that_leave_a_stage_without_tokens_are_refused() -> None:
    text = SPACE.replace("kernel: 3, stride: 2, padding: 1", "kernel: 7, stride: 2, padding: 0")
    with pytest.raises(SpaceFileError, match="deploy.image_size: kernel 7, stride 2, padding 0 leave no token"):
        parse_experiment(text.replace("image_size: 12}", "image_size: 6}"), "deployed.yaml")


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ("latency_ms: minimize, throughput: maximize", "throughput: orders networks as latency_ms does"),
        ("params: minimize, model_mb: minimize", "model_mb: orders networks as params does"),
        ("throughput: minimize", 'got "minimize", must be maximize'),
    ],
)
def test_objectives_that_are_no_trade_off_are_refused(objectives: str, message: str) -> None:
    with pytest.raises(SpaceFileError, match=message):
        with_deploy("{}", objectives=objectives)


def test_without_a_section_costs_are_those_of_ever() -> None:
    text = SPACE.replace("throughput: maximize, peak_memory_mb: minimize", "latency_ms: minimize")
    experiment = parse_experiment("\n".join(line for line in text.splitlines() if "deploy:" not in line), "plain.yaml")
    assert experiment.space.deployment is None
    assert experiment.deployment == Deployment(image_size=8)
    assert "deploy" not in experiment.manifest(seed=0, num_trials=1)
    cost = experiment.space.cost(experiment.space.smallest_genome)
    assert (cost.model_bytes, cost.value_bytes, cost.batch) == (0, 0, 0)


def test_a_runtime_names_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = deployment.Facts(packages=("no_such_package",), extra="onnx")
    monkeypatch.setitem(deployment._FACTS, "onnxruntime", facts)
    message = r"^deploy.runtime: onnxruntime needs no_such_package: pip install 'cvt-nas\[onnx\]'$"
    with pytest.raises(ResourceError, match=message):
        Deployment(runtime="onnxruntime", image_size=8).check_installed()


def test_parts_in_int8_are_smaller_and_run(tmp_path: Path) -> None:
    space = with_deploy("{}").space
    parts = latency_parts.parts_of(space)
    timed = next(parts[key] for key in parts if "block of 64 channels" in key and "mlp 4" in key)
    sizes = {}
    for runtime, precision in (("onnxruntime", "fp32"), ("onnxruntime-int8", "int8")):
        told = Deployment.from_json({
            "runtime": runtime, "precision": precision, "device": "cpu", "threads": 1, "batch": 2, "image_size": 8
        })  # fmt: skip
        memory = made_up_weights(latency_parts.memory_size(timed.module))
        file = write_part(timed, tmp_path / f"{precision}.onnx", told, memory=memory)
        run_of(file, told.to_json())()
        sizes[precision] = file.stat().st_size
    assert sizes["int8"] < 0.6 * sizes["fp32"]


def test_a_search_in_a_runtime_that_is_not_there_spends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = deployment.Facts(packages=("no_such_package",), extra="openvino")
    monkeypatch.setitem(deployment._FACTS, "openvino", facts)
    experiment = with_deploy("{runtime: openvino}", objectives="model_mb: minimize")
    with pytest.raises(ResourceError, match="openvino needs no_such_package"):
        search(experiment, out=tmp_path / "run", cpus=1, gpus=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("precision", "num_bytes"), [("fp32", 4), ("bf16", 2)])
def test_the_size_of_a_model_is_that_of_its_parameters(precision: str, num_bytes: int) -> None:
    experiment = with_deploy(f"{{precision: {precision}}}", objectives="model_mb: minimize")
    space = experiment.space
    genome = space.sample(random.Random(0))
    model = build_model(space.decode(genome))
    assert space.cost(genome).model_bytes == num_bytes * sum(p.numel() for p in model.parameters())


def test_memory_is_of_parameters_and_of_values_that_grow_with_the_batch() -> None:
    one, four = (with_deploy(f"{{batch: {batch}}}", objectives="peak_memory_mb: minimize").space for batch in (1, 4))
    for seed in range(8):
        genome = one.sample(random.Random(seed))
        costs = one.cost(genome), four.cost(genome)
        assert costs[1].value_bytes == 4 * costs[0].value_bytes
        assert costs[0].model_bytes == costs[1].model_bytes
        assert costs[0].peak_memory_mb == (costs[0].model_bytes + costs[0].value_bytes) / 1e6


@given(st.integers(0, 2**32))
def test_costs_of_a_deployment_agree_however_they_are_counted(seed: int) -> None:
    experiment = parse_experiment(SPACE, "deployed.yaml")
    experiment = experiment.with_latency(table_for(experiment))
    space = experiment.space
    genome = space.canonical(space.sample(random.Random(seed)))
    cost = space.cost(genome)
    assert space.costs_of(np.array([genome])) == {genome: cost}
    there = space.as_deployed
    assert cost == dataclasses.replace(there.cost(genome), params=cost.params, flops=cost.flops)
    assert cost.flops < there.cost(genome).flops, "its images are larger there"
    least, greatest = space.cost_range
    for name in ("params", "flops", "latency_us", "model_bytes", "value_bytes"):
        assert getattr(least, name) <= getattr(cost, name) <= getattr(greatest, name)
    assert cost.throughput == pytest.approx(4 / (cost.latency_us / 1e6))
    result = result_of(experiment, genome, 0.5)
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert type(cost)(**cost.to_json()) == cost


def test_the_range_of_each_cost_is_reached() -> None:
    experiment = parse_experiment(SPACE, "deployed.yaml")
    space = experiment.with_latency(table_for(experiment)).space
    costs = [space.cost(genome) for genome in itertools.product(*(range(len(gene.options)) for gene in space.genes))]
    least, greatest = space.cost_range
    for name in ("latency_us", "model_bytes", "value_bytes"):
        values = [getattr(cost, name) for cost in costs]
        assert (getattr(least, name), getattr(greatest, name)) == (min(values), max(values))


def result_of(experiment: Experiment, genome: Genome, accuracy: float, number: int = 0) -> TrialResult:
    return TrialResult(
        number=number, arch=experiment.space.decode(genome), status="complete", epochs=1, accuracy=accuracy,
        cost=experiment.space.cost(genome), curve=(accuracy,), seconds=1.0, train_seconds=1.0, seed=0,
    )  # fmt: skip


def test_throughput_is_maximised() -> None:
    experiment = with_deploy("{batch: 2}", objectives="throughput: maximize")
    experiment = experiment.with_latency(table_for(experiment))
    genomes = [experiment.space.sample(random.Random(seed)) for seed in range(12)]
    equal = [result_of(experiment, genome, 0.5, number) for number, genome in enumerate(genomes)]
    front = ParetoFront.of(equal, experiment.objectives)
    fastest = max(result.cost.throughput for result in equal)
    assert {member.cost.throughput for member in front.members} == {fastest}
    assert front.knee() in front.members
    least, greatest = experiment.space.cost_range
    losses = HypervolumeBox(least=least, greatest=greatest).normalise(equal, ["throughput"])[:, 0]
    assert losses.argmin() == np.argmax([result.cost.throughput for result in equal])
    assert ((losses >= 0) & (losses <= 1)).all()


def test_bounds_on_throughput_and_memory_hold() -> None:
    free = parse_experiment(SPACE, "deployed.yaml")
    table = table_for(free)
    space = free.with_latency(table).space
    costs = [space.cost(space.sample(random.Random(seed))) for seed in range(40)]
    speed = float(np.median([cost.throughput for cost in costs]))
    memory = float(np.quantile([cost.peak_memory_mb for cost in costs], 0.7))
    bounds = f"constraints: {{throughput: {{min: {speed}}}, peak_memory_mb: {{max: {memory}}}}}\n"
    bounded = parse_experiment(SPACE + bounds, "deployed.yaml").with_latency(table).space
    genome = bounded.sample_feasible(random.Random(0))
    assert genome is not None
    assert bounded.cost(genome).throughput >= speed
    assert bounded.cost(genome).peak_memory_mb <= memory
    too_fast = parse_experiment(SPACE + "constraints: {throughput: {min: 1000000000.0}}\n", "deployed.yaml")
    with pytest.raises(SpaceFileError, match=r"throughput.min: got 1e\+09, no architecture meets it .* ends at"):
        too_fast.with_latency(table)
    with pytest.raises(SpaceFileError, match="constraints.model_mb.max: got 0.001, the space begins at"):
        parse_experiment(SPACE + "constraints: {model_mb: {max: 0.001}}\n", "deployed.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 8}, "was measured with batch 8 instead of 4"),
        ({"threads": 2}, "was measured with threads 2 instead of 1"),
        ({"runtime": "openvino"}, "was measured with runtime openvino instead of onnxruntime"),
        ({"image_size": 8}, "was measured with image_size 8 instead of 12"),
    ],
)
def test_a_table_of_another_deployment_is_refused(change: dict[str, object], message: str) -> None:
    experiment = parse_experiment(SPACE, "deployed.yaml")
    table = table_for(experiment)
    assert table.deployment is not None
    other = Deployment.from_json({**table.deployment.to_json(), **change})
    with pytest.raises(RunFolderError, match=message):
        experiment.with_latency(dataclasses.replace(table, deployment=other))


def test_a_table_of_another_space_is_refused() -> None:
    experiment = parse_experiment(SPACE, "deployed.yaml")
    for old, new, message in (
        ("embed_dim: [8, 64]", "embed_dim: [8, 32]", "of another space: it lacks"),
        ("mlp_ratio: [1.0, 4.0]", "mlp_ratio: 1.0", "of another space: it also has"),
        ("num_classes: 10", "num_classes: 11", "another number of classes"),
    ):
        other = parse_experiment(SPACE.replace(old, new), "other.yaml")
        with pytest.raises(RunFolderError, match=message):
            other.with_latency(table_for(experiment))


def test_a_table_is_refused_where_it_has_no_effect_and_where_it_is_none(tmp_path: Path) -> None:
    experiment = with_deploy("{}", objectives="model_mb: minimize")
    with pytest.raises(RunFolderError, match="--latency-table: has no effect"):
        search(experiment, out=tmp_path / "run", latency_table=table_for(experiment), cpus=1, gpus=0)
    file = tmp_path / "table.json"
    file.write_text("{}", encoding="utf-8")
    for path in (file, tmp_path / "missing.json"):
        with pytest.raises(RunFolderError, match=f"--latency-table {path}: cannot be read: "):
            read_table(path)


def test_a_kit_of_torch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="torch is not measured by a kit, .* cvt-nas measure local"):
        write_kit_of(with_deploy("{}"), tmp_path / "kit", num_judged=1, seed=0, on_progress=lambda *_: None)


def test_measure_says_where_its_table_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deployed.yaml"
    file.write_text(SPACE, encoding="utf-8")
    assert main(["measure", "local", "--space", str(file)]) == 2
    assert "--to: name the file for the table" in capsys.readouterr().err
    assert main(["measure", "kit", "--space", str(file), "--to", "table.json"]) == 2
    assert "python kit/measure.py --to TABLE writes the table there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("to", "why"),
    [("nowhere/table.json", "there is no folder nowhere"), ("folder", "it is no regular file")],
)
def test_a_table_that_could_not_be_written_is_not_measured(
    to: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cvt_nas.pipeline.latency.deployed_table", lambda *_, **__: pytest.fail("it was measured"))
    Path("folder").mkdir()
    Path("deployed.yaml").write_text(SPACE, encoding="utf-8")
    assert main(["measure", "local", "--space", "deployed.yaml", "--to", to]) == 2
    assert capsys.readouterr().err.endswith(f"cvt-nas: {to}: cannot be written: {why}\n")


@pytest.mark.parametrize(
    ("to", "why"), [("nowhere/table.json", "there is no folder nowhere"), ("folder", "it is a folder")]
)
def test_a_kit_measures_nothing_if_its_table_cannot_be_written(to: str, why: str, tmp_path: Path) -> None:
    shutil.copy(str(measuring.__file__), tmp_path / "measure.py")  # without a plan, a measurement would fail
    (tmp_path / "folder").mkdir()
    words = [sys.executable, "-I", "-c", _WITHOUT_TORCH, "measure.py", "--to", to]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: --to {to}: cannot be written: {why}" in done.stderr


def test_a_table_that_is_measured_here_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, to = parse_experiment(SPACE, "deployed.yaml"), tmp_path / "table.json"
    table = table_for(experiment)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cvt_nas.pipeline.latency.deployed_table", lambda *_, **__: table)
    to.write_text("of before", encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            measure_locally(experiment, to, num_judged=1, seed=0, on_progress=lambda *_: None)
    assert to.read_text(encoding="utf-8") == "of before"
    assert measure_locally(experiment, to, num_judged=1, seed=0, on_progress=lambda *_: None) == table
    assert read_table(to) == table
    assert list(tmp_path.iterdir()) == [to]


_WITHOUT_TORCH = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cvt_nas", "torch", "onnx", "pydantic"):
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.usefixtures("two_cpus")
def test_a_search_goes_by_the_table_of_a_kit_that_ran_where_neither_torch_nor_this_package_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency_parts, "_NUM_FITTED", 2)  # of which each takes seconds to be exported
    file, kit, table = tmp_path / "deployed.yaml", tmp_path / "kit", tmp_path / "table.json"
    file.write_text(SPACE, encoding="utf-8")
    assert main(["measure", str(kit), "--space", str(file), "--networks", "1"]) == 0
    assert f"python {kit.name}/measure.py --to table.json" in capsys.readouterr().out
    words = [sys.executable, "-I", "-c", _WITHOUT_TORCH, str(kit / "measure.py"), "--to", str(table), "--seconds", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    experiment, found = load_experiment(file), read_table(table)
    assert "onnxruntime" in found.device
    assert found.deployment == dataclasses.replace(experiment.deployment, device="cpu")
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        run = search(experiment, out=tmp_path / "run", latency_table=table, trials=2, cpus=1, gpus=0)
    assert run.manifest["latency_table"] == json.loads(json.dumps(found.to_json()))
    space = experiment.with_latency(found).space
    assert [result.cost for result in run.results()] == [space.cost(space.encode(r.arch)) for r in run.results()]
    frame = front_frame(run)
    assert frame["throughput"].tolist() == pytest.approx((4000 / frame["latency_ms"]).tolist())
    assert min(frame["measured_ms"].tolist()) > 0
    if sys.platform == "linux":
        assert min(frame["measured_memory_mb"].tolist()) > max(frame["model_mb"].tolist())
    assert {"images/s", "memory MB"} <= {column.header for column in front_table(run).columns}


def test_openvino_is_timed_with_the_batch_of_the_deployment_where_a_file_leaves_it_free(tmp_path: Path) -> None:
    import onnx

    shape = ["batch", 1, 4, 4]
    given, found = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("images", "found")
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["found"])], "relu", [given], [found])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "relu.onnx")
    run = run_of(tmp_path / "relu.onnx", {"runtime": "openvino", "device": "cpu", "threads": 1, "batch": 3})
    (answer,) = cast(dict[str, np.ndarray], run()).values()
    assert answer.shape == (3, 1, 4, 4)
