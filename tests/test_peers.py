"""Peers on small tables: Ray Tune's own searcher and scheduler, without a cluster."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from optuna.trial import TrialState

import ask_tell_peers
import crossing_table
import peers
from attained import attained_figure
from cvt_nas.bench import Settings, Table, load_table, methods_of, simulate
from test_bench import Watched, frame
from traces import read_traces
from vit_bench_101 import frame_of

METRICS = ("accuracy", "flops")


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    frame(num_epochs=9).to_csv(path, index=False)
    return path


@pytest.fixture
def table(table_file: Path) -> Table:
    return load_table(table_file)


def test_optuna_hears_of_a_stopped_trial_as_complete_with_the_values_of_its_last_epoch(table: Table) -> None:
    settings = Settings(metrics=METRICS, budget=150)
    search = peers.Peer("ray-optuna+asha").start(table, settings, seed=0)
    assert isinstance(search, peers.RayTune)
    watched = Watched(search)
    simulate(table, watched, settings, seed=0)
    told = {trial.number: trial for trial in search.searcher._ot_study.trials if trial.state != TrialState.RUNNING}
    assert sorted(told) == sorted(ended.number for ended in watched.outcomes)
    assert all(trial.state == TrialState.COMPLETE for trial in told.values())
    assert all(told[ended.number].values == [ended.curve[-1], ended.cost.flops] for ended in watched.outcomes)
    # ASHA's rungs, and nothing between them
    assert {ended.epochs for ended in watched.outcomes if ended.status == "stopped"} == {1, 3}
    assert {ended.epochs for ended in watched.outcomes if ended.status == "complete"} == {9}


def test_a_search_by_ray_tune_keeps_to_its_budget_and_is_a_function_of_its_seed(table: Table) -> None:
    settings = Settings(metrics=METRICS, budget=150, num_workers=3)
    method = peers.Peer("ray-optuna+asha")
    first, second, other = (simulate(table, method, settings, seed=seed) for seed in (5, 5, 6))
    assert (first.trained, first.num_trials, first.num_duplicates) == (
        second.trained, second.num_trials, second.num_duplicates
    )  # fmt: skip
    assert first.trained != other.trained
    assert 0 < len(first.trained) < first.num_trials
    assert all(spent <= 150 for spent, _ in first.trained)


def test_without_a_scheduler_ray_tune_trains_every_trial_in_full(table: Table) -> None:
    trace = simulate(table, peers.Peer("ray-optuna+fifo"), Settings(metrics=METRICS, budget=90, num_workers=2), seed=0)
    assert len(trace.trained) >= 9
    assert trace.num_trials <= len(trace.trained) + 2


HUB = '''
DIRECTIONS = {"accuracy": "MAXIMIZE", "flops": "MINIMIZE"}


class MultiMetricPruner:
    """Stands for OptunaHub's, whose registry is not at hand: it prunes even trials after their third epoch."""

    def __init__(self, base_pruner, *, metric_directions, joint):
        assert joint and {name: of.name for name, of in metric_directions.items()} == DIRECTIONS

    def prune(self, study, trial):
        return trial.number % 2 == 0 and max(map(int, trial.user_attrs["reported"])) == 3


class MultiMetricPrunerTrial:
    def __init__(self, trial):
        self._trial = trial

    def report(self, values, step):
        assert list(values) == ["accuracy", "flops"]
        self._trial.set_user_attr("reported", {**self._trial.user_attrs.get("reported", {}), str(step): values})

    def should_prune(self):
        return self._trial.study.pruner.prune(self._trial.study, self._trial._get_latest_trial())
