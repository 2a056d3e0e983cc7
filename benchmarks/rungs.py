"""What the rungs of a space file cost, by a simulated search: who passes them, and where the epochs go.

A search with the file's space, sampler, scheduler, mode and reduction factor, on a simulated clock. Accuracies are made
up (`MadeUpCurves`), since nothing of 300 epochs on ImageNet is at hand. Epochs take as long as a network has FLOPs.

`--former` has the rungs and the rule of before: rungs up to the end, and whoever is among the best third at the moment
goes on, however many did before.

    OMP_NUM_THREADS=1 python benchmarks/rungs.py --space search_spaces/cvt13.yaml --seeds 10
    OMP_NUM_THREADS=1 python benchmarks/rungs.py --space search_spaces/cvt13.yaml --seeds 10 --former
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage
from scipy.stats import kendalltau

from cvt_nas.config import Experiment, load_experiment
from cvt_nas.propose.asha import Asha, accuracy_ranks, pareto_ranks
from cvt_nas.propose.race import OnRungs, Race
from cvt_nas.propose.simulation import Asked, MadeUpCurves, run_clock
from cvt_nas.propose.study import Proposal, Study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=Path("search_spaces/cvt13.yaml"))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--grace-period", type=int, default=10)
    parser.add_argument("--mode", choices=["promote", "stop"], help="instead of the file's")
    parser.add_argument("--former", action="store_true", help="the rungs and the rule of before")
    options = parser.parse_args()
    search: dict[str, Any] = {"trials": options.trials, "grace_period": options.grace_period}
    search |= {} if options.mode is None else {"mode": options.mode}
    experiment = load_experiment(options.space).changed(training={"epochs": options.epochs}, search=search)
    rows = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        rows.append(shares(experiment, num_workers=options.workers, seed=seed, former=options.former))
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()), flush=True)
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"{name}: {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


class Former(Asha):
    """The rule of before, and of the ASHA paper: who is among the best goes on, however many did before."""

    def _may_pass(self, milestone: int) -> list[int]:
        return [number for number in self._best(milestone) if number in self._waiting[milestone]]


def shares(experiment: Experiment, *, num_workers: int, seed: int, former: bool) -> dict[str, float]:
    """Of a simulated search: its epochs, and who passed each rung."""
    search, num_epochs, space = experiment.search, experiment.training.epochs, experiment.space
    rungs = experiment.rungs
    while former and (further := rungs[-1] * search.reduction_factor) < num_epochs:
        rungs = (*rungs, further)
    asha = (Former if former else Asha)(
        max_epochs=num_epochs, grace_period=search.grace_period, reduction_factor=search.reduction_factor,
        ranking=pareto_ranks if search.scheduler == "pareto-asha" else accuracy_ranks, mode=search.mode, rungs=rungs,
    )  # fmt: skip
    study = Study(
        space, metrics=experiment.objectives, sampler=search.sampler, storage=InMemoryStorage(),
        num_trials=search.trials, num_epochs=num_epochs, seed=seed,
    )  # fmt: skip
    curves, proposals, epochs = (
        MadeUpCurves(space, num_epochs=num_epochs, seed=seed),
        list[Proposal](),
        dict[int, int](),
    )
    for event in run_clock(
        Race(study, OnRungs(asha, experiment.objectives)), num_slots=num_workers, num_epochs=num_epochs,
        curve_of=curves,
        epoch_seconds=lambda proposal: float(proposal.cost.flops),
    ):  # fmt: skip
        if isinstance(event, Asked):
            proposals += [event.proposal] if event.is_new else []
        else:
            epochs[event.proposal.number] = event.epochs
    return {**taus([curves(proposal) for proposal in proposals], rungs), **_shares(epochs, rungs, num_epochs)}


def taus(curves: Sequence[np.ndarray], rungs: Sequence[int]) -> dict[str, float]:
    """Kendall's, of the accuracies at each rung with those of the end."""
    table = np.array(curves)
    found: list[Any] = [kendalltau(table[:, rung - 1], table[:, -1]) for rung in rungs]
    return {f"tau at {rung}": float(each.statistic) for rung, each in zip(rungs, found, strict=True)}


def _shares(epochs_of: dict[int, int], rungs: Sequence[int], num_epochs: int) -> dict[str, float]:
    epochs = np.array(list(epochs_of.values()))
    found = {"epochs of all trials": float(epochs.sum()), "trained in full": float((epochs == num_epochs).sum())}
    for rung in rungs:
        found[f"share that passes {rung}"] = float((epochs > rung).sum() / (epochs >= rung).sum())
    for rung in rungs:
        found[f"share of epochs on trials that end at {rung}"] = float(epochs[epochs == rung].sum() / epochs.sum())
    return found


if __name__ == "__main__":
    main()
