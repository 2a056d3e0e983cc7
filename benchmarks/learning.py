"""What a search gains by what it believes beforehand, on tables of trained networks, and what it loses where that is
wrong.

`runs` searches ViT-Bench-101's PiT networks, of which all were trained on three data sets: 20 trainings, one at a time,
given the accuracies of another data set, the same shuffled, or inverted. `priors` searches the CvT table by
pareto-asha, given how often options are on its true front, or that inverted or shuffled. `spaces` searches the CvT
table, given the trainings of the tables of other spaces, with other data; `searches` gives it what a search by
pareto-asha leaves of them. Each search is compared with one of the same seed that believes nothing.

    python benchmarks/learning.py runs vit_bench_101_pit.csv --seeds 0-19 --rows runs.csv
    python benchmarks/learning.py priors cvt-bench --seeds 0-19 --rows priors.csv
    python benchmarks/learning.py spaces cvt-bench --seeds 0-19 --rows spaces.csv
    python benchmarks/learning.py searches cvt-bench --seeds 0-19 --rows searches.csv
"""

import argparse
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cvt_nas import bench
from cvt_nas.arch import cost_of
from cvt_nas.bench.simulation import anytime_hypervolume, simulate
from cvt_nas.config import load_experiment
from cvt_nas.propose.asha import RANKINGS, Asha
from cvt_nas.propose.beliefs import NO_BELIEFS, Beliefs, EarlierRun, choices_of, skill_of
from cvt_nas.propose.race import OnRungs, Race
from cvt_nas.propose.simulation import EpochEnded, run_clock
from cvt_nas.propose.study import Proposal, Study
from cvt_nas.results import is_non_dominated
from vit_bench_101 import frame_of

METRICS = ("accuracy", "params", "flops")
TRAININGS, EPOCHS = (5, 10, 15, 20), (24, 48, 120, 240)
EARLIER_EPOCHS = 160
LEVELS = (0.95, 0.99)
OTHER_SPACES, TABLES = ("strides", "blocks", "colour"), Path(__file__).parent / "tables"
# Data set that is searched, data set that is known, and what is done to the accuracies that are known.
RUNS = (
    ("flower", "c100", "as they are"),
    ("chaoyang", "c100", "as they are"),
    ("c100", "chaoyang", "as they are"),
    ("flower", "c100", "shuffled"),
    ("c100", "chaoyang", "shuffled"),
    ("flower", "flower", "inverted"),
    ("chaoyang", "c100", "inverted"),
    ("c100", "chaoyang", "inverted"),
)


@dataclass(frozen=True, kw_only=True)
class Believing:
    """A search by the surrogate that begins with what `beliefs` makes of a seed."""

    beliefs: Callable[[int], Beliefs]
    has_rungs: bool

    def start(self, table: bench.Table, settings: bench.Settings, *, seed: int) -> Race:
        study = Study(
            table, metrics=settings.metrics, sampler="surrogate", num_trials=None, num_epochs=table.num_epochs,
            seed=seed, beliefs=self.beliefs(seed),
        )  # fmt: skip
        if not self.has_rungs:
            return Race(study)
        asha = Asha(
            max_epochs=table.num_epochs, grace_period=settings.grace_period,
            reduction_factor=settings.reduction_factor, ranking=RANKINGS["pareto-asha"], mode="promote",
        )  # fmt: skip
        return Race(study, OnRungs(asha, settings.metrics))


def nothing(seed: int) -> Beliefs:
    del seed
    return NO_BELIEFS


def table_of(frame: pd.DataFrame, data: str) -> bench.Table:
    """The networks with their accuracies on one data set, trained without distillation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        frame_of(frame, data).to_csv(path, index=False)
        return bench.load_table(path)


def earlier_run(table: bench.Table, how: str, seed: int) -> EarlierRun:
    accuracies = np.array([curves[0, -1] for curves in table.curves])
    if how == "shuffled":
        accuracies = np.random.default_rng(seed).permutation(accuracies)
    elif how == "inverted":
        accuracies = accuracies.min() + accuracies.max() - accuracies
    return EarlierRun(
        name=how,
        choices=tuple(
            {gene.name: gene.options[index] for gene, index in zip(table.genes, genome, strict=True)}
            for genome in table.genomes
        ),
        costs=table.costs,
        curves=tuple((float(accuracy),) for accuracy in accuracies),
        num_epochs=1,
    )


def priors_of(table: bench.Table, how: str, seed: int = 0) -> Beliefs:
    """How many times as often as in the whole table each option is on its front, each count one larger; the inverse of
    that; or these numbers shuffled among the options of each gene."""
    genomes, front, priors = np.array(table.genomes), is_non_dominated(table.losses(METRICS)), dict[str, list[float]]()
    rng = np.random.default_rng(seed)
    for place, gene in enumerate(table.genes):
        number = len(gene.options)
        shares = [
            (np.bincount(found, minlength=number) + 1) / (len(found) + number)
            for found in (genomes[front, place], genomes[:, place])
        ]
        ratio = shares[0] / shares[1]
        priors[gene.name] = list({"right": ratio, "wrong": 1 / ratio, "shuffled": rng.permutation(ratio)}[how])
    return Beliefs(priors=priors)


def searches(table: bench.Table, method: Believing, settings: bench.Settings, seeds: Sequence[int]) -> np.ndarray:
    """Share of the table's hypervolume after each epoch, `(seeds, budget)`."""
    return np.array([
        anytime_hypervolume(table, simulate(table, method, settings, seed=seed), settings) for seed in seeds
    ])  # fmt: skip


