"""Whether `cvt-nas plan` holds: three small searches, each with what its first lines say, and how long it then took.

Hours are from the call of `search` to the page; the first front is when three trials are complete. Searches are of
digits from scratch, and of a tenth of Fashion-MNIST from scratch and by a supernet, with few trials.

    RAY_worker_niceness=0 OMP_NUM_THREADS=1 python benchmarks/plan.py --rounds 2 --data DIR
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt_nas import search
from cvt_nas.config import load_experiment
from cvt_nas.plan.values import NUM_OF_FIRST_FRONT, Plan
from cvt_nas.report import write_report
from cvt_nas.results import TrialResult

SPACES = Path(__file__).parent.parent / "search_spaces"
SEARCHES: Mapping[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "digits": ("digits", {}),
    "Fashion-MNIST": (
        "fashion_mnist",
        {"data": {"train_fraction": 0.1}, "training": {"epochs": 4}, "search": {"trials": 14}},
    ),
    "Fashion-MNIST, supernet": (
        "fashion_mnist_supernet",
        {
            "data": {"train_fraction": 0.1},
            "supernet": {"epochs": 4},
            "search": {"candidates": 100, "trials": 9},
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=list(SEARCHES), help="one of the searches")
    parser.add_argument("--data", type=Path, help="where Fashion-MNIST lies")
    options = parser.parse_args()
    print("| search | predicted | took | ratio | first front, predicted | took | epochs, predicted | trained |")
    print("|---|---|---|---|---|---|---|---|")
    for _ in range(options.rounds):
        for name, (space, changes) in SEARCHES.items():
            if options.only in (None, name):
                compare(name, space, changes, options.data)


def compare(name: str, space: str, changes: Mapping[str, Any], data: Path | None) -> None:
    """Runs the search, and prints a row of the table."""
    experiment = load_experiment(SPACES / f"{space}.yaml").changed(**changes)
    plans, complete = list[Plan](), list[float]()

    def follow(event: Any) -> None:
        if isinstance(event, TrialResult) and event.status == "complete":
            complete.append(time.perf_counter() - started)

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = search(
            experiment, out=Path(folder) / "run", data=None if space == "digits" else data, gpus=0, callbacks=[follow],
            on_plan=plans.append,
        )  # fmt: skip
        write_report(run)
        took, results = time.perf_counter() - started, run.results()
    (plan,) = plans
    predicted, race = 3600 * plan.hours, plan.race
    assert race is not None, "each of the searches trains"
    first = complete[min(NUM_OF_FIRST_FRONT, len(complete)) - 1]
    print(
        f"| {name} | {predicted:.0f} s | {took:.0f} s | {predicted / took:.2f} | {plan.first_front:.0f} s | "
        f"{first:.0f} s | {race.num_epochs} | {sum(result.epochs for result in results)} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
