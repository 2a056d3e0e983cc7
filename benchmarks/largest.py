"""The largest network of each space, trained alone for as many images as a supernet, which trains it in every step.

The settings are those of the space file, except for the length. What it inherits from supernets is in the column
`largest` of their files, see supernet.py. Trainings are kept in `tables/largest.csv`, so that this can be stopped and
continued.

    OMP_NUM_THREADS=1 python benchmarks/largest.py --space strides --epochs 34
    OMP_NUM_THREADS=1 python benchmarks/largest.py --space colour --data /tmp/colour.npz --epochs 35 --seeds 3
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from cvt_nas.config import load_experiment
from cvt_nas.engine import fit
from cvt_nas.run import write_atomically
from supernet import SPACES, TABLES, data_of, file_of

KEPT = TABLES / "largest.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, required=True)
    parser.add_argument("--epochs", type=int, required=True, help="those of the supernet")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, or the file of colour_images.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = load_experiment(file_of(options.space))
    space = experiment.space
    data = data_of(experiment, options.data)
    rows = pd.read_csv(KEPT).to_dict("records") if KEPT.exists() else []
    done = {(row["space"], row["epochs"], row["seed"]) for row in rows}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        if (options.space, options.epochs, seed) in done:
            continue
        training = experiment.training.lasting(options.epochs)
        *_, last = fit(space.largest, training, data, device=torch.device("cpu"), seed=seed)
        rows.append({"space": options.space, "epochs": options.epochs, "seed": seed, "accuracy": last.accuracy})
        write_atomically(KEPT, pd.DataFrame(rows).to_csv(index=False))
        print(*rows[-1].values(), flush=True)


if __name__ == "__main__":
    main()
