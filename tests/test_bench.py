"""Searches on small tables."""

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.study import StudyDirection

from cvt_nas.bench import (
    Method,
    Settings,
    Table,
    Trace,
    anytime_hypervolume,
    load_table,
    methods_of,
    ready_tables,
    simulate,
    summarise,
)
from cvt_nas.cli import main
from cvt_nas.config import load_experiment
from cvt_nas.errors import TableError
from cvt_nas.propose.asha import Decision
from cvt_nas.propose.simulation import Outcome, Search
from cvt_nas.propose.study import Proposal
from cvt_nas.results import hypervolume
from cvt_nas.results.rungs import rung_epochs

METRICS = ("accuracy", "flops")


def frame(num_epochs: int = 4, num_seeds: int = 2) -> pd.DataFrame:
    """A table of 60 networks: larger ones are better, with a gene that costs nothing and helps."""
    rng, rows = random.Random(0), []
    for width in range(10):
        for gift in range(3):
            for kind in range(2):
                final = 0.5 + 0.03 * width + 0.05 * gift
                for seed in range(num_seeds):
                    noise = rng.gauss(0, 0.005)
                    curve = {f"acc_{e}": final * (1 - 0.5 / (1 + e)) + noise for e in range(1, num_epochs + 1)}
                    rows.append({
                        "g0": width, "g1": gift, "c2": kind, "seed": seed, "params": 1000 * (width + 1) + kind,
                        "flops": 5000 * (width + 1) + kind, "seconds_per_epoch": 1.0 + width, **curve,
                    })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    frame().to_csv(path, index=False)
    return path


@pytest.fixture
def table(table_file: Path) -> Table:
    return load_table(table_file)


def method(sampler: str = "random", scheduler: str = "none", **more: Any) -> Method:
    return Method(sampler=sampler, scheduler=scheduler, **more)


def test_missing_seconds_are_interpolated_over_flops(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "g0": [0, 1, 2],
            "params": [1, 2, 3],
            "flops": [10, 15, 30],
            "acc_1": 0.5,
            "seconds_per_epoch": [2.0, None, 6.0],
        }
    )
    rows.to_csv(tmp_path / "table.csv", index=False)
    assert load_table(tmp_path / "table.csv").seconds_per_epoch.tolist() == [2.0, 3.0, 6.0]
    rows.drop(columns="seconds_per_epoch").to_csv(tmp_path / "untimed.csv", index=False)
    assert load_table(tmp_path / "untimed.csv").seconds_per_epoch.tolist() == [1.0, 1.0, 1.0]


def test_a_table_is_a_space_of_its_rows(table: Table) -> None:
    assert len(table.genomes) == 60
    assert [gene.is_ordinal for gene in table.genes] == [True, True, False]
    assert [len(gene.options) for gene in table.genes] == [10, 3, 2]
    assert table.cost((4, 1, 0)).flops == 25_000
    assert table.curves[table.rows[4, 1, 0]].shape == (2, 4)
    assert table.num_epochs == 4


