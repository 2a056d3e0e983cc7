"""Times what a free worker waits for its next architecture in a long search: `Study.ask`.

The study is a search's own, on a journal on disk. Its trials are told with made-up curves, a third of them complete,
and four more are in flight. Times are of a run of asks, each followed by a tell, so that hyperparameters are fitted
again among them as in a search. With `--epochs`, the CPU time of `freeze-thaw` is measured instead: the decision after
an epoch and, if the worker is free then, the choice of what it trains next.

    OMP_NUM_THREADS=1 python benchmarks/ask.py --space search_spaces/cvt13.yaml --finished 100 300 1000
    OMP_NUM_THREADS=1 python benchmarks/ask.py --space search_spaces/cvt13.yaml --epochs 300 600 1000
"""

import argparse
import hashlib
import math
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from cvt_nas.config import Experiment, load_experiment
from cvt_nas.propose.freeze_thaw import FreezeThaw
from cvt_nas.propose.race import Race
from cvt_nas.propose.samplers import SAMPLERS, SamplerName
from cvt_nas.propose.simulation import Outcome
from cvt_nas.propose.study import PartialTrial, Proposal, Study
from cvt_nas.results import Status

NUM_EPOCHS = 9
NUM_IN_FLIGHT = 4


def draw_of(proposal: Proposal) -> int:
    return int(hashlib.sha256(repr(proposal.genome).encode()).hexdigest(), 16)


def curve_of(proposal: Proposal, experiment: Experiment) -> tuple[float, ...]:
    """Better with FLOPs, and by a tenth of a point or two at random."""
    least, greatest = experiment.space.cost_range
    size = math.log(proposal.cost.flops / least.flops) / math.log(greatest.flops / least.flops)
    final = 0.6 + 0.2 * size - 0.1 * size**2 + 0.002 * (draw_of(proposal) % 1_000 / 500 - 1)
    return tuple(final * (1 - 0.3 / epoch) for epoch in range(1, NUM_EPOCHS + 1))


def made_up(proposal: Proposal, experiment: Experiment, epochs: int | None = None) -> Outcome:
    """The end of a trial after so many epochs, or by chance after 1, 3 or all of them."""
    epochs = epochs or (NUM_EPOCHS, 1, 3)[draw_of(proposal) % 3]
    status: Status = "complete" if epochs == NUM_EPOCHS else "stopped"
    curve = curve_of(proposal, experiment)[:epochs]
    return Outcome(number=proposal.number, status=status, epochs=epochs, curve=curve, cost=proposal.cost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--sampler", choices=SAMPLERS, default="surrogate")
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 300, 1_000])
    parser.add_argument("--asks", type=int, default=40, help="times that each figure is of")
    parser.add_argument("--epochs", type=int, nargs="+", help="that freeze-thaw knows of")
    options = parser.parse_args()
    experiment = load_experiment(options.space)
    if options.epochs:
        with tempfile.TemporaryDirectory() as folder:
            seconds = time_decisions(experiment, max(options.epochs), Path(folder) / "study.journal")
        for num_epochs in options.epochs:
            tell(f"{experiment.name}, freeze-thaw, {num_epochs} epochs", seconds[:num_epochs][-options.asks :])
        return
    for num_finished in options.finished:
        with tempfile.TemporaryDirectory() as folder:
            seconds = time_asks(experiment, options.sampler, num_finished, options.asks, Path(folder) / "study.journal")
        tell(f"{experiment.name}, {options.sampler}, {num_finished} finished", seconds)


def tell(what: str, seconds: list[float]) -> None:
    middle, most, greatest = (1e3 * np.quantile(seconds, share) for share in (0.5, 0.95, 1))
    print(
        f"{what}: median {middle:.0f} ms, 95 % below {most:.0f}, greatest {greatest:.0f} of {len(seconds)}", flush=True
    )


def study_of(experiment: Experiment, sampler: SamplerName, journal: Path) -> Study:
    return Study(
        experiment.space,
        metrics=experiment.objectives,
        sampler=sampler,
        storage=JournalStorage(JournalFileBackend(str(journal))),
        num_trials=None,
        num_epochs=NUM_EPOCHS,
        seed=0,
    )


def time_asks(
    experiment: Experiment, sampler: SamplerName, num_finished: int, num_asks: int, journal: Path
) -> list[float]:
    begun = study_of(experiment, "random", journal)  # the first trials are drawn at random, which is soon done
    for _ in range(num_finished):
        proposal = begun.ask()
        assert proposal is not None, "the space is larger"
        begun.tell(made_up(proposal, experiment))
    study, in_flight, seconds = study_of(experiment, sampler, journal), [], []
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


def time_decisions(experiment: Experiment, num_epochs: int, journal: Path) -> list[float]:
    """CPU seconds of what `freeze-thaw` decides after each of so many epochs."""
    study = study_of(experiment, "surrogate", journal)
    race, in_flight = Race(study, FreezeThaw(study, num_epochs=NUM_EPOCHS)), deque[Proposal]()
    trained, seconds = dict[int, int](), list[float]()
    while len(seconds) < num_epochs:
        if len(in_flight) < NUM_IN_FLIGHT:
            proposal = race.ask()
            assert proposal is not None, "the space is larger"
            in_flight.append(proposal)
            continue
        proposal = in_flight.popleft()
        trained[proposal.number] = epochs = trained.get(proposal.number, 0) + 1
        curve = curve_of(proposal, experiment)[:epochs]
        started, goes_on = time.process_time(), False
        if epochs == NUM_EPOCHS:
            race.tell(made_up(proposal, experiment, epochs))
        elif goes_on := race.decide(proposal, curve) == "go":
            race.report(PartialTrial(proposal=proposal, curve=curve, seconds=epochs, train_seconds=epochs))
        follower = proposal if goes_on else race.ask()
        seconds.append(time.process_time() - started)
        assert follower is not None
        in_flight.append(follower)
    return seconds


if __name__ == "__main__":
    main()
