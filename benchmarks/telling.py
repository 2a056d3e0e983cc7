"""How often a supernet is told wrongly, and by how many architectures the supernets of the tables are told.

First, made-up supernets exactly on the bar, where either answer is one too many: normal accuracies, two seeds each, a
look at every third architecture from 12 to 100. `one look` is what an interval of 1.96 standard errors would have told.
Then the supernets of four spaces with batches of 64, and two seeds of their networks in random orders.

    OMP_NUM_THREADS=1 python benchmarks/telling.py
"""

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd

from cvt_nas.config import load_experiment
from cvt_nas.results import Question, answer_of, ceiling_of_mean, questions_of
from cvt_nas.results.telling import MIN_TOLD, of_ceiling, quantile
from cvt_table import gene_columns

TABLES = Path(__file__).parent / "tables"
SPACES = ("", "_strides", "_blocks", "_colour")  # as their tables end; the first is the CvT table's
OPEN = "cannot tell yet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernets", type=int, default=400, help="made-up ones for each row")
    parser.add_argument("--orders", type=int, default=3, help="of the networks of a table")
    options = parser.parse_args()
    for between in (0.9, 0.76, 0.5):
        told = np.array([on_the_bar(between, seed) for seed in range(options.supernets)])
        yes, no, one_look = told.mean(axis=0)
        print(f"seeds agree by {between}: false yes {yes:.4f}, false no {no:.4f}, one look {one_look:.3f}", flush=True)
    found = pd.DataFrame([row for space in SPACES for row in replayed(space, options.orders)])
    print(found.groupby(["space", "verdict"])["archs"].describe().to_string())


def on_the_bar(between: float, seed: int) -> tuple[bool, bool, bool]:
    """Whether a supernet on the bar is told to rank well enough, or not to; and by intervals for one look, either."""
    rng, number = np.random.default_rng(seed), 100
    ceiling = float(ceiling_of_mean(between, 2))
    rho = math.sin(math.pi / 2 * 0.8 * ceiling) / math.sin(math.pi / 2 * ceiling)
    truth, other = rng.normal(size=(2, number))
    ours = rho * truth + math.sqrt(1 - rho**2) * other
    standalone = truth[:, None] + math.sqrt(1 / math.sin(math.pi / 2 * between) - 1) * rng.normal(size=(number, 2))
    looks = [(size, of_ceiling(ours[:size], standalone[:size])) for size in range(MIN_TOLD, number + 1, 3)]
    answers = [question.answer for _, question in looks if question.answer != OPEN]
    by_one_look = any(_is_told_by_one_look(question, size) for size, question in looks)
    return answers[:1] == ["yes"], answers[:1] == ["no"], by_one_look


def _is_told_by_one_look(question: Question, size: int) -> bool:
    if question.low is None or question.high is None:  # seeds that contradict each other
        return False
    end = question.low if question.value > question.bar else question.high
    return abs(question.value - question.bar) > 1.96 / quantile(size) * abs(question.value - end)


def replayed(space: str, num_orders: int) -> list[dict[str, object]]:
    """When each supernet of a space is told, in several orders of its networks."""
    table = f"cvt-bench{space.replace('_', '-')}"
    genes = gene_columns(load_experiment(TABLES / f"{table}.yaml").space)
    own = pd.read_parquet(TABLES / f"{table}.parquet").sort_values(by="seed").groupby(genes)
    known = own.agg({"flops": "first", "acc_8": list})
    rows = pd.read_parquet(TABLES / f"supernets{space}.parquet").merge(known, left_on=genes, right_index=True)
    rows = rows.loc[rows["variant"].str.startswith("batches of 64")]
    found = list[dict[str, object]]()
    for key, of in rows.groupby(["variant", "seed", "epochs"], sort=False):
        inherited, flops = of["inherited"].to_numpy(), of["flops"].to_numpy()
        standalone = np.array([accuracies[:2] for accuracies in of["acc_8"]])
        for order in range(num_orders):
            rows_of = np.random.default_rng(order).permutation(len(of))
            answer, size = OPEN, MIN_TOLD
            for size in range(MIN_TOLD, len(of) + 1, 2):
                first = rows_of[:size]
                answer = answer_of(questions_of(inherited[first], standalone[first], flops[first]))
                if answer != OPEN:
                    break
            found.append({"space": table, "supernet": str(key), "verdict": answer, "archs": size})
    return found


if __name__ == "__main__":
    main()
