"""Whether the errors of supernets are noise of their training, or shared: how the mean of several ranks.

The supernets are those that `supernet.py` keeps, whose variants begin with "batches of 64". If their errors were noise,
the mean over several supernets would rank much better than one, and two supernets would agree with each other no better
than with the truth. Accuracies are standardised within each supernet. All subsets of a size count, or the first 500.

    python benchmarks/shared_errors.py
"""

import itertools

import numpy as np
import pandas as pd

from cvt_nas.config import load_experiment
from cvt_nas.results import kendall
from cvt_table import gene_columns
from supernet import SPACES, file_of, ranked_networks


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
            subsets = itertools.islice(itertools.combinations(range(scores.shape[1]), size), 500)
            taus = [kendall(scores[:, list(subset)].mean(axis=1), truth.to_numpy()) for subset in subsets]
            print(f"  mean of {size}: tau {np.mean(taus):.3f}")


if __name__ == "__main__":
    main()