def epochs_to(values: np.ndarray, level: float) -> np.ndarray:
    """The first epoch with as much of the hypervolume, `(seeds,)`; one more than the budget where there is none."""
    reached = values >= level
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, values.shape[1] + 1)


def told(name: str, figures: np.ndarray, cold: np.ndarray, form: str) -> str:
    """Means, and means of the paired differences with their standard errors; `(seeds, columns)`."""
    away = figures - cold
    errors = away.std(axis=0, ddof=1) / np.sqrt(len(away))
    cells = [
        f"{mean:{form}} ({difference:+{form}} ± {error:{form}})"
        for mean, difference, error in zip(figures.mean(axis=0), away.mean(axis=0), errors, strict=True)
    ]
    return f"| {name} | {' | '.join(cells)} |"


def compare_runs(path: Path, seeds: Sequence[int]) -> pd.DataFrame:
    frame = pd.read_csv(path)
    tables = {name: table_of(frame, name) for name in ("c100", "flower", "chaoyang")}
    settings = bench.Settings(metrics=METRICS, budget=max(TRAININGS), num_workers=1)
    at, rows, cold = np.array(TRAININGS) - 1, [], {}
    for searched, known, how in RUNS:
        if searched not in cold:
            cold[searched] = searches(tables[searched], Believing(beliefs=nothing, has_rungs=False), settings, seeds)[
                :, at
            ]
            print(f"| {searched} | {' | '.join(f'{mean:.4f}' for mean in cold[searched].mean(axis=0))} |")
            rows += [(searched, "", "", seed, *values) for seed, values in zip(seeds, cold[searched], strict=True)]
        method = Believing(
            beliefs=lambda seed, known=known, how=how: Beliefs(runs=(earlier_run(tables[known], how, seed),)),
            has_rungs=False,
        )
        found = searches(tables[searched], method, settings, seeds)[:, at]
        print(told(f"{searched} given {known} {how}", found, cold[searched], ".4f"), flush=True)
        rows += [(searched, known, how, seed, *values) for seed, values in zip(seeds, found, strict=True)]
    return pd.DataFrame(rows, columns=["searched", "known", "how", "seed", *(f"hv_{number}" for number in TRAININGS)])


def run_of_space(name: str, *, shuffled_by: int | None = None) -> EarlierRun:
    """The first training of each network of a table beside the CvT table, with its costs for the images of that one."""
    table, space = bench.load_table(f"cvt-bench-{name}"), load_experiment(TABLES / f"cvt-bench-{name}.yaml").space
    archs, here = [space.decode(genome) for genome in table.genomes], load_experiment(TABLES / "cvt-bench.yaml").space
    curves = [tuple(map(float, of_seeds[0])) for of_seeds in table.curves]
    if shuffled_by is not None:
        curves = [curves[index] for index in np.random.default_rng(shuffled_by).permutation(len(curves))]
    return EarlierRun(
        name=name,
        choices=tuple(choices_of(arch) for arch in archs),
        costs=tuple(
            cost_of(dataclasses.replace(arch, image_size=here.image_size, num_channels=here.num_channels))
            for arch in archs
        ),
        curves=tuple(curves),
        num_epochs=table.num_epochs,
    )


def search_of_space(name: str, seed: int) -> EarlierRun:
    """What a search by pareto-asha of `EARLIER_EPOCHS` leaves of another space: most of its trials were stopped."""
    run, table = run_of_space(name), bench.load_table(f"cvt-bench-{name}")
    settings = bench.Settings(metrics=METRICS, budget=EARLIER_EPOCHS, num_workers=4)

    def row_of(proposal: Proposal) -> int:
        return table.rows[table.canonical(proposal.genome)]

    events = run_clock(
        Believing(beliefs=nothing, has_rungs=True).start(table, settings, seed=seed),
        num_slots=settings.num_workers, num_epochs=table.num_epochs,
        curve_of=lambda proposal: run.curves[row_of(proposal)],
        epoch_seconds=lambda proposal: table.seconds_per_epoch[row_of(proposal)],
    )  # fmt: skip
    epochs = (event for event in events if isinstance(event, EpochEnded))
    trained = {row_of(event.proposal): event.epochs for event in itertools.islice(epochs, EARLIER_EPOCHS)}
    return dataclasses.replace(
        run,
        choices=tuple(run.choices[row] for row in trained),
        costs=tuple(run.costs[row] for row in trained),
        curves=tuple(run.curves[row][:length] for row, length in trained.items()),
    )


