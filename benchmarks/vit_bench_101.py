"""Makes tables of ViT-Bench-101's PiT networks for `cvt-nas bench`, from its CSV file: one for each data set.

    python benchmarks/vit_bench_101.py vit_bench_101_pit.csv

100 networks with eight ordinal choices, each trained once on CIFAR-100, Flowers and Chaoyang, without distillation.
The tables have one epoch: the accuracy at the end.

Source: Wei et al. 2024, github.com/lliai/Auto-Prox-AAAI24.
"""

import argparse
from pathlib import Path

import pandas as pd

TABLES = Path(__file__).parent / "tables"
DATA = ("c100", "flower", "chaoyang")


def frame_of(networks: pd.DataFrame, data: str) -> pd.DataFrame:
    """The rows of a table: `networks` with their accuracies on one of `DATA`."""
    columns = [*(name for name in networks.columns if name.startswith("g")), "params", "flops"]
    return networks[columns].assign(acc_1=networks[f"{data}_base_acc"] / 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    networks = pd.read_csv(parser.parse_args().file)
    for data in DATA:
        path = TABLES / f"vit_bench_101_pit_{data}.parquet"
        frame_of(networks, data).to_parquet(path)
        print(f"{path}: {len(networks)} networks")


if __name__ == "__main__":
    main()
