"""How much of a trial is not training: worker start, build, data; with and without reuse of workers.

Runs the same short search twice, on digits, and compares each trial's time from proposal to result with
the part of it that was spent in epochs.

    python benchmarks/overhead.py --trials 12
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from cvt_nas import search
from cvt_nas.config import parse_experiment

SPACE = Path(__file__).parent.parent / "search_spaces" / "digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--cpus", type=int, default=None)
    options = parser.parse_args()
    experiment = parse_experiment(SPACE.read_text(), str(SPACE))
    for reuse in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run = search(
                experiment, out=Path(folder) / "run", trials=options.trials, cpus=options.cpus, reuse_workers=reuse
            )
            wall = time.perf_counter() - started
            results = run.results()
        # the first trial of each worker starts it, with or without reuse
        later = results[2:]
        overheads = [result.seconds - result.train_seconds for result in later]
        share = sum(overheads) / sum(result.seconds for result in later)
        print(
            f"workers {'reused' if reuse else 'new each'}: {len(results)} trials in {wall:.0f} s; after the first two, "
            f"not training: median {statistics.median(overheads):.2f} s a trial, {share:.0%} of its time; "
            f"first two: {', '.join(f'{r.seconds - r.train_seconds:.1f} s' for r in results[:2])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
