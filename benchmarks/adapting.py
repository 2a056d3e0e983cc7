"""How much better subnets rank if each is trained on for an epoch or two before it is judged.

The supernet is that of `smoothing.py` (half labels, batches of 64, 14 epochs). Each network begins with what it
inherits and is trained on for `--epochs`, at half the learning rate of the space and without warm-up. For each epoch,
the script prints Kendall's tau with the accuracies of the networks' own trainings, also as a share of the noise ceiling
and within bins of FLOPs. Accuracies are kept in `--to` as they come. So this can be stopped and continued.

    OMP_NUM_THREADS=1 python benchmarks/adapting.py --space strides --seed 105 --weights strides.safetensors \
        --to benchmarks/tables/adapted.csv
"""

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cvt_nas.config import SupernetConfig, load_experiment
from cvt_nas.engine import Inheritance, SharedWeights, fit
from cvt_nas.engine.inheritance import open_supernet
from cvt_nas.results import judge_supernet
from cvt_nas.run import write_atomically
from cvt_table import gene_columns, networks_of
from smoothing import EPOCHS, NUM_NETWORKS, VARIANT
from supernet import BASE, SPACES, VARIANTS, data_of, file_of

KEY = ["space", "seed", "network"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, required=True)
    parser.add_argument("--seed", type=int, required=True, help="of the supernet")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--weights", type=Path, required=True, help="the supernet, as smoothing.py keeps it")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, or the file of colour_images.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = load_experiment(file_of(options.space))
    space, device = experiment.space, torch.device("cpu")
    data = data_of(experiment, options.data)
    config = SupernetConfig(epochs=EPOCHS, **(BASE | VARIANTS[VARIANT]))
    supernet = open_supernet(SharedWeights(space=space, config=config), options.weights)
    inheritance, genomes = Inheritance(supernet, config, data, device), networks_of(space, NUM_NETWORKS)
    half = dataclasses.replace(
        experiment.training, epochs=options.epochs, lr=experiment.training.lr / 2, warmup_epochs=0
    )
    rows = pd.read_csv(options.to) if options.to.exists() else pd.DataFrame(columns=[*KEY, "epoch"])
    is_ours = (rows["space"] == options.space) & (rows["seed"] == options.seed)
    for number in sorted(set(range(len(genomes))) - set(rows.loc[is_ours, "network"])):
        arch, started = space.decode(genomes[number]), time.process_time()
        key = {"space": options.space, "seed": options.seed, "network": number}
        found = [{**key, "epoch": 0, "accuracy": inheritance.measure(arch).accuracy, "seconds": 0.0}]
        for epoch in fit(arch, half, data, device=device, seed=0, initial=partial(inheritance.model, arch)):
            seconds = round(time.process_time() - started, 2)
            found.append({**key, "epoch": epoch.number, "accuracy": epoch.accuracy, "seconds": seconds})
        rows = pd.concat([rows, pd.DataFrame(found)], ignore_index=True) if len(rows) else pd.DataFrame(found)
        write_atomically(options.to, rows.to_csv(index=False))
        print(f"{number + 1} of {len(genomes)}: {[row['accuracy'] for row in found]}", flush=True)
    rows = rows.loc[(rows["space"] == options.space) & (rows["seed"] == options.seed)]
    print_ranks(rows, pd.DataFrame(genomes, columns=gene_columns(space)), options.space)


def print_ranks(rows: pd.DataFrame, genomes: pd.DataFrame, space: str) -> None:
    genes = list(genomes.columns)
    truth = pd.read_parquet(file_of(space).with_suffix(".parquet")).sort_values(by="seed").groupby(genes)
    own = truth.agg({"params": "first", "flops": "first", "acc_8": list})
    own = genomes.merge(own, left_on=genes, right_index=True)
    num_seeds = min(map(len, own["acc_8"]))
    alone = np.array([accuracies[:num_seeds] for accuracies in own["acc_8"]])
    for epoch, of in rows.groupby("epoch"):
        scores = of.set_index("network")["accuracy"].loc[own.index].tolist()
        judged = judge_supernet(scores, alone, own["params"].tolist(), own["flops"].tolist())
        ranker = judged.rankers["inherited"]
        tau, ceiling = ranker.overall.value, judged.ceiling.value if judged.ceiling else np.nan
        print(
            f"{space}, epoch {epoch}: tau {tau:.3f}, {tau / ceiling:.2f} of the ceiling, "
            f"within bins {ranker.within_bins.value:.3f}, mean accuracy {np.mean(scores):.4f}, "
            f"{of['seconds'].mean():.1f} s a network"
        )


if __name__ == "__main__":
    main()
