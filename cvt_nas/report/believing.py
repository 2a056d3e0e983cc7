"""How much a search believed of what it began with: the earlier runs and the user's priors, after so many trainings."""

from dataclasses import dataclass

from cvt_nas.errors import ArchError, RunFolderError, SpaceFileError
from cvt_nas.propose.beliefs import PRIORS, Trust
from cvt_nas.propose.earlier import beliefs_of
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.report.stopping import experiment_of, observation_of
from cvt_nas.run import RunFolder

STOPPED = 0.1  # an agreement below which a belief is not confirmed
_FEWEST = 3  # complete trials, before which the model is not used
_FIRST = 5  # trials, the first step; the next ones have twice as many each


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What became of a belief.

    Args:
        name: Place of an earlier run, or `priors`.
        steps: By the number of trials that had ended.
    """

    name: str
    steps: dict[int, Trust]

    @property
    def stopped_after(self) -> int | None:
        """After how many trials it was not believed any more, and has not been since."""
        stopped = None
        for number, trust in self.steps.items():
            stopped = None if trust.agreement >= STOPPED else number if stopped is None else stopped
        return stopped


def histories_of_beliefs(run: RunFolder) -> list[History]:
    """By the trials that had ended first; nothing where the run believed nothing, or its file is another version's."""
    try:
        experiment = experiment_of(run)
        beliefs = beliefs_of(experiment, run)
        numbers = {result.number for result in run.results()}
        ended = [result for result in run.ended() if result.number in numbers]
        observations = [observation_of(result, experiment.space) for result in ended]
    except (ArchError, RunFolderError, SpaceFileError):
        return []
    if not beliefs.names or experiment.search.sampler != "surrogate" or experiment.search.has_supernet:
        return []
    surrogate = Surrogate(
        experiment.space, costs=["flops"], num_epochs=run.manifest["epochs"], seed=run.manifest["seed"], beliefs=beliefs
    )
    steps = [_FIRST * 2**power for power in range(len(ended)) if _FIRST * 2**power < len(ended)]
    found = {
        step: surrogate.trust(observations[:step])
        for step in (*steps, len(ended))
        if sum(o.status == "complete" for o in observations[:step]) >= _FEWEST
    }
    return [
        History(name=name, steps={step: trusts[index] for step, trusts in found.items()})
        for index, name in enumerate(beliefs.names)
    ]


def belief_lines(run: RunFolder) -> list[str]:
    """For people: how well each belief agrees with what the trials taught, and when it was given up."""
    lines = []
    for history in histories_of_beliefs(run):
        if not history.steps:
            continue
        what = "search.priors" if history.name == PRIORS else f"learned from {history.name}"
        steps = [f"{trust.agreement:.2f} after {number}" for number, trust in history.steps.items()]
        (*_, last), stopped = history.steps.values(), history.stopped_after
        beyond = "beyond what follows from costs, " if history.name == PRIORS else ""
        lines.append(
            f"{what}: {beyond}its correlation with what is expected by the trials was {', '.join(steps)} trials "
            f"(weight {last.weight:.2f} ± {last.sd:.2f})"
            + ("" if stopped is None else f"; it was not believed any more after {stopped} trials")
        )
    return lines