def test_a_genome_that_is_no_row_stands_for_the_nearest(tmp_path: Path) -> None:
    holes = frame()
    path = tmp_path / "holes.parquet"
    holes[~((holes["g0"] == 4) & (holes["c2"] == 0))].to_parquet(path)
    assert load_table(path).canonical((4, 1, 0)) in {(3, 1, 0), (5, 1, 0)}
    assert load_table(path).canonical((5, 1, 0)) == (5, 1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="flops"), "lacks the columns flops"),
        (lambda f: f.drop(columns=["g0", "g1", "c2"]), "needs a column for each gene"),
        (lambda f: f.drop(columns="g1"), "got the genes g0, c2, must be numbered from 0 to 1"),
        (lambda f: pd.concat([f, f[["g1"]]], axis=1), "has the column g1 more than once"),
        (lambda f: f.drop(columns="acc_2"), "got acc_1, acc_3, acc_4, must be acc_1 to acc_3"),
        (lambda f: f.assign(acc_1=97.5), r"accuracies must be fractions in \[0, 1\]"),
        (lambda f: f.assign(acc_1=np.nan), r"accuracies must be fractions in \[0, 1\]"),
        (lambda f: f.assign(g0="wide"), "could not convert string to float: 'wide'"),
        (lambda f: f.assign(g0=f.g0.where(f.g0 != 3)), "row 37: g0: got nan, must be a whole number"),
        (lambda f: f.assign(g0=10**9), "g0: got 1000000000, must be an option index from 0, below 1,000"),
        (lambda f: f.assign(params=0), "params and flops above 0"),
        (lambda f: f.assign(params=f.params / 1000), "row 3: params: got 1.001, must be a whole number"),
        (
            lambda f: f.assign(flops=f.flops + f.seed),
            "rows 1, 2 have the same genes, but not the same params and flops",
        ),
        (lambda f: pd.concat([f, f.head(1)]), "row 121 has the genes and the seed of an earlier row"),
        (lambda f: f.assign(seconds_per_epoch=-1.0), "seconds_per_epoch must be numbers above 0, or empty"),
        (lambda f: f.assign(acc_4=0.0), "got 0 for every accuracy in acc_4"),
        (lambda f: f.iloc[:0], "has no rows"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "bad.csv"
    change(frame()).to_csv(path, index=False)
    with pytest.raises(TableError, match=message):
        load_table(path)


def test_the_reference_lies_beyond_costs_that_are_small_numbers(tmp_path: Path) -> None:
    path = tmp_path / "millions.csv"
    frame().assign(params=3, flops=3).to_csv(path, index=False)
    table = load_table(path)
    assert table.cost_range[1].flops == 4
    assert table.hypervolume(METRICS) == pytest.approx(table.true_accuracies().max() / 4)


@pytest.mark.filterwarnings("error")  # 0 / 0
def test_a_choice_with_one_option_leaves_a_search_as_it_is(tmp_path: Path) -> None:
    settings = Settings(metrics=METRICS, budget=80)
    traces = []
    for name, more in {"without": {}, "with": {"g3": 0}}.items():
        frame().assign(**more).to_csv(tmp_path / f"{name}.csv", index=False)
        traces.append(simulate(load_table(tmp_path / f"{name}.csv"), method("surrogate"), settings, seed=0).trained)
    assert traces[0] == traces[1]


def test_a_method_that_is_named_twice_runs_once() -> None:
    found = methods_of(["random", "tpe", "random"], ["pareto-asha", "pareto-asha:promote"])
    assert [str(method) for method in found] == ["random+pareto-asha", "tpe+pareto-asha"]


def test_a_table_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read"):
        load_table(tmp_path / "nothing.csv")


def test_a_name_that_is_no_ready_table_says_which_there_are() -> None:
    with pytest.raises(TableError, match=r"cvt-bunch: .* tables are cvt-bench, cvt-bench-blocks, "):
        load_table("cvt-bunch")


def test_the_help_names_every_ready_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # lines break at hyphens, too
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "--help"])
    names = "cvt-bench, cvt-bench-blocks, cvt-bench-colour, cvt-bench-strides"
    assert ", ".join(ready_tables()) == names
    assert f"CSV or parquet, or a ready one: {names}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cvt-bench", "cvt-bench-blocks", "cvt-bench-colour", "cvt-bench-strides"])
def test_a_ready_table_is_of_networks_of_its_space(name: str) -> None:
    table, space = load_table(name), load_experiment(ready_tables()[name].with_suffix(".yaml")).space
    assert [gene.options for gene in table.genes] == [tuple(range(len(gene.options))) for gene in space.genes]
    assert [gene.is_ordinal for gene in table.genes] == [gene.is_ordinal for gene in space.genes]
    for genome in table.genomes[::30]:
        assert table.cost(genome) == space.cost(genome)


@pytest.fixture(scope="module")
def cvt_bench() -> Any:
    import optunahub

    return optunahub.load_local_module("cvt_bench", registry_root=str(Path(__file__).parents[1] / "benchmarks"))