def compare_priors(path: Path, seeds: Sequence[int]) -> pd.DataFrame:
    table = bench.load_table(path)
    given: dict[str, Callable[[int], Beliefs]] = {"none": nothing}
    given |= {how: lambda seed, how=how: priors_of(table, how, seed) for how in ("right", "wrong", "shuffled")}
    return _compared(table, "priors", given, seeds)


def compare_searches(path: Path, seeds: Sequence[int]) -> pd.DataFrame:
    space = load_experiment(TABLES / "cvt-bench.yaml").space
    left = {(name, seed): search_of_space(name, seed) for name in OTHER_SPACES for seed in seeds}
    for name in OTHER_SPACES:
        skills = [skill_of(left[name, seed], space, {}) for seed in seeds]
        whole = skill_of(run_of_space(name), space, {})
        print(
            f"{name}, skill: {np.mean(skills):.2f} ({min(skills):.2f} to {max(skills):.2f}), of all in full {whole:.2f}"
        )
    given: dict[str, Callable[[int], Beliefs]] = {"none": nothing}
    given |= {name: lambda seed, name=name: Beliefs(runs=(left[name, seed],)) for name in OTHER_SPACES}
    return _given(path, given, seeds)


def compare_spaces(path: Path, seeds: Sequence[int]) -> pd.DataFrame:
    runs = {name: run_of_space(name) for name in OTHER_SPACES}
    given: dict[str, Callable[[int], Beliefs]] = {"none": nothing}
    given |= {name: lambda _, run=run: Beliefs(runs=(run,)) for name, run in runs.items()}
    given["all three"] = lambda _: Beliefs(runs=tuple(runs.values()))
    given["all three, shuffled"] = lambda seed: Beliefs(
        runs=tuple(run_of_space(name, shuffled_by=seed) for name in OTHER_SPACES)
    )
    return _given(path, given, seeds)


def _given(path: Path, given: Mapping[str, Callable[[int], Beliefs]], seeds: Sequence[int]) -> pd.DataFrame:
    table, space = bench.load_table(path), load_experiment(TABLES / "cvt-bench.yaml").space
    assert [len(gene.options) for gene in table.genes] == [len(gene.options) for gene in space.genes]
    # genes of a table are g0, g1 and so on; an earlier run knows the choices of the space by their names and values
    return _compared(dataclasses.replace(table, genes=space.genes), "given", given, seeds)


def _compared(
    table: bench.Table, column: str, given: Mapping[str, Callable[[int], Beliefs]], seeds: Sequence[int]
) -> pd.DataFrame:
    """Searches by pareto-asha with four workers; the first of those `given` is what the others are compared with."""
    settings = bench.Settings(metrics=METRICS, budget=max(EPOCHS), num_workers=4)
    at, rows, cold = np.array(EPOCHS) - 1, [], None
    for name, beliefs in given.items():
        values = searches(table, Believing(beliefs=beliefs, has_rungs=True), settings, seeds)
        reached = np.column_stack([epochs_to(values, level) for level in LEVELS]).astype(float)
        figures = values[:, at], reached
        cold = figures if cold is None else cold
        print(told(f"{name}, hypervolume", figures[0], cold[0], ".4f"))
        levels = " and ".join(f"{level:.0%}" for level in LEVELS)
        print(told(f"{name}, epochs to {levels}", reached, cold[1], ".1f"), flush=True)
        rows += [
            (name, seed, *shares, *epochs) for seed, shares, epochs in zip(seeds, *figures, strict=True)
        ]  # fmt: skip
    columns = [column, "seed", *(f"hv_{epoch}" for epoch in EPOCHS), *(f"epochs_to_{level:g}" for level in LEVELS)]
    return pd.DataFrame(rows, columns=columns)


COMPARED = {
    "runs": compare_runs, "priors": compare_priors, "spaces": compare_spaces, "searches": compare_searches,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(COMPARED))
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", default="0-19", help="the first and the last")
    parser.add_argument("--rows", type=Path, help="a CSV to write, a row for each search")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    seeds = range(first, last + 1)
    found = COMPARED[options.what](options.table, seeds)
    if options.rows is not None:
        found.round(6).to_csv(options.rows, index=False)


if __name__ == "__main__":
    main()