'''


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_pruner_of_optunahub_hears_all_objectives_and_its_trials_end_as_pruned(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    module = tmp_path / "pruners" / "multi_metric_pruner"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(HUB)
    monkeypatch.setenv("OPTUNAHUB_REGISTRY", str(tmp_path))
    settings = Settings(metrics=METRICS, budget=90, num_workers=2)
    search = peers.Peer(f"optunahub-{sampler}").start(table, settings, seed=0)
    assert isinstance(search, peers.MultiMetric)
    watched = Watched(search)
    simulate(table, watched, settings, seed=0)
    trials = {trial.number: trial for trial in search._study.trials}
    assert {ended.status for ended in watched.outcomes} == {"complete", "stopped"}
    for ended in watched.outcomes:
        assert ended.epochs == (3 if ended.number % 2 == 0 else 9)
        of = trials[ended.number]
        assert of.state == (TrialState.PRUNED if ended.status == "stopped" else TrialState.COMPLETE)
        assert of.values == (None if ended.status == "stopped" else [ended.curve[-1], ended.cost.flops])
        reported = {int(step): values["accuracy"] for step, values in of.user_attrs["reported"].items()}
        assert reported == {epoch: ended.curve[epoch - 1] for epoch in range(1, min(ended.epochs, 8) + 1)}


def test_a_scheduler_of_syne_tune_is_called_as_its_tuner_calls_it(table: Table) -> None:
    calls: list[tuple[str, int, float]] = []

    class Scheduler:
        """Stops every other trial after its second epoch, and none at the last."""

        def suggest(self) -> Any:
            return SimpleNamespace(config={"g0": 9, "g1": 0, "c2": 1})

        def on_trial_add(self, trial: Any) -> None:
            calls.append(("add", trial.trial_id, 0))

        def on_trial_result(self, trial: Any, result: dict[str, float]) -> str:
            assert result["flops"] == pytest.approx(50_001 / int(1.02 * 50_001))
            calls.append(("result", trial.trial_id, result["training_iteration"]))
            return "STOP" if trial.trial_id % 2 and result["training_iteration"] == 2 else "CONTINUE"

        def on_trial_remove(self, trial: Any) -> None:
            calls.append(("remove", trial.trial_id, trial.last_result["training_iteration"]))

        def on_trial_complete(self, trial: Any, result: dict[str, float]) -> None:
            calls.append(("complete", trial.trial_id, result["training_iteration"]))

    watched = Watched(peers.SyneTune(table, METRICS, Scheduler(), seed=0))
    simulate(table, watched, Settings(metrics=METRICS, budget=11, num_workers=1), seed=0)
    assert calls[:11] == [("add", 0, 0), *(("result", 0, epoch) for epoch in range(1, 10)), ("complete", 0, 9)]
    assert calls[11:] == [("add", 1, 0), ("result", 1, 1), ("result", 1, 2), ("remove", 1, 2)]


def test_an_optimiser_that_is_asked_again_goes_on_with_the_trial_from_its_checkpoint(table: Table) -> None:
    answers = list[tuple[str, list[float]]]()

    class InTwoParts:
        """Asks for each network up to its third epoch, and then for the rest."""

        def ask(self, number: int) -> ask_tell_peers.Question | None:
            if len(answers) % 2 == 0:
                return ask_tell_peers.Question(key=f"{number} begins", genome=(number, 0, 1), epochs=3)
            last = number - 1
            return ask_tell_peers.Question(key=f"{last} goes on", genome=(last, 0, 1), number=last)

        def tell(self, key: str, losses: Sequence[float]) -> None:
            answers.append((key, list(losses)))

    settings = Settings(metrics=METRICS, budget=18, num_workers=1)
    watched = Watched(ask_tell_peers.AskTell(table, settings, InTwoParts(), seed=0))
    trace = simulate(table, watched, settings, seed=0)
    assert [key for key, _ in answers] == ["0 begins", "0 goes on", "1 begins", "1 goes on"]
    assert trace.num_trials == 2
    assert [spent for spent, _ in trace.trained] == [9, 18]
    for ended, early, late in zip(watched.outcomes, answers[::2], answers[1::2], strict=True):
        share = ended.cost.flops / table.cost_range[1].flops
        assert early[1] == pytest.approx([1 - ended.curve[2], share])
        assert late[1] == pytest.approx([1 - ended.curve[-1], share])


def test_peers_are_compared_with_our_own_methods_pair_by_pair(
    table_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--table", str(table_file), "--peers", "ray-optuna+asha", "--searcher", "random", "--budget", "60",
                 "--seeds", "2", "--json"]  # fmt: skip
    peers.main(arguments)
    methods = json.loads(capsys.readouterr().out)["methods"]
    assert set(methods) == {"random+none", "ray-optuna+asha"}
    assert "random+none" in methods["ray-optuna+asha"]["p_value_against"]
    assert len(methods["ray-optuna+asha"]["duplicates"]) == 2


def test_a_peer_that_is_not_known_is_one_line(table_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(["--table", str(table_file), "--budget", "10", "--peers", "hyperband"])
    assert "--peers: got hyperband, must be of ray-optuna+asha, ray-optuna+fifo" in capsys.readouterr().err


def _random_searches(table_file: Path, keep: Path, seeds: int, *more: str) -> list[str]:
    return ["--table", str(table_file), "--peers", "", "--searcher", "random", "--budget", "60", "--json", "--keep",
            str(keep), "--seeds", str(seeds), *more]  # fmt: skip


def test_searches_that_are_kept_are_not_run_again_and_count_as_they_did(
    table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = tmp_path / "kept" / "searches.jsonl"
    peers.main(_random_searches(table_file, keep, 2))
    before = json.loads(capsys.readouterr().out)["methods"]["random+none"]
    whole = keep.read_text()
    keep.write_text(whole + '{"method":"random+none","seed":2,"trai')  # killed while it wrote
    peers.main(_random_searches(table_file, keep, 3))
    again = capsys.readouterr()
    assert [line.split(",")[0] for line in again.err.splitlines()] == ["seed 2"]
    after = json.loads(again.out)["methods"]["random+none"]
    for name in ("log_area", "trials", "duplicates"):
        assert after[name][:2] == before[name]
        assert len(after[name]) == 3
    assert keep.read_text().startswith(whole)
    peers.main(_random_searches(table_file, keep, 3))
    last = capsys.readouterr()
    assert last.err == ""
    found = json.loads(last.out)["methods"]["random+none"]
    assert found | {"ask_ms": None} == after | {"ask_ms": None}  # times are kept to a tenth of a millisecond


def test_searches_of_other_settings_or_of_another_table_are_not_taken_for_these(
    table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = tmp_path / "searches.jsonl"
    peers.main(_random_searches(table_file, keep, 1))
    with pytest.raises(SystemExit):
        peers.main(_random_searches(table_file, keep, 1, "--workers", "2"))
    assert f"--keep {keep}: keeps searches of other num_workers; name another file" in capsys.readouterr().err
    other = tmp_path / "other.csv"
    frame(num_epochs=9).assign(acc_9=0.5).to_csv(other, index=False)
    with pytest.raises(SystemExit):
        peers.main(_random_searches(other, keep, 1))
    assert f"--keep {keep}: keeps searches of other table; name another file" in capsys.readouterr().err


def test_searches_in_the_repository_are_of_the_tables_as_they_are_here(tmp_path: Path) -> None:
    kept, crossing = Path(__file__).parents[1] / "results" / "peers_compared", tmp_path / "crossing.parquet"
    crossing_table.main(["--to", str(crossing)])
    of_crossing = read_traces(kept / "crossing.jsonl", load_table(crossing), Settings(metrics=METRICS, budget=640))
    settings = Settings(metrics=("accuracy", "params", "flops"), budget=480)
    of_cvt = read_traces(kept / "cvt-bench.jsonl", load_table("cvt-bench"), settings)
    assert {("surrogate+none", seed) for seed in range(10)} <= of_crossing.keys() & of_cvt.keys()


def test_every_search_attains_the_lowest_surface_and_none_what_lies_above_the_highest(table: Table) -> None:
    settings = Settings(metrics=METRICS, budget=60)
    (random,) = methods_of(["random"], ["none"])
    traces = {"random": [simulate(table, random, settings, seed=seed) for seed in range(5)]}
    figure = attained_figure(table, settings, {**traces, "a peer": traces["random"][:3]}, title="made up")
    accuracies = table.true_accuracies()
    for name, searches in (("random", traces["random"]), ("a peer", traces["random"][:3])):
        lines: list[Any] = [*figure.select_traces({"legendgroup": name})]
        best, worst, middle = (line for line in lines if line.hoverinfo != "skip")
        for surface, at_least in ((best, 1), (middle, (len(searches) + 1) // 2), (worst, len(searches))):
            for cost, accuracy in zip(surface.x, surface.y, strict=True):
                reached = [
                    max((accuracies[row] for _, row in trace.trained if table.costs[row].flops <= cost), default=-1.0)
                    for trace in searches
                ]
                assert np.sort(reached)[::-1][at_least - 1] == accuracy


def test_attained_fronts_are_drawn_of_two_methods_and_in_formats_that_are_known(
    table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / "attained.html"
    arguments = ["--table", str(table_file), "--budget", "60", "--seeds", "2", "--peers", "ray-optuna+fifo"]
    peers.main([*arguments, "--searcher", "random", "--attainment", str(drawn)])
    assert "random+none in blue" in drawn.read_text()
    for more, message in (
        (["--attainment", str(drawn)], "--attainment: compares two methods or more, got 1"),
        (["--attainment", "front.jpeg"], "--attainment: got front.jpeg, must end in .html, .png, .svg, .pdf"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            peers.main([*arguments, *more])
        assert message in capsys.readouterr().err


def test_a_table_of_vit_bench_has_the_accuracies_without_distillation_as_shares(tmp_path: Path) -> None:
    row = {"g0": 1, "g1": 0, "params": 893_828, "flops": 269_217_920, "c100_base_acc": 68.33, "c100_kd_acc": 72.5}
    frame_of(pd.DataFrame([row]), "c100").to_csv(tmp_path / "pit.csv", index=False)
    assert load_table(tmp_path / "pit.csv").true_accuracies().tolist() == [pytest.approx(0.6833)]