class TestAsAProblemOfOptunaHub:
    def test_a_study_gets_what_the_table_has(self, cvt_bench: Any) -> None:
        problem = cvt_bench.CvTBench(("flops", "accuracy"), seed=1)
        study = optuna.create_study(directions=problem.directions, sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(problem, n_trials=5)
        table = load_table("cvt-bench")
        assert problem.directions == study.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
        for trial in study.trials:
            row = table.rows[table.canonical(list(trial.params.values()))]
            curves = table.curves[row]
            expected = curves[1] if len(curves) > 1 else curves.mean(axis=0)
            assert trial.values == [table.costs[row].flops, expected[-1]]
            assert problem.curve(trial.params) == expected.tolist()

    def test_the_whole_table_has_all_of_the_hypervolume_and_a_part_has_less(self, cvt_bench: Any) -> None:
        problem = cvt_bench.CvTBench()
        every = [dict(zip(problem.options, genome, strict=True)) for genome in problem.table.genomes]
        assert problem.share_of_hypervolume(every) == pytest.approx(1.0)
        assert 0.5 < problem.share_of_hypervolume(every[:3]) < 1.0
        assert problem.share_of_hypervolume([]) == 0.0

    def test_an_unknown_objective_or_table_and_a_negative_seed_are_refused(self, cvt_bench: Any) -> None:
        with pytest.raises(ValueError, match="objectives: got latency, must be accuracy, params, flops"):
            cvt_bench.CvTBench(("accuracy", "latency"))
        with pytest.raises(ValueError, match="seed: got -1, must be None or a whole number from 0"):
            cvt_bench.CvTBench(seed=-1)
        with pytest.raises(ValueError, match="table: got .mine.parquet., must be cvt-bench"):
            cvt_bench.CvTBench(table="mine.parquet")


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        *itertools.product(["surrogate", "random"], ["none", "asha", "pareto-asha"]),
        ("surrogate", "freeze-thaw"),
    ],
)
def test_a_simulation_spends_its_budget_repeats_itself_and_proposes_nothing_twice(
    table: Table, sampler: str, scheduler: str
) -> None:
    settings = Settings(metrics=METRICS, budget=80)
    first, second, other = (simulate(table, method(sampler, scheduler), settings, seed=seed) for seed in (5, 5, 6))
    assert first.trained == second.trained != other.trained
    assert first.num_duplicates == 0
    assert all(spent <= 80 for spent, _ in first.trained)
    if scheduler == "none":
        assert len(first.trained) >= (80 - 4 * 4) / 4
    else:
        assert 0 < len(first.trained) < first.num_trials


class Watched:
    """A search that was started before: how often it asked for each trial, and all that it was told."""

    def __init__(self, search: Search) -> None:
        self.search, self.asked, self.outcomes = search, Counter[int](), list[Outcome]()

    def start(self, table: Table, settings: Settings, *, seed: int) -> Search:
        return self

    def ask(self) -> Proposal | None:
        proposal = self.search.ask()
        if proposal is not None:
            self.asked[proposal.number] += 1
        return proposal

    def decide(self, proposal: Proposal, curve: tuple[float, ...], *, train_seconds: float) -> Decision:
        return self.search.decide(proposal, curve, train_seconds=train_seconds)

    def tell(self, ended: Outcome) -> None:
        self.outcomes.append(ended)
        self.search.tell(ended)


