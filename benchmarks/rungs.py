"""What the rungs of a space file cost, by a simulated search: who passes them, and where the epochs go.

A search of the file's trials, with its sampler, scheduler, mode, epochs, grace period and reduction factor, on a
simulated clock. Architectures are random members of its space with their exact costs; accuracies are made up, since
nothing of 300 epochs on ImageNet is at hand: a better end for larger networks, a preference for each option, a
deviation of early epochs that fades until the end, and noise. Epochs take as long as a network has FLOPs.

`--former` has the rungs and the rule of before: rungs up to the end, and whoever is among the best third at the moment
goes on, however many did before.

    OMP_NUM_THREADS=1 python benchmarks/rungs.py --space search_spaces/cvt13.yaml --seeds 10
    OMP_NUM_THREADS=1 python benchmarks/rungs.py --space search_spaces/cvt13.yaml --seeds 10 --former
"""

import argparse
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage
from scipy.stats import kendalltau

from cvt_nas.bench import Outcome, RacedStudy, Settings, Table, simulate
from cvt_nas.config import Experiment, load_experiment
from cvt_nas.race.asha import Asha, Decision, accuracy_ranks, pareto_ranks
from cvt_nas.race.study import Proposal, Study
from cvt_nas.results import Metric

NUM_NETWORKS, EARLY, NOISE = 3_000, 0.008, 0.003  # standard deviations of accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=Path("search_spaces/cvt13.yaml"))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--mode", choices=["promote", "stop"], help="instead of the file's")
    parser.add_argument("--former", action="store_true", help="the rungs and the rule of before")
    options = parser.parse_args()
    experiment = load_experiment(options.space)
    if options.mode is not None:
        experiment = experiment.changed(search={"mode": options.mode})
    rows = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        table = made_up(experiment, seed)
        search = Counted(table, experiment, seed=seed, former=options.former)
        settings = Settings(metrics=search.metrics, budget=10**9, num_workers=options.workers)
        simulate(table, search, settings, seed=seed)
        rows.append(search.shares())
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()), flush=True)
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"{name}: {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


def made_up(experiment: Experiment, seed: int) -> Table:
    """Random architectures of the space, with made-up learning curves."""
    space, num_epochs, rng = experiment.space, experiment.training.epochs, np.random.default_rng(seed)
    random, genomes = Random(seed), set()
    while len(genomes) < NUM_NETWORKS:
        genome = space.sample_feasible(random)
        assert genome is not None
        genomes.add(space.canonical(genome))
    rows = sorted(genomes)
    costs = [space.cost(genome) for genome in rows]
    flops = np.array([cost.flops for cost in costs], dtype=float)
    likes = [rng.normal(0, 0.004, len(gene.options)) for gene in space.genes]
    end = 0.78 + 0.04 * np.log(flops / flops.mean())
    end += np.array([sum(like[option] for like, option in zip(likes, genome, strict=True)) for genome in rows])
    epochs = np.arange(1, num_epochs + 1)
    left = 1 - epochs / num_epochs
    early = EARLY * rng.normal(size=len(rows))
    curves = end[:, None] * (1 - 0.5 * np.exp(-epochs / 15)) + early[:, None] * left**2
    curves += rng.normal(0, NOISE, curves.shape)
    found: list[Any] = [kendalltau(curves[:, rung - 1], curves[:, -1]) for rung in experiment.rungs]
    print("tau with the end, at the rungs: " + ", ".join(f"{each.statistic:.2f}" for each in found), flush=True)
    return Table(
        genes=space.genes, rows={genome: row for row, genome in enumerate(rows)}, costs=tuple(costs),
        curves=tuple(np.clip(curve, 0, 1)[None] for curve in curves), seconds_per_epoch=flops / flops.mean(),
    )  # fmt: skip


class Former(Asha):
    """The rule of before, and of the ASHA paper: who is among the best goes on, however many did before."""

    def _may_pass(self, milestone: int) -> list[int]:
        return [number for number in self._best(milestone) if number in self._waiting[milestone]]


class Counted(RacedStudy):
    """The search of a space file, which counts the epochs of each trial."""

    def __init__(self, table: Table, experiment: Experiment, *, seed: int, former: bool) -> None:
        search, num_epochs = experiment.search, table.num_epochs
        self.metrics: tuple[Metric, ...] = experiment.objectives
        rungs = experiment.rungs
        while former and (further := rungs[-1] * search.reduction_factor) < num_epochs:
            rungs = (*rungs, further)
        self.asha = (Former if former else Asha)(
            max_epochs=num_epochs, grace_period=search.grace_period, reduction_factor=search.reduction_factor,
            ranking=pareto_ranks if search.scheduler == "pareto-asha" else accuracy_ranks, mode=search.mode,
            rungs=rungs,
        )  # fmt: skip
        study = Study(
            table, metrics=self.metrics, sampler=search.sampler, storage=InMemoryStorage(), num_trials=search.trials,
            seed=seed,
        )  # fmt: skip
        super().__init__(study, self.asha, self.metrics)
        self.num_epochs, self.epochs = num_epochs, dict[int, int]()

    def start(self, table: Table, settings: Settings, *, seed: int) -> "Counted":
        del table, settings, seed
        return self

    def decide(self, proposal: Proposal, curve: tuple[float, ...]) -> Decision:
        self.epochs[proposal.number] = len(curve)
        return super().decide(proposal, curve)

    def tell(self, ended: Outcome) -> None:
        self.epochs[ended.number] = ended.epochs
        super().tell(ended)

    def shares(self) -> dict[str, float]:
        epochs = np.array(list(self.epochs.values()))
        found = {
            "epochs of all trials": float(epochs.sum()),
            "trained in full": float((epochs == self.num_epochs).sum()),
        }
        for rung in self.asha.rungs:
            found[f"share that passes {rung}"] = float((epochs > rung).sum() / (epochs >= rung).sum())
        for rung in self.asha.rungs:
            found[f"share of epochs on trials that end at {rung}"] = float(epochs[epochs == rung].sum() / epochs.sum())
        return found


if __name__ == "__main__":
    main()
