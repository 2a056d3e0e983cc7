"""How far the page's estimate of random search is from the truth, on CvT-Bench, where every accuracy is known.

    python benchmarks/random_search_estimate.py --seeds 4 --budget 240

For each way to search: the hypervolume of random search and of the search, in truth and as the surrogate estimates it
from the curves that the search saw, as means over seeds. Random search begins with the same network in both.
"""

import argparse
import random
from collections.abc import Sequence

import numpy as np

from cvt_nas.bench import load_table
from cvt_nas.bench.methods import Method, Settings
from cvt_nas.bench.table import Table
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.simulation import EpochEnded, run_clock
from cvt_nas.propose.study import Proposal
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.report.random_search import estimate_random_search
from cvt_nas.results import hypervolume
from cvt_nas.space import Genome

METHODS = ("surrogate+pareto-asha", "surrogate+freeze-thaw", "surrogate+none", "random+none")


def compare(table: Table, method: Method, settings: Settings, *, seed: int) -> list[float]:
    """True and estimated hypervolume of random search, then of the search."""
    genomes, curves, complete, spent = dict[int, Genome](), dict[int, tuple[float, ...]](), list[int](), 0

    def curve_of(proposal: Proposal) -> np.ndarray:
        known = table.curves[table.rows[table.canonical(proposal.genome)]]
        return known[proposal.seed % len(known)]

    for event in run_clock(
        method.start(table, settings, seed=seed), num_slots=settings.num_workers, num_epochs=table.num_epochs,
        curve_of=curve_of, epoch_seconds=lambda p: table.seconds_per_epoch[table.rows[table.canonical(p.genome)]],
    ):  # fmt: skip
        if not isinstance(event, EpochEnded):
            continue
        number, spent = event.proposal.number, spent + 1
        genomes[number], curves[number] = (
            event.proposal.genome,
            tuple(curve_of(event.proposal)[: event.epochs].tolist()),
        )
        complete += [number] * event.is_complete
        if spent >= settings.budget:
            break
    observations = [
        Observation(genome=genomes[n], curve=curves[n], status="complete" if n in complete else "stopped")
        for n in sorted(curves)
    ]
    surrogate = Surrogate(table, costs=["params", "flops"], num_epochs=table.num_epochs, seed=seed)
    rest = [n for n in curves if n not in complete]
    ended = [(len(curves[n]), genomes[n] if n in complete else None) for n in (*complete, *rest)]
    estimate = estimate_random_search(surrogate, table, observations, ended=ended, num_epochs=table.num_epochs)
    assert estimate is not None, "the budget is of several trainings"
    accuracy = table.true_accuracies()

    def volume(found: Sequence[Genome]) -> float:
        losses = [1 - accuracy[table.rows[table.canonical(genome)]] for genome in found]
        return hypervolume(np.column_stack([losses, surrogate.scaled_costs(found)]))

    trained = [genomes[n] for n in complete]
    first = max(trained, key=lambda genome: volume([genome]))
    rng = random.Random(seed)
    truth = [volume([first, *rng.sample(table.genomes, estimate.trainings[-1] - 1)]) for _ in range(200)]
    return [float(np.median(truth)), estimate.median[-1], volume(trained), estimate.search[-1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--budget", type=int, default=240, help="epochs of a search")
    options = parser.parse_args()
    table = load_table("cvt-bench")
    settings = Settings(metrics=("accuracy", "params", "flops"), budget=options.budget)
    for name in METHODS:
        sampler, scheduler = name.split("+")
        method = Method(sampler=sampler, scheduler=scheduler)
        rows = [compare(table, method, settings, seed=seed) for seed in range(options.seeds)]
        true_random, random_, true_search, search = np.mean(rows, axis=0)
        print(
            f"{name:22} random search {true_random:.4f}, estimated {random_:.4f}; the search {true_search:.4f}, "
            f"estimated {search:.4f}; gain {true_search - true_random:+.4f}, estimated {search - random_:+.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
