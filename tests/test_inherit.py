"""Searches that begin with a supernet, through Ray, on digits."""

import json
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import Watch, own_processes, small_digits
from cvt_nas import load_model, search
from cvt_nas.arch import Cost, cost_of
from cvt_nas.cli import main
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.data import load_data
from cvt_nas.engine import evaluate
from cvt_nas.errors import CvtNasError, RunFolderError, SpaceFileError
from cvt_nas.launch.cluster import local_ray
from cvt_nas.launch.resources import Resources
from cvt_nas.pipeline.inherit import _Bars, heirs, supernet_workers
from cvt_nas.pipeline.query import latency_ms, query
from cvt_nas.pipeline.verdict import evaluate_supernet
from cvt_nas.report import quality_verdict, run_page
from cvt_nas.results import Candidate, Origin, judge_supernet
from cvt_nas.run import RunFolder
from test_latency_search import made_up_table, sum_of_parts

SUPERNET = "supernet: {{epochs: {}, batch_size: 64, lr: 5.0e-3, ema_decay: 0.9, sampling: flops}}"
SMALL = {  # half the FLOPs of the demo's largest
    "      embed_dim: [8, 16": "      embed_dim: [8, 16]",
    "      embed_dim: [16, 32": "      embed_dim: [16, 32]",
    "      embed_dim: [32, 64": "      embed_dim: [32, 64]",
    "      depth: [1, 2, 3]": "      depth: [1, 2]",
    "      kernel_size:": "      kernel_size: 3",
}


def with_supernet(epochs: int = 2, supernet_epochs: int = 2, **search_settings: Any) -> Experiment:
    settings = {"trials": 3, "candidates": 10, "sampler": "random", "scheduler": "none", "seed": 0}
    settings |= {"weights": "supernet"} | search_settings
    line = f"{SUPERNET.format(supernet_epochs)}\nsearch: {json.dumps(settings)}"
    text = small_digits(
        **SMALL, **{"search:": line, "  epochs:": f"  epochs: {epochs}", "  warmup_epochs:": "  warmup_epochs: 0"}
    )
    return parse_experiment(text, "supernet.yaml")


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with local_ray(num_cpus=2, num_gpus=1):  # a logical one
        yield


