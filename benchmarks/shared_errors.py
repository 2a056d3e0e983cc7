"""Whether the errors of supernets are noise of their training, or shared: how the mean of several ranks.

The supernets are those that `supernet.py` keeps, whose variants begin with "batches of 64". If their errors were noise,
the mean over several supernets would rank much better than one, and two supernets would agree with each other no
better than with the truth. Accuracies are standardised within each supernet. All subsets of a size count, or 500 that
are drawn at random. For strides, heads and projections, the script also prints how networks with the same option are
ranked: the mean tau over the supernets of a variant, and that of FLOPs.

    python benchmarks/shared_errors.py
"""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from cvt_nas.config import load_experiment
from cvt_nas.results import kendall
from cvt_nas.space import UNSIZED_CHOICES
from cvt_table import gene_columns
from supernet import SPACES, file_of, ranked_networks

MIN_NETWORKS = 20  # of an option, to be ranked
MOST_SUBSETS = 500


def main() -> None:
    for space in SPACES:
        genes = gene_columns(load_experiment(file_of(space)).space)
        supernets = {name: of.set_index(genes) for name, of in ranked_networks(space) if "'batches of 64" in name}
        inherited = pd.DataFrame({name: of["inherited"] for name, of in supernets.items()}).dropna()
        truth = next(iter(supernets.values()))["acc_8"].map(np.mean).loc[inherited.index]
        scores = ((inherited - inherited.mean()) / inherited.std()).to_numpy()
        pairs = itertools.combinations(range(scores.shape[1]), 2)
        agreement = np.mean([kendall(scores[:, one], scores[:, other]) for one, other in pairs])
        print(f"\n{space}: {scores.shape[1]} supernets, {len(scores)} networks; two supernets agree by {agreement:.3f}")
        for size in range(1, scores.shape[1] + 1):
            taus = [
                kendall(scores[:, subset].mean(axis=1), truth.to_numpy())
                for subset in subsets_of(scores.shape[1], size)
            ]
            print(f"  mean of {size}: tau {np.mean(taus):.3f}")
        print_by_option(supernets, space)


def print_by_option(supernets: Mapping[str, pd.DataFrame], space: str) -> None:
    experiment = load_experiment(file_of(space))
    genes = gene_columns(experiment.space)
    costs = pd.read_parquet(file_of(space).with_suffix(".parquet")).drop_duplicates(genes).set_index(genes)["flops"]
    rows = []
    for of in supernets.values():
        networks = of.assign(truth=of["acc_8"].map(np.mean), flops=costs.loc[of.index]).reset_index()
        for column, gene in zip(genes, experiment.space.genes, strict=True):
            for option, same in networks.groupby(column) if gene.choice in UNSIZED_CHOICES else ():
                if len(same) >= MIN_NETWORKS:
                    truth = same["truth"].to_numpy()
                    rows.append({
                        "choice": gene.name, "option": gene.options[int(str(option))], "networks": len(same),
                        "variant": of["variant"].iloc[0], "tau": kendall(same["inherited"].to_numpy(), truth),
                        "tau of FLOPs": kendall(same["flops"].to_numpy(), truth),
                    })  # fmt: skip
    by = ["choice", "option", "networks", "variant"]
    print(pd.DataFrame(rows).pivot_table(["tau", "tau of FLOPs"], by, sort=False).round(3).to_string())


def subsets_of(number: int, size: int) -> list[list[int]]:
    """All subsets of so many supernets, or `MOST_SUBSETS` random ones."""
    if math.comb(number, size) <= MOST_SUBSETS:
        return [list(subset) for subset in itertools.combinations(range(number), size)]
    rng = np.random.default_rng(0)
    return [rng.choice(number, size, replace=False).tolist() for _ in range(MOST_SUBSETS)]


if __name__ == "__main__":
    main()
