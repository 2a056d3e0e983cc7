"""Which candidate of a supernet is trained next: the supernets of `supernet.py`, and the networks that they rank.

Of the networks that every supernet of a space ranks, some are trained, one after the other. A training has the table's
accuracy with seed 0. Three rules choose the next network:

- `fixed`: the order of inherited accuracies and costs, which no training changes.
- `corrected ranks`: the same order, but with the accuracies that the model of `cvt_nas.propose.correction` expects.
- `expected gain`: the network with the largest expected gain of hypervolume, by the same model.

The last two begin after six trainings (`--after`), and follow the fixed order before that. `random` trains networks in
random order. `no supernet` begins in the same random order, and then takes the largest expected gain by trainings and
costs alone, as a search from scratch does. The front is drawn by the accuracies with seed 0. What is compared is its
hypervolume by the mean of all seeds, as a share of the hypervolume of all networks.

    OMP_NUM_THREADS=1 python benchmarks/heirs.py
    OMP_NUM_THREADS=1 python benchmarks/heirs.py --space colour
"""

import argparse
from typing import Any

import numpy as np
import pandas as pd

from cvt_nas.config import load_experiment
from cvt_nas.propose.asha import pareto_ranks
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.results.pareto import hypervolume, is_non_dominated
from cvt_nas.space import SearchSpace
from cvt_table import gene_columns
from supernet import SPACES, file_of, ranked_networks

NUM_TRAINED = (8, 12, 16, 24, 36)
RULES = ("random", "no supernet", "fixed", "corrected ranks", "expected gain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, default=SPACES[0])
    parser.add_argument("--supernets", type=int, help="the first so many; all where absent")
    parser.add_argument("--after", type=int, default=6, help="trainings before an order changes; at least 1")
    options = parser.parse_args()
    space, found = load_experiment(file_of(options.space)).space, list[dict[str, Any]]()
    for index, (name, of) in enumerate(ranked_networks(options.space)[: options.supernets]):
        for rule in RULES:
            found += [
                {"supernet": name, "rule": rule, **row}
                for row in shares(of, space, rule, seed=index, after=options.after)
            ]
        known: Any = pd.DataFrame(found)
        table = known.groupby(["rule", "trained"])["share"].mean().unstack()
        print(f"{index + 1} supernets\n{table.round(4).to_string()}", flush=True)
    known: Any = pd.DataFrame(found)
    by_supernet = known.set_index(["supernet", "trained", "rule"])["share"].unstack()
    for rule, other in (("corrected ranks", "fixed"), ("expected gain", "fixed"), ("expected gain", "no supernet")):
        gain = (by_supernet[rule] - by_supernet[other]).groupby("trained")
        told = gain.agg(["mean", "std", "min", "max", lambda gains: (gains > 0).sum(), lambda gains: (gains < 0).sum()])
        print(f"{rule} - {other}\n{told.round(4).to_string()}")


def shares(of: pd.DataFrame, space: SearchSpace, rule: str, *, seed: int, after: int) -> list[dict[str, float]]:
    """Share of the greatest hypervolume after each number of trainings, by one rule."""
    genomes = [tuple(genome) for genome in of[gene_columns(space)].to_numpy().tolist()]
    inherited = of["inherited"].to_numpy()
    standalone = np.array(of["acc_8"].tolist())
    surrogate = Surrogate(space, costs=["params", "flops"], num_epochs=1, seed=0)
    costs = surrogate.scaled_costs(genomes)

    def volume(chosen: np.ndarray, by: np.ndarray) -> float:
        front = chosen[is_non_dominated(np.column_stack([1 - by[chosen], costs[chosen]]))]
        # a network of greatest cost would lie on the reference point and add nothing
        return hypervolume(np.column_stack([1 - standalone[front].mean(axis=1), costs[front] * 0.999]))

    whole = volume(np.arange(len(genomes)), standalone.mean(axis=1))
    order = np.argsort(pareto_ranks(np.column_stack([1 - inherited, costs])))
    if rule in ("random", "no supernet"):
        order = np.random.default_rng(seed).permutation(len(genomes))
    trained, rows = list[int](), []
    while len(trained) < max(NUM_TRAINED):
        left = np.array([index for index in order if index not in trained])
        if rule in ("random", "fixed") or len(trained) < after:
            trained.append(int(left[0]))
        else:
            observations = [
                Observation(
                    genome=genome,
                    curve=(float(standalone[index, 0]),) if index in trained else (),
                    status="complete" if index in trained else "stopped",
                    inherited=None if rule == "no supernet" else float(inherited[index]),
                )
                for index, genome in enumerate(genomes)
                if index in trained or rule != "no supernet"
            ]
            if rule in ("no supernet", "expected gain"):
                gains = surrogate.gains(observations, [genomes[index] for index in left])
                trained.append(int(left[np.argmax(gains)]))
            else:
                expected = surrogate.expect(observations, genomes)
                expected[trained] = standalone[trained, 0]
                ranks = pareto_ranks(np.column_stack([1 - expected, costs]))
                trained.append(int(left[np.argmin(ranks[left])]))
        if len(trained) in NUM_TRAINED:
            rows.append({"trained": len(trained), "share": volume(np.array(trained), standalone[:, 0]) / whole})
    return rows


if __name__ == "__main__":
    main()
