"""Times `Study.ask` in a long search: what a free worker waits for its next architecture.

The study is a search's own, on a journal on disk, its trials told with made-up curves, a third of them complete;
four more are in flight. Times are of a run of asks, each followed by a tell, so that hyperparameters are fitted
again among them as in a search.

    OMP_NUM_THREADS=1 python benchmarks/ask.py --space search_spaces/cvt13.yaml --finished 100 300 1000
"""

import argparse
import hashlib
import math
import statistics
import tempfile
import time
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from cvt_nas.config import Experiment, load_experiment
from cvt_nas.propose.samplers import SAMPLERS, SamplerName
from cvt_nas.propose.simulation import Outcome
from cvt_nas.propose.study import Proposal, Study
from cvt_nas.results import Status

NUM_EPOCHS = 9
NUM_IN_FLIGHT = 4


def made_up(proposal: Proposal, experiment: Experiment) -> Outcome:
    """Better with FLOPs, and by a tenth of a point or two at random; a third of the trials complete."""
    draw = int(hashlib.sha256(repr(proposal.genome).encode()).hexdigest(), 16)
    least, greatest = experiment.space.cost_range
    size = math.log(proposal.cost.flops / least.flops) / math.log(greatest.flops / least.flops)
    final = 0.6 + 0.2 * size - 0.1 * size**2 + 0.002 * (draw % 1_000 / 500 - 1)
    epochs = (NUM_EPOCHS, 1, 3)[draw % 3]
    curve = tuple(final * (1 - 0.3 / epoch) for epoch in range(1, epochs + 1))
    status: Status = "complete" if epochs == NUM_EPOCHS else "stopped"
    return Outcome(number=proposal.number, status=status, epochs=epochs, curve=curve, cost=proposal.cost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--sampler", choices=SAMPLERS, default="surrogate")
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 300, 1_000])
    parser.add_argument("--asks", type=int, default=40)
    options = parser.parse_args()
    experiment = load_experiment(options.space)
    for num_finished in options.finished:
        with tempfile.TemporaryDirectory() as folder:
            seconds = time_asks(experiment, options.sampler, num_finished, options.asks, Path(folder) / "study.journal")
        print(f"{experiment.name}, {options.sampler}, {num_finished} finished: median "
              f"{1e3 * statistics.median(seconds):.0f} ms, greatest {1e3 * max(seconds):.0f} ms of {len(seconds)}",
              flush=True)  # fmt: skip


def time_asks(
    experiment: Experiment, sampler: SamplerName, num_finished: int, num_asks: int, journal: Path
) -> list[float]:
    def study_by(sampler: SamplerName) -> Study:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return Study(
            experiment.space,
            metrics=experiment.objectives,
            sampler=sampler,
            storage=storage,
            num_trials=None,
            num_epochs=experiment.training.epochs,
            seed=0,
        )

    begun = study_by("random")  # the first trials are drawn at random, which is soon done
    for _ in range(num_finished):
        proposal = begun.ask()
        assert proposal is not None, "the space is larger"
        begun.tell(made_up(proposal, experiment))
    study, in_flight, seconds = study_by(sampler), [], []
    while len(seconds) < num_asks:
        started = time.perf_counter()
        proposal = study.ask()
        spent = time.perf_counter() - started
        assert proposal is not None
        in_flight.append(proposal)
        if len(in_flight) > NUM_IN_FLIGHT:
            seconds.append(spent)
            study.tell(made_up(in_flight.pop(0), experiment))
    return seconds


if __name__ == "__main__":
    main()