class PausesFirst:
    """Proposes the rows in their order; pauses trial 0 after an epoch, and goes on with it after trial 1."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int]] = []
        self.outcomes: list[Outcome] = []

    def start(self, table: Table, settings: Settings, *, seed: int) -> Search:
        self.proposals = [
            Proposal(number=number, genome=genome, cost=table.cost(genome), seed=number)
            for number, genome in enumerate(table.genomes)
        ]
        self.order = [0, 1, 0, 2]
        return self

    def ask(self) -> Proposal | None:
        return self.proposals[self.order.pop(0)] if self.order else None

    def decide(self, proposal: Proposal, curve: tuple[float, ...], *, train_seconds: float) -> Decision:
        assert train_seconds == pytest.approx(len(curve))
        self.reports.append((proposal.number, len(curve)))
        if (proposal.number, len(curve)) == (0, 1):
            return "pause"
        return "stop" if proposal.number == 2 else "go"

    def tell(self, ended: Outcome) -> None:
        self.outcomes.append(ended)


def test_a_search_of_ones_own_is_asked_at_a_free_worker_and_told_each_epoch(table: Table) -> None:
    search = PausesFirst()
    trace = simulate(table, search, Settings(metrics=METRICS, budget=100, num_workers=1), seed=0)
    assert search.reports == [(0, 1), (1, 1), (1, 2), (1, 3), (0, 2), (0, 3), (2, 1)]
    assert [(ended.number, ended.status, ended.epochs) for ended in search.outcomes] == [
        (1, "complete", 4), (0, "complete", 4), (2, "stopped", 1),
    ]  # fmt: skip
    assert all(len(ended.curve) == ended.epochs for ended in search.outcomes)
    assert trace.trained == ((5, 1), (8, 0))
    # a trial that goes on is no new one
    assert (trace.num_trials, len(trace.ask_seconds), trace.num_duplicates) == (3, 3, 0)


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_promotion_goes_on_with_trials_that_were_paused(table: Table, mode: Literal["stop", "promote"]) -> None:
    settings = Settings(metrics=METRICS, budget=120)
    search = Watched(method("random", "pareto-asha", mode=mode).start(table, settings, seed=0))
    trace = simulate(table, search, settings, seed=0)
    assert trace.num_trials == len(search.asked)
    promoted = {number for number, count in search.asked.items() if count > 1}
    complete = {ended.number for ended in search.outcomes if ended.status == "complete"}
    if mode == "stop":
        assert not promoted
    else:
        assert promoted & complete
    assert trace.num_duplicates == 0


def test_a_space_that_is_used_up_ends_a_simulation(table: Table) -> None:
    trace = simulate(table, method("random"), Settings(metrics=METRICS, budget=1000), seed=0)
    assert len(trace.trained) == len(table.genomes)


def test_optuna_as_it_ships_repeats_itself_and_ours_does_not(table: Table) -> None:
    settings = Settings(metrics=METRICS, budget=160)
    assert simulate(table, method("optuna-random"), settings, seed=0).num_duplicates > 0
    assert simulate(table, method("random"), settings, seed=0).num_duplicates == 0


def test_hypervolume_is_of_the_true_accuracies_and_a_share_of_the_whole_tables(table: Table) -> None:
    settings = Settings(metrics=METRICS, budget=400)
    losses = table.losses(METRICS)
    trace = Trace(
        trained=((4, 7), (8, 20), *((12 + 4 * row, row) for row in range(60))), num_trials=62, num_duplicates=2,
        ask_seconds=(),
    )  # fmt: skip
    values = anytime_hypervolume(table, trace, settings)
    assert values[:3].tolist() == [0.0] * 3
    assert values[3] == pytest.approx(hypervolume(losses[[7]]) / hypervolume(losses))
    assert values[7] == pytest.approx(hypervolume(losses[[7, 20]]) / hypervolume(losses))
    assert values[-1] == pytest.approx(1.0)
    assert (np.diff(values) >= 0).all()


def test_a_summary_holds_one_figure_a_seed(table: Table) -> None:
    settings = Settings(metrics=METRICS, budget=40)
    runs = []
    for seed in range(6):
        for which in (method("surrogate"), method("random")):
            trace = simulate(table, which, settings, seed=seed)
            runs.append((which, seed, anytime_hypervolume(table, trace, settings), trace))
    summary = summarise(runs, settings)["methods"]
    assert set(summary) == {"surrogate+none", "random+none"}
    ours = summary["surrogate+none"]
    assert list(ours["hypervolume"]) == ["0.01", "0.02", "0.05", "0.1", "0.125", "0.2", "0.25", "0.5", "1"]
    assert all(len(values) == 6 for values in ours["hypervolume"].values())
    assert len(ours["epochs_to"]["0.95"]) == len(ours["duplicates"]) == 6
    assert 0 < ours["p_value_against"]["random+none"] <= 1


def test_a_summary_says_what_a_run_had_after_how_much() -> None:
    settings = Settings(metrics=METRICS, budget=8)
    trace = Trace(trained=(), num_trials=5, num_duplicates=1, ask_seconds=(0.1, 0.3, 0.2))
    values = np.array([0, 0.5, 0.5, 0.9, 0.9, 0.95, 0.95, 1.0])
    (found,) = summarise([(method("random"), 0, values, trace)], settings)["methods"].values()
    assert found["hypervolume"] == {
        **{share: [0] for share in ("0.01", "0.02", "0.05", "0.1", "0.125", "0.2")},
        "0.25": [0.5], "0.5": [0.9], "1": [1],
    }  # fmt: skip
    assert [found["epochs_to"][level] for level in ("0.9", "0.95", "0.99")] == [[4], [6], [8]]
    area = 0.5 * math.log(4 / 2) + 0.9 * math.log(6 / 4) + 0.95 * math.log(8 / 6) + math.log(9 / 8)
    assert found["log_area"] == [pytest.approx(area / math.log(9), abs=1e-6)]
    assert (found["duplicates"], found["trials"]) == ([1], [5])
    assert found["ask_ms"] == {"median": 200, "max": 300}


def test_bench_prints_the_names_that_scripts_rely_on(
    table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "plot.html"
    arguments = ["bench", "--table", str(table_file), "--searcher", "random,tpe", "--scheduler", "pareto-asha:stop",
                 "--budget", "12", "--seeds", "2", "--plot", str(page), "--json"]  # fmt: skip
    assert main(arguments) == 0
    methods = json.loads(capsys.readouterr().out)["methods"]
    assert set(methods) == {"random+pareto-asha:stop", "tpe+pareto-asha:stop"}
    assert set(methods["random+pareto-asha:stop"]) >= {"hypervolume", "epochs_to", "duplicates", "ask_ms"}
    assert "tpe+pareto-asha:stop" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--searcher", "grid"],
            "--searcher: got grid, must be one of surrogate, tpe, nsga2, gp, random, optuna-random",
        ),
        (["--scheduler", "hyperband"], "--scheduler: got hyperband, must be one of freeze-thaw, pareto-asha, asha"),
        (["--searcher", "tpe", "--scheduler", "freeze-thaw"], "--scheduler freeze-thaw: goes by what the surrogate"),
        (["--objectives", "accuracy"], "--objectives: got accuracy, must be accuracy and params, flops or both"),
        (["--objectives", "accuracy,latency_ms"], "--objectives: got latency_ms, must be of accuracy, params, flops\n"),
        (["--budget", "3"], "--budget 3: a full training takes 4 epochs"),
        (["--plot", "nowhere/plot.html"], "--plot nowhere/plot.html: cannot be written: there is no folder nowhere"),
    ],
)
def test_a_mistake_of_a_comparison_is_one_line(
    table_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bench", "--table", str(table_file), "--budget", "10", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_rungs_that_cannot_be_are_refused_by_the_verb(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--table", "cvt-bench-colour", "--budget", "16", "--reduction-factor", "1"])
    assert "argument --reduction-factor: got '1', must be at least 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reduction-factor", "2"], "--reduction-factor: has no effect: the scheduler is none"),
        (["--scheduler", "asha", "--grace-period", "20"],
         "--grace-period: has no effect: a training of 8 epochs ends before the first rung"),
        (["--scheduler", "asha", "--grace-period", "2"], None),
    ],
)  # fmt: skip
def test_settings_of_rungs_without_effect_are_named(
    words: list[str], said: str | None, capsys: pytest.CaptureFixture
) -> None:
    call = ["bench", "--table", "cvt-bench-colour", "--searcher", "random", "--budget", "16", "--seeds", "1"]
    assert main([*call, *words]) == 0
    found = capsys.readouterr()
    assert (said in found.err) if said else ("no effect" not in found.err)
    assert "    12.5%" in found.out


def test_rungs_that_would_never_end_are_refused() -> None:
    with pytest.raises(ValueError, match="reduction factor 1: at least 1 and 2"):
        rung_epochs(8, grace_period=1, reduction_factor=1)
