"""What a few trainings add to a supernet's ranks: the supernets of `supernet.py`, and the networks that they rank.

Of the networks that every supernet of a space ranks, some are drawn at random, and the model of
`cvt_nas.propose.correction` learns their accuracy after one training of their own, with seed 0. It expects the accuracy
of the others. Their tau with the mean of all seeds is compared with that of what they inherit. The rows of 0 trainings
are the same model without any: their gain does not come from trainings. The draws are the same for all supernets, and
the hyperparameters of a supernet are fitted with the first draw.

    OMP_NUM_THREADS=1 python benchmarks/correction.py
    OMP_NUM_THREADS=1 python benchmarks/correction.py --space colour
"""

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from cvt_nas.config import load_experiment
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.results import kendall
from cvt_nas.space import SearchSpace
from cvt_table import gene_columns
from supernet import SPACES, file_of, ranked_networks

NUM_TRAINED = (0, 6, 12, 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, default=SPACES[0])
    parser.add_argument("--draws", type=int, default=10, help="of the networks that are trained")
    parser.add_argument("--supernets", type=int, help="the first so many; all where absent")
    options = parser.parse_args()
    space, found = load_experiment(file_of(options.space)).space, list[dict[str, float | str]]()
    for index, (name, of) in enumerate(ranked_networks(options.space)[: options.supernets]):
        for row in gains(of, space, num_draws=options.draws):
            found.append({"supernet": name, **row})
        told: Any = pd.DataFrame(found).groupby("trained")[["inherited", "corrected"]].mean()
        print(f"{index + 1} supernets", told.round(4).to_dict(), flush=True)
    table = pd.DataFrame(found)
    by_supernet: Any = table.groupby(["trained", "supernet"])[["inherited", "corrected"]].mean()
    gain = (by_supernet["corrected"] - by_supernet["inherited"]).groupby("trained")
    print(pd.DataFrame(table.groupby("trained")[["inherited", "corrected"]].mean()).round(4).to_string())
    print(gain.agg(["mean", "std", "min", "max", lambda gains: (gains > 0).sum()]).round(4).to_string())


def gains(of: pd.DataFrame, space: SearchSpace, *, num_draws: int) -> list[dict[str, float]]:
    """Tau of the networks that are not drawn, as inherited and as corrected, for each number of trainings and draw."""
    standalone = np.array(of["acc_8"].tolist())
    truth, inherited = standalone.mean(axis=1), of["inherited"].to_numpy()
    untrained = [
        Observation(genome=tuple(genome), curve=(), status="stopped", inherited=accuracy)
        for genome, accuracy in zip(of[gene_columns(space)].to_numpy().tolist(), inherited.tolist(), strict=True)
    ]
    genomes, found = [each.genome for each in untrained], []
    for num_trained in NUM_TRAINED:
        surrogate = Surrogate(space, costs=["params", "flops"], num_epochs=1, seed=0)
        for draw in range(num_draws if num_trained else 1):
            order = np.random.default_rng((num_trained, draw)).permutation(len(truth))
            trained, others = set(order[:num_trained].tolist()), order[num_trained:]
            observations = [
                replace(each, curve=(float(standalone[index, 0]),), status="complete") if index in trained else each
                for index, each in enumerate(untrained)
            ]
            expected = surrogate.expect(observations, genomes)
            found.append({
                "trained": num_trained,
                "inherited": kendall(inherited[others], truth[others]),
                "corrected": kendall(expected[others], truth[others]),
            })  # fmt: skip
    return found


if __name__ == "__main__":
    main()
