"""How far the trials of a search confirmed its beliefs, which are the earlier runs and the user's priors."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvt_nas.config import space_file_of
from cvt_nas.errors import ArchError, RunFolderError, SpaceFileError
from cvt_nas.propose.beliefs import PRIORS, Trust
from cvt_nas.propose.earlier import beliefs_of
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.report.page import table_html
from cvt_nas.report.stopping import observation_of
from cvt_nas.run import RunFolder

STOPPED = 0.1  # agreement below which a belief counts as given up
_FEWEST = 3  # complete trials that the model needs
_FIRST = 5  # trials of the first step; each further step has twice as many
_RUN_TOLD_NOTHING = (
    "told nothing: a model of its trials does not predict the ones that are left out of it; the search went on "
    "without it"
)
_PRIORS_TOLD_NOTHING = (
    "told nothing: within the constraints, they prefer no network to another of the same costs; the search went on "
    "without them"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The trust in one belief over the course of a search.

    Args:
        name: Place of an earlier run, or `priors`.
        steps: Trust in the belief, by the number of trials that had ended. There is at least one.
    """

    name: str
    steps: dict[int, Trust]

    @property
    def stopped_after(self) -> int | None:
        """Number of trials after which the belief was given up for good. None if it was not, or if it told nothing."""
        stopped = None
        for number, trust in self.steps.items():
            is_away = trust.agreement is not None and trust.agreement < STOPPED
            stopped = None if not is_away else number if stopped is None else stopped
        return stopped

    @property
    def told_nothing(self) -> bool:
        """Whether the belief was the same for all networks of the space."""
        return all(trust.agreement is None for trust in self.steps.values())


def histories_of_beliefs(run: RunFolder) -> list[History]:
    """The history of each belief. Empty if the run had no beliefs, if too few trials are complete, or if another
    version wrote its space file."""
    try:
        experiment = space_file_of(run)
        beliefs, search = beliefs_of(experiment, run), experiment.search
        if not beliefs.names or search.sampler != "surrogate" or search.has_supernet:
            return []
        numbers = {result.number for result in run.results()}
        ended = [result for result in run.ended() if result.number in numbers]
        observations = [observation_of(result, experiment.space) for result in ended]
    except (ArchError, RunFolderError, SpaceFileError):
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
        for index, name in enumerate(beliefs.names if found else ())
    ]


def beginning_lines(manifest: Mapping[str, Any]) -> list[str]:
    """One line for each earlier run of a search that begins. It says whether the run can tell anything."""
    return [
        f"{source['place']}: {source['trials']} trials do not predict each other yet, so they tell nothing; the search "
        f"goes on without them"
        if source.get("skill") == 0
        else f"learns from {source['trials']} trials of {source['place']}"
        for source in manifest.get("learn_from", ())
    ]


def belief_lines(histories: Sequence[History]) -> list[str]:
    """One line for each belief. It tells how far the belief agrees with the trials, and when it was given up."""
    lines = []
    for history in histories:
        what = "search.priors" if history.name == PRIORS else f"learned from {history.name}"
        if history.told_nothing:
            lines.append(f"{what}: {_PRIORS_TOLD_NOTHING if history.name == PRIORS else _RUN_TOLD_NOTHING}")
            continue
        steps = [f"{agreement_text(trust)} after {number}" for number, trust in history.steps.items()]
        (*_, last), stopped = history.steps.values(), history.stopped_after
        beyond = "beyond what follows from costs, " if history.name == PRIORS else ""
        lines.append(
            f"{what}: {beyond}its correlation with the expected accuracy was {', '.join(steps)} trials "
            f"(weight {last.weight:.2f} ± {last.sd:.2f})"
            + ("" if stopped is None else f"; it was given up after {stopped} trials")
        )
    return lines


def agreement_text(trust: Trust) -> str:
    return "-" if trust.agreement is None else f"{trust.agreement:.2f}"


def beliefs_section(run: RunFolder) -> str:
    """The lines and a table of the beliefs as HTML. Empty if the run had no beliefs."""
    histories = histories_of_beliefs(run)
    if not histories:
        return ""
    rows = [
        (history.name, number, agreement_text(trust), f"{trust.weight:.2f} ± {trust.sd:.2f}")
        for history in histories
        for number, trust in history.steps.items()
    ]
    return (
        "<h3>What was believed</h3>"
        + table_html("What was believed", ("belief", "trials", "correlation", "weight"), rows, prose=(0,))
        + "".join(f"<p>{html.escape(line)}</p>" for line in belief_lines(histories))
    )
