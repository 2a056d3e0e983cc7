"""Which candidate of a supernet is trained next: the supernets of `supernet.py`, and the networks that they rank.

Of the networks that every supernet of a space ranks, some are trained, one after the other. A training has the table's
accuracy with seed 0. These rules choose the next network:

- `fixed`: the order of inherited accuracies and costs, which no training changes.
- `corrected ranks`: the same order, but with the accuracies that the model of `cvt_nas.propose.correction` expects. It
  begins after six trainings, and follows the fixed order before that.
- `gain after six`: the network with the largest expected gain of hypervolume, by the same model, after six trainings in
  the fixed order.
- `cheapest first`: as a search does it. The three cheapest of the best twelve, then the largest expected gain.

`random` trains networks in random order. `no supernet` begins with six in the same random order, and then takes the
largest expected gain by trainings and costs alone. The front is drawn by the accuracies with seed 0. What is compared
is its hypervolume by the mean of all seeds, as a share of the hypervolume of all networks. `--by seconds` counts the
seconds of the trainings instead of their number, in trainings of the mean length.

    OMP_NUM_THREADS=1 python benchmarks/heirs.py
    OMP_NUM_THREADS=1 python benchmarks/heirs.py --space colour --by seconds
"""

import argparse
from typing import Any

import numpy as np
import pandas as pd

from cvt_nas.config import load_experiment
from cvt_nas.propose.asha import pareto_ranks
from cvt_nas.propose.heirs import next_anchor
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.results.pareto import hypervolume, is_non_dominated
from cvt_nas.space import SearchSpace
from cvt_table import gene_columns
from supernet import SPACES, file_of, ranked_networks

BUDGETS = (4, 6, 8, 12, 16, 24)
AFTER = 6  # trainings in a fixed or random order
RULES = ("random", "no supernet", "fixed", "corrected ranks", "gain after six", "cheapest first")
COMPARED = (("corrected ranks", "fixed"), ("gain after six", "fixed"), ("cheapest first", "gain after six"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, default=SPACES[0])
    parser.add_argument("--supernets", type=int, help="the first so many; all where absent")
    parser.add_argument("--by", choices=["number", "seconds"], default="number")
    options = parser.parse_args()
    space, found = load_experiment(file_of(options.space)).space, list[dict[str, Any]]()
    for index, (name, of) in enumerate(ranked_networks(options.space)[: options.supernets]):
        for rule in RULES:
            found += [
                {"supernet": name, "rule": rule, **row} for row in shares(of, space, rule, seed=index, by=options.by)
            ]
        known: Any = pd.DataFrame(found)
        table = known.groupby(["rule", "budget"])["share"].mean().unstack()
        print(f"{index + 1} supernets\n{table.loc[list(RULES)].round(4).to_string()}", flush=True)
    known: Any = pd.DataFrame(found)
    by_supernet = known.set_index(["supernet", "budget", "rule"])["share"].unstack()
    for rule, other in (*COMPARED, ("cheapest first", "no supernet")):
        gain = (by_supernet[rule] - by_supernet[other]).groupby("budget")
        told = gain.agg(["mean", "std", "min", "max", lambda gains: (gains > 0).sum(), lambda gains: (gains < 0).sum()])
        print(f"{rule} - {other}\n{told.round(4).to_string()}")


def shares(of: pd.DataFrame, space: SearchSpace, rule: str, *, seed: int, by: str) -> list[dict[str, float]]:
    """Share of the greatest hypervolume after each budget, by one rule."""
    genomes = [tuple(genome) for genome in of[gene_columns(space)].to_numpy().tolist()]
    inherited = of["inherited"].to_numpy()
    standalone = np.array(of["acc_8"].tolist())
    lengths = of["length"].to_numpy() if by == "seconds" else np.ones(len(genomes))
    surrogate = Surrogate(space, costs=["params", "flops"], num_epochs=1, seed=0)
    costs = surrogate.scaled_costs(genomes)

    def volume(chosen: np.ndarray, accuracies: np.ndarray) -> float:
        front = chosen[is_non_dominated(np.column_stack([1 - accuracies[chosen], costs[chosen]]))]
        # a network of greatest cost would lie on the reference point and add nothing
        return hypervolume(np.column_stack([1 - standalone[front].mean(axis=1), costs[front] * 0.999]))

    whole = volume(np.arange(len(genomes)), standalone.mean(axis=1))
    order = np.argsort(pareto_ranks(np.column_stack([1 - inherited, costs])))
    if rule in ("random", "no supernet"):
        order = np.random.default_rng(seed).permutation(len(genomes))
    trained, spent, rows = list[int](), 0.0, list[dict[str, float]]()

    def next_index() -> int:
        left = np.array([index for index in order if index not in trained])
        if rule in ("random", "fixed") or (rule != "cheapest first" and len(trained) < AFTER):
            return int(left[0])
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
        if rule == "cheapest first":
            anchors = {str(index): genomes[index] for index in left}
            return int(next_anchor(anchors, list(map(str, order)), observations, surrogate)[0])
        if rule in ("no supernet", "gain after six"):
            return int(left[np.argmax(surrogate.gains(observations, [genomes[index] for index in left]))])
        expected = surrogate.expect(observations, genomes)
        expected[trained] = standalone[trained, 0]
        ranks = pareto_ranks(np.column_stack([1 - expected, costs]))
        return int(left[np.argmin(ranks[left])])

    while len(rows) < len(BUDGETS):
        index = next_index()
        spent += lengths[index]
        while len(rows) < len(BUDGETS) and spent > BUDGETS[len(rows)]:
            share = volume(np.array(trained), standalone[:, 0]) / whole if trained else 0.0
            rows.append({"budget": BUDGETS[len(rows)], "share": share})
        trained.append(index)
    return rows


if __name__ == "__main__":
    main()