@pytest.fixture(scope="module")
def one_shot(ray: None, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A search with no training after the supernet's."""
    experiment = with_supernet(epochs=0, supernet_epochs=1)
    return search(experiment, out=tmp_path_factory.mktemp("one-shot") / "run", cpus=1, gpus=0)


@pytest.fixture(scope="module")
def inherited(ray: None, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A search whose best candidates are trained on, two sharing a GPU, of which one supernet is trained."""
    out = tmp_path_factory.mktemp("inherited") / "run"
    return search(with_supernet(), out=out, gpus=1, cpus=1, gpus_per_trial=0.5, device="cpu")


def test_candidates_are_ranked_and_the_best_trained_on_from_what_they_inherit(inherited: RunFolder) -> None:
    candidates, trials = inherited.candidates(), inherited.results()
    assert len({candidate.arch.id for candidate in candidates}) == 10
    assert len(trials) == 3
    by_arch = {candidate.arch.id: candidate for candidate in candidates}
    assert all(trial.inherited == by_arch[trial.arch_id].accuracy for trial in trials)
    assert trials[0].arch == with_supernet().anchor_archs()["cvt-like"]
    expected = list(heirs(with_supernet(), candidates).values())[:3]
    space = with_supernet().space
    assert [space.encode(trial.arch) for trial in trials[1:]] == [
        g for g in expected if g != space.encode(trials[0].arch)
    ][:2]
    assert inherited.manifest["supernet"] == {"micro_batch": 64, "activation_checkpointing": False}
    assert {trial.micro_batch for trial in trials} == {with_supernet().training.batch_size}
    # an epoch on top of what is inherited; from a fresh initialisation it gives .47 on average
    assert all(trial.curve[0] > 0.55 for trial in trials)
    assert inherited.test_accuracies().keys() == {member.arch_id for member in inherited.front().members}


def test_without_training_the_candidates_are_the_trials(one_shot: RunFolder) -> None:
    trials = one_shot.results()
    assert [trial.epochs for trial in trials] == [0] * 10
    assert {trial.status for trial in trials} <= {"complete", "stopped"}
    assert one_shot.test_accuracies().keys() == {member.arch_id for member in one_shot.front().members}
    experiment = with_supernet(epochs=0)
    data = load_data(experiment.data, root=None, image_size=8, num_channels=1, num_classes=10)
    for member in one_shot.front().members:
        model = load_model(one_shot.model_path(member.arch_id))
        found = evaluate(model, data, "search", training=experiment.training, device=torch.device("cpu"))
        assert found == pytest.approx(member.accuracy, abs=0.003)


def test_the_verbs_read_a_run_without_epochs(
    one_shot: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["report", str(one_shot.path)]) == 0
    assert main(["export", str(one_shot.path), "--pick", "best", "--to", str(tmp_path / "model")]) == 0
    best = one_shot.front().best
    assert best is not None
    assert load_model(tmp_path / "model").arch.id == best.arch_id
    assert best.arch_id in capsys.readouterr().out


def test_an_architecture_of_a_run_without_epochs_is_trained_by_epochs_that_are_named(
    one_shot: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    best = one_shot.front().best
    assert best is not None
    arguments = ["train", f"{one_shot.path}:{best.arch_id}", "--out", str(tmp_path / "run"), "--gpus", "0"]
    assert main(arguments) == 2
    assert "give --epochs N" in capsys.readouterr().err
    assert main([*arguments, "--epochs", "1"]) == 0


def interrupted_at(event_name: str, count: int) -> tuple[threading.Event, Callable[[Any], None]]:
    stop, seen = threading.Event(), []

    def react(event: Any) -> None:
        if type(event).__name__ == event_name:
            seen.append(event)
            if len(seen) == count:
                stop.set()

    return stop, react


@pytest.mark.slow
def test_a_search_that_is_interrupted_again_and_again_ends_as_one_that_was_not(ray: None, tmp_path: Path) -> None:
    experiment, path = with_supernet(), tmp_path / "run"
    whole = search(experiment, out=tmp_path / "whole", cpus=1, gpus=0)
    for number, (event_name, count) in enumerate((("SupernetEpochDone", 1), ("Candidate", 3))):
        stop, react = interrupted_at(event_name, count)
        run = search(experiment, out=path, cpus=1, gpus=0, resume=number > 0, stop=stop, progress=Watch(react))
        assert stop.is_set()
        assert len(run.results()) < 3
    run = search(experiment, out=path, cpus=1, gpus=0, resume=True)
    assert [c.to_json() | {"seconds": 0} for c in run.candidates()] == [
        c.to_json() | {"seconds": 0} for c in whole.candidates()
    ]
    assert [(t.arch_id, t.curve, t.inherited) for t in run.results()] == [
        (t.arch_id, t.curve, t.inherited) for t in whole.results()
    ]


@pytest.mark.slow
def test_a_ranking_that_is_cut_short_or_loses_a_worker_gives_a_front_and_goes_on(
    one_shot: RunFolder, ray: None, tmp_path: Path
) -> None:
    experiment, path, best = with_supernet(epochs=0), tmp_path / "run", one_shot.front().best
    assert best is not None
    stop, react = interrupted_at("Candidate", 3)
    warm = one_shot.model_path(best.arch_id)
    run = search(experiment, out=path, gpus=0, stop=stop, progress=Watch(react), warm_start=warm)
    first = run.results()
    assert 3 <= len(first) < 10
    assert run.front().best is not None
    assert run.manifest["init"]["path"] == str(warm)
    assert not run.test_accuracies()

    def kill(event: Any) -> None:
        if isinstance(event, Candidate) and event.number == len(first):
            os.kill(own_processes("_Judge")[0], signal.SIGKILL)

    with pytest.raises(RunFolderError, match=rf"--init {tmp_path}: \S+ began with {warm}; leave it out"):
        search(experiment, out=path, gpus=0, resume=True, init=tmp_path)
    run = search(experiment, out=path, gpus=0, resume=True, progress=Watch(kill))
    assert sorted(result.number for result in run.results()) == list(range(10))
    assert run.results()[: len(first)] == first
    assert run.test_accuracies().keys() == {member.arch_id for member in run.front().members}


def test_more_trials_than_candidates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CvtNasError, match=r"20 trials: more than the 10 of search.candidates"):
        search(with_supernet(), out=tmp_path / "run", trials=20)
    assert not (tmp_path / "run").exists()


def test_a_query_finds_more_under_new_limits_without_training(
    inherited: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = sorted(candidate.cost.flops for candidate in inherited.candidates())
    limit = costs[len(costs) // 2]
    answers = query(inherited, max_flops=limit, max_params=40_000, number=3, to=tmp_path / "model")
    assert 1 <= len(answers) <= 3
    assert all(answer.cost.flops <= limit and answer.cost.params <= 40_000 for answer in answers)
    smoothed = [answer.smoothed for answer in answers]
    assert smoothed == sorted(smoothed, reverse=True)
    assert load_model(tmp_path / "model").arch == answers[0].arch
    space = with_supernet().space
    most = 20 * latency_ms(space.largest, torch.device("cpu"))
    assert all(0 < (answer.latency_ms or 0) <= most for answer in query(inherited, max_latency_ms=most, number=2))
    with monkeypatch.context() as patch:  # times that do not change with what else the machine does
        patch.setattr(sys.modules[query.__module__], "latency_ms", lambda arch, _: cost_of(arch).flops / 1e6)
        timed = query(inherited, max_latency_ms=limit / 1e6, number=2)
    assert [answer.latency_ms for answer in timed] == [answer.cost.flops / 1e6 for answer in timed]
    assert len(timed) == 2
    assert all(answer.cost.flops <= limit for answer in timed)
    with pytest.raises(RunFolderError, match=r"nothing in the space was found with latency_ms up to 1e-06"):
        query(inherited, max_latency_ms=1e-6)
    least = cost_of(space.smallest).params
    assert {answer.cost.params for answer in query(inherited, max_params=least)} == {least}
    with pytest.raises(RunFolderError, match=r"--max-params 10: the space has nothing below"):
        query(inherited, max_params=10)
    with pytest.raises(RunFolderError, match="is not empty"):
        query(inherited, number=1, to=tmp_path / "model")


def test_a_query_keeps_to_the_latency_that_its_run_was_bound_to(inherited: RunFolder, tmp_path: Path) -> None:
    space = with_supernet().space
    table = made_up_table(space)
    rng = random.Random(0)
    some = [space.decode(space.sample(rng)) for _ in range(50)]
    limit = sorted(sum_of_parts(arch, table) / 1e3 for arch in some)[12]
    run = RunFolder(shutil.copytree(inherited.path, tmp_path / "run"))
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["latency_table"] = table.to_json()
    manifest["space_file"] += f"\nconstraints: {{latency_ms: {{max: {limit}}}}}\n"
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    answers = query(RunFolder.open(run.path), number=10)
    assert len(answers) == 10
    assert all(sum_of_parts(answer.arch, table) / 1e3 <= limit for answer in answers)
    assert any(sum_of_parts(answer.arch, table) / 1e3 > limit for answer in query(inherited, number=10))


def test_the_verb_query_prints_what_it_found(
    inherited: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = tmp_path / "model"
    arguments = ["query", str(inherited.path), "--max-params", "4e4", "--latency", "1000", "--top", "2"]
    assert main([*arguments, "--to", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2
    assert set(found[0]) == {"arch_id", "accuracy", "smoothed", "corrected", "params", "flops", "latency_ms"}
    assert all(answer["params"] <= 4e4 and 0 < answer["latency_ms"] <= 1000 for answer in found)
    assert load_model(model).arch.id == found[0]["arch_id"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"{answer['arch_id']}  {answer['accuracy']:.4f} inherited" in printed for answer in found)
    for limit in ("--max-flops", "--max-params", "--latency"):
        for odd in ("nan", "inf", "-1", "0", "many"):
            with pytest.raises(SystemExit, match="2"):
                main(["query", str(inherited.path), f"{limit}={odd}"])
            assert f"got '{odd}', must be a number above 0" in capsys.readouterr().err


def test_other_weights_to_begin_with_are_refused_for_a_search_that_has_begun(
    inherited: RunFolder, tmp_path: Path
) -> None:
    message = rf"--init {tmp_path}: \S+ began with a fresh initialisation; leave it out"
    with pytest.raises(RunFolderError, match=message):
        search(with_supernet(), out=inherited.path, resume=True, init=tmp_path)


def test_a_query_of_a_run_without_a_supernet_is_refused(finished_run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="has no trained supernet"):
        query(finished_run)
    with pytest.raises(RunFolderError, match="has no trained supernet"):
        evaluate_supernet(finished_run)


def test_what_would_be_too_few_to_judge_by_is_not_trained(inherited: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="7 architectures: must be 8 to 500"):
        evaluate_supernet(inherited, num_archs=7)


def test_a_space_of_too_few_networks_to_judge_by_is_refused_before_any_is_trained(
    inherited: RunFolder, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(inherited.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    file = yaml.safe_load(manifest["space_file"])
    del file["anchors"]
    for stage in file["space"]["stages"]:
        stage.update({key: value[0] for key, value in stage.items() if isinstance(value, list)})
    file["space"]["stages"][2] |= {"kv_stride": [1, 2], "mlp_ratio": [1.0, 2.0, 4.0]}
    (path / "manifest.json").write_text(json.dumps(manifest | {"space_file": yaml.safe_dump(file)}))
    with pytest.raises(RunFolderError, match="its space has 6 architectures, too few to judge by: must be 8 or more"):
        evaluate_supernet(RunFolder.open(path))
    assert not (path / "standalone").exists()


def test_the_page_says_whether_a_supernet_can_be_trusted(inherited: RunFolder) -> None:
    truth = np.linspace(0.5, 0.9, 40)
    costs = np.random.default_rng(0).permutation(40).tolist()
    try:
        for inherited_accuracies, verdict in (
            (truth, "ranks well enough: tau 1.00 (1.00 to 1.00), within FLOPs bins 1.00"),
            (-truth, "does not rank well enough: share of the noise ceiling is -1.00 (-1.00 to -1.00), below 0.8;"),
        ):
            quality = judge_supernet(
                inherited_accuracies.tolist(), np.stack([truth, truth], axis=1), costs, costs,
                origin=Origin(dataset="digits", num_images=360, epochs=2, seed=7),
            )  # fmt: skip
            inherited.supernet.quality_path.write_text(json.dumps(quality.to_json()))
            assert inherited.supernet.quality() == quality
            assert f"this supernet {verdict}" in (page := run_page(inherited))
            assert "by 40 architectures for 2 epochs, on 360 search images of digits, seed 7" in page
        inherited.supernet.quality_path.write_text('{"num_archs": "many"}')
        with pytest.raises(RunFolderError, match=r"quality.json: num_archs: Input should be a valid integer"):
            run_page(inherited)
    finally:
        inherited.supernet.quality_path.unlink()


@pytest.mark.slow
def test_a_supernet_is_judged_by_architectures_trained_by_themselves(
    inherited: RunFolder, capsys: pytest.CaptureFixture
) -> None:
    stop, react = interrupted_at("TrialResult", 2)
    options: dict[str, Any] = {"num_archs": 8, "num_seeds": 2, "epochs": 1, "gpus": 0}
    assert evaluate_supernet(inherited, **options, stop=stop, progress=Watch(react)) is None
    kept = {result.number: result.to_json() for result in inherited.standalone.results()}
    assert 2 <= len(kept) < 16
    arguments = ["supernet", "evaluate", str(inherited.path), "--seeds", "2", "--epochs", "1", "--gpus", "0", "--json"]
    assert main([*arguments, "--archs", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(inherited.supernet.quality_path.read_text())
    assert "cannot tell yet whether this supernet ranks well enough" in (inherited.path / "report.html").read_text()
    assert (found["num_archs"], found["num_seeds"]) == (8, 2)
    assert found["origin"] == {"dataset": "digits", "num_images": 360, "epochs": 1, "seed": 0}
    assert set(found["rankers"]) == {"inherited", "accuracy", "params", "flops"}
    assert found["gap"] == pytest.approx(found["standalone"] - found["inherited"])
    assert np.mean([arch["standalone"] for arch in found["archs"]]) == pytest.approx(found["standalone"])
    assert np.mean([arch["inherited"] for arch in found["archs"]]) == pytest.approx(found["inherited"], abs=1e-3)
    alone = inherited.standalone
    assert len(alone.results()) == 16
    first = {result.number: result.to_json() for result in alone.results()}
    assert first == first | kept
    assert main([*arguments, "--gpus-per-trial", "0.5"]) == 2
    assert "--gpus-per-trial: got 0.5 with --gpus 0; drop one of the two" in capsys.readouterr().err
    assert main([*arguments, "--archs", "9"]) == 0
    results = {result.number: result.to_json() for result in alone.results()}
    assert len(results) == 18
    assert results == results | first
    with pytest.raises(RunFolderError, match="holds trainings of 1 epochs"):
        evaluate_supernet(inherited, epochs=2)


# --- without Ray ----------------------------------------------------------------------------------------------------


def candidate(number: int, accuracy: float, params: int, flops: int, num_images: int = 100) -> Candidate:
    space = with_supernet().space
    genome, left = list(space.encode(space.smallest)), number
    for position in range(len(genome)):  # a network of its own for each number
        left, genome[position] = divmod(left, len(space.genes[position].options))
    cost = Cost(params=params, flops=flops)
    return Candidate(number=number, arch=space.decode(tuple(genome)), cost=cost, accuracy=accuracy,
                     num_images=num_images, seconds=1.0)  # fmt: skip


def test_what_a_candidate_has_to_beat_is_what_costs_no_more() -> None:
    bars = _Bars([candidate(0, 0.8, 10, 10), candidate(1, 0.99, 5, 5, num_images=50)])
    assert bars.below(Cost(params=9, flops=20), before=9) is None
    assert bars.below(Cost(params=10, flops=10), before=9) == 0.8
    bars.add(candidate(2, 0.9, 20, 8))
    assert bars.below(Cost(params=20, flops=10), before=9) == 0.9
    assert bars.below(Cost(params=19, flops=10), before=9) == 0.8
    assert bars.below(Cost(params=20, flops=10), before=2) == 0.8


def test_heirs_are_the_best_for_their_cost_and_last_those_that_were_given_up() -> None:
    experiment = with_supernet()
    some = [
        candidate(0, 0.8, 10, 10),
        candidate(1, 0.7, 30, 30),
        candidate(2, 0.9, 40, 40),
        candidate(3, 0.95, 1, 1, 50),
    ]
    found = heirs(experiment, some)
    assert list(found.values()) == [experiment.space.encode(some[index].arch) for index in (2, 0, 1, 3)]
    assert list(found) == ["candidate 2", "candidate 0", "candidate 1", "candidate 3"]
    assert heirs(experiment, []) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 2}, "search.candidates: got 2, must be at least trials, 3"),
        (
            {"confirm": {"seeds": 2}, "epochs": 0},
            "search.confirm: trains the best again, which training.epochs 0 leaves nothing of",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceFileError, match=message):
        with_supernet(**settings)


def test_a_perfect_ranker_is_trusted_and_one_by_size_is_not() -> None:
    rng = np.random.default_rng(0)
    flops = np.sort(rng.uniform(1, 10, 40))
    truth = 0.5 + 0.02 * flops + 0.05 * rng.normal(size=40)
    standalone = truth[:, None] + 0.005 * rng.normal(size=(40, 2))
    params = [int(1e5 * value) for value in flops]
    good = judge_supernet((truth - 0.02).tolist(), standalone, params, [int(1e6 * value) for value in flops])
    assert good.faults == []
    ours = good.rankers["inherited"]
    assert ours.overall.value > 0.9
    assert ours.overall.low <= ours.overall.value <= ours.overall.high
    assert ours.precision_at_10 >= 0.75
    assert ours.regret_at[10] == 0
    assert good.to_json()["gap"] == pytest.approx(0.02, abs=0.003)
    assert good.ceiling is not None
    assert good.ceiling.value > 0.85
    by_size = judge_supernet(flops.tolist(), standalone, params, [int(1e6 * value) for value in flops])
    assert by_size.verdict == "does not rank well enough"
    assert any("within FLOPs bins" in fault for fault in by_size.faults)
    assert any("no better than flops" in fault for fault in by_size.faults)
    alone = judge_supernet(truth.tolist(), standalone[:, :1], params, [int(1e6 * value) for value in flops])
    assert alone.ceiling is None
    assert "noise ceiling unknown with one seed" in quality_verdict(alone)
    own = np.array([0.5, 0.6, 0.55, 0.65, 0.7, 0.8, 0.75, 0.85])
    ours = [0.5, 0.6, 0.55, 0.65, 0.7, 0.8, 0.86, 0.74]
    few = judge_supernet(ours, np.stack([own, own], axis=1), [3, 1, 4, 1, 5, 9, 2, 6], list(range(8)))
    assert few.rankers["inherited"].within_bins.value == 0.5
    assert few.verdict == "cannot tell yet"
    assert "8 architectures are too few to tell its tau within FLOPs bins (0.50)" in few.faults


@pytest.mark.parametrize(("slots", "nodes", "workers", "cpus"), [(2, 1, 2, 1), (64, 1, 4, 16), (64, 4, 4, 1)])
def test_without_gpus_a_supernet_is_trained_by_as_many_workers_as_have_images(
    slots: int, nodes: int, workers: int, cpus: float
) -> None:
    resources = Resources(num_slots=slots, cpus_per_trial=1, gpus_per_trial=0, device="cpu", num_nodes=nodes)
    assert supernet_workers(resources, batch_size=128) == (workers, cpus)
