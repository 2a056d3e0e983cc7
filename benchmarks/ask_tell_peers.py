"""Peers of `peers.py` that are asked for networks and told their losses: pymoo, SMAC3, Ax and NePS.

All minimise 1 - accuracy and costs as shares of the reference point, the scale that searches are judged on. Those with
an integer parameter for each ordinal choice have a categorical one for the others.

- `pymoo-nsga2`, `pymoo-nsga2:20`: NSGA-II with duplicates eliminated, population 100 (its default) or 20. A generation
  is asked for once the one before is trained.
- `smac-parego`: SMAC3's random forest on ParEGO's scalarisations, one training of a configuration. It is told how many
  trainings the budget is, since it begins with a Sobol design of a quarter of them, or ten for each choice if that is
  less. Its default fits a forest, and draws a scalarisation, for every eighth proposal; `smac-parego:1` does for each.
- `ax`: Ax's default for several objectives, which chooses its own number of first trials; needs seconds a proposal. It
  is told the reference point by which searches are judged, as its documentation advises where one is known.
- `neps-moasha`, `neps-primo`: NePS. A configuration goes on from its checkpoint where it is asked for at a later rung.
  PriMO is by priors; here they are at the middle of each choice with little confidence, for want of any. NePS 0.16
  fails where trials of a rung still run, as their losses are missing; so it is asked for one network at a time,
  whatever the number of workers. It wants two epochs at least, so a table of one is announced with two: with a factor
  of three that is a single rung, the last, and both are plain searches.
"""

import logging
import tempfile
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cvt_nas.bench import Settings, Table
from cvt_nas.propose.asha import Decision
from cvt_nas.propose.samplers import derive_seed
from cvt_nas.propose.simulation import Outcome
from cvt_nas.propose.study import Proposal
from cvt_nas.space import Genome

NAMES = ("pymoo-nsga2", "pymoo-nsga2:20", "smac-parego", "smac-parego:1", "ax", "neps-moasha", "neps-primo")


@dataclass(frozen=True, slots=True)
class Question:
    """A network to train.

    Args:
        key: By which the peer knows its answer.
        number: Of an earlier question whose trial goes on; None for a new one.
        epochs: After which it is answered; None for all.
    """

    key: Any
    genome: Genome
    number: int | None = None
    epochs: int | None = None


class Optimiser(Protocol):
    """What is common to the peers."""

    def ask(self, number: int) -> Question | None:
        """The next question, whose trial has `number` if it is new; None while answers are waited for."""
        ...

    def tell(self, key: Any, losses: Sequence[float]) -> None:
        """The answer: losses in [0, 1], accuracy's first."""
        ...


class AskTell:
    """A search by an optimiser that is asked and told."""

    def __init__(self, table: Table, settings: Settings, optimiser: Optimiser, seed: int) -> None:
        self._table, self._settings, self._optimiser, self._seed = table, settings, optimiser, seed
        self._proposals = list[Proposal]()
        self._asked = dict[int, Question]()  # the latest question of each trial

    def ask(self) -> Proposal | None:
        question = self._optimiser.ask(len(self._proposals))
        if question is None:
            return None
        number = question.number
        if number is None:
            number = len(self._proposals)
            training_seed = derive_seed(self._seed, number, "training")
            cost = self._table.cost(question.genome)
            self._proposals.append(Proposal(number=number, genome=question.genome, cost=cost, seed=training_seed))
        self._asked[number] = question
        return self._proposals[number]

    def decide(self, proposal: Proposal, curve: tuple[float, ...], *, train_seconds: float) -> Decision:
        del train_seconds
        if self._asked[proposal.number].epochs != len(curve):
            return "go"
        self._answer(proposal.number, curve[-1])
        return "pause"

    def tell(self, ended: Outcome) -> None:
        self._answer(ended.number, ended.curve[-1])

    def _answer(self, number: int, accuracy: float) -> None:
        cost, (_, greatest) = self._proposals[number].cost, self._table.cost_range
        costs = [metric for metric in self._settings.metrics if metric != "accuracy"]
        shares = [getattr(cost, metric) / getattr(greatest, metric) for metric in costs]
        self._optimiser.tell(self._asked[number].key, [1 - accuracy, *shares])


def start(name: str, table: Table, settings: Settings, *, seed: int) -> AskTell:
    """The search of one of `NAMES`."""
    kind, _, variant = name.partition(":")
    if kind == "pymoo-nsga2":
        optimiser: Optimiser = Nsga2(table, settings, seed, population=int(variant or 100))
    elif kind == "smac-parego":
        optimiser = ParEgo(table, settings, seed, retrain_after=int(variant or 8))
    elif kind == "ax":
        optimiser = Ax(table, settings, seed)
    else:
        optimiser = Neps(table, kind.removeprefix("neps-"), seed)
    return AskTell(table, settings, optimiser, seed)


class Nsga2:
    """Of pymoo."""

    def __init__(self, table: Table, settings: Settings, seed: int, *, population: int) -> None:
        from pymoo.algorithms.moo.nsga2 import NSGA2  # pyright: ignore[reportMissingImports]
        from pymoo.core.problem import Problem  # pyright: ignore[reportMissingImports]
        from pymoo.core.termination import NoTermination  # pyright: ignore[reportMissingImports]
        from pymoo.operators.crossover.sbx import SBX  # pyright: ignore[reportMissingImports]
        from pymoo.operators.mutation.pm import PM  # pyright: ignore[reportMissingImports]
        from pymoo.operators.repair.rounding import RoundingRepair  # pyright: ignore[reportMissingImports]
        from pymoo.operators.sampling.rnd import IntegerRandomSampling  # pyright: ignore[reportMissingImports]

        most = np.array([len(gene.options) - 1 for gene in table.genes])
        problem = Problem(n_var=len(most), n_obj=len(settings.metrics), xl=0, xu=most, vtype=int)
        rounded = {"vtype": float, "repair": RoundingRepair()}
        self._problem = problem
        self._algorithm = NSGA2(
            pop_size=population,
            sampling=IntegerRandomSampling(),
            crossover=SBX(**rounded),
            mutation=PM(**rounded),
            eliminate_duplicates=True,
        )
        self._algorithm.setup(problem, termination=NoTermination(), seed=seed, verbose=False)
        self._generation: Any = None
        self._left = deque[int]()
        self._losses = dict[int, Sequence[float]]()

    def ask(self, number: int) -> Question | None:
        del number
        if not self._left and self._generation is None:
            self._generation = self._algorithm.ask()
            self._left.extend(range(len(self._generation)))
        if not self._left:
            return None
        index = self._left.popleft()
        return Question(key=index, genome=tuple(int(option) for option in self._generation[index].X))

    def tell(self, key: int, losses: Sequence[float]) -> None:
        from pymoo.problems.static import StaticProblem  # pyright: ignore[reportMissingImports]

        self._losses[key] = losses
        if len(self._losses) == len(self._generation):
            found = np.array([self._losses[index] for index in range(len(self._generation))])
            self._algorithm.evaluator.eval(StaticProblem(self._problem, F=found), self._generation)
            self._algorithm.tell(infills=self._generation)
            self._generation, self._losses = None, {}


class ParEgo:
    """Of SMAC3."""

    def __init__(self, table: Table, settings: Settings, seed: int, *, retrain_after: int) -> None:
        from ConfigSpace import (  # pyright: ignore[reportMissingImports]
            CategoricalHyperparameter,
            ConfigurationSpace,
            UniformIntegerHyperparameter,
        )
        from smac import HyperparameterOptimizationFacade, Scenario  # pyright: ignore[reportMissingImports]
        from smac.multi_objective.parego import ParEGO  # pyright: ignore[reportMissingImports]
        from smac.runhistory.dataclasses import TrialValue  # pyright: ignore[reportMissingImports]

        logging.getLogger("smac").setLevel(logging.ERROR)
        space = ConfigurationSpace(seed=seed)
        self._genes = table.genes
        for gene in table.genes:
            most = len(gene.options) - 1
            if gene.is_ordinal and most:
                space.add(UniformIntegerHyperparameter(gene.name, 0, most))
            elif most:
                space.add(CategoricalHyperparameter(gene.name, list(range(most + 1))))
        self._folder = tempfile.TemporaryDirectory()
        num_trainings = max(settings.budget // table.num_epochs, 1)  # of which its first, Sobol design takes a quarter
        scenario = Scenario(
            space, objectives=list(settings.metrics), n_trials=num_trainings, seed=seed, deterministic=True,
            output_directory=self._folder.name,
        )  # fmt: skip
        self._smac = HyperparameterOptimizationFacade(
            scenario,
            _not_called,
            multi_objective_algorithm=ParEGO(scenario),
            intensifier=HyperparameterOptimizationFacade.get_intensifier(scenario, max_config_calls=1),
            config_selector=HyperparameterOptimizationFacade.get_config_selector(scenario, retrain_after=retrain_after),
            logging_level=False,
            overwrite=True,
        )
        self._value = TrialValue

    def ask(self, number: int) -> Question:
        del number
        asked = self._smac.ask()
        return Question(key=asked, genome=_genome(self._genes, dict(asked.config)))

    def tell(self, key: Any, losses: Sequence[float]) -> None:
        self._smac.tell(key, self._value(cost=list(losses), time=1.0), save=False)


def _not_called(config: Any, seed: int = 0) -> float:
    raise AssertionError(f"SMAC is asked and told, and does not train {config} with seed {seed}")


class Ax:
    """Its client, with the strategy that it chooses."""

    def __init__(self, table: Table, settings: Settings, seed: int) -> None:
        import torch
        from ax.api.client import Client  # pyright: ignore[reportMissingImports]
        from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", module=r"(ax|botorch|gpytorch|linear_operator)\.")
        logging.getLogger("ax").setLevel(logging.ERROR)
        self._genes, self._names = table.genes, [f"loss_of_{metric}" for metric in settings.metrics]
        self._client = Client(random_seed=seed)
        self._client.configure_experiment(parameters=[
            RangeParameterConfig(name=gene.name, parameter_type="int", bounds=(0, len(gene.options) - 1))
            if gene.is_ordinal
            else ChoiceParameterConfig(
                name=gene.name, parameter_type="int", values=list(range(len(gene.options))), is_ordered=False
            )
            for gene in table.genes
            if len(gene.options) > 1
        ])  # fmt: skip
        self._client.configure_optimization(
            objective=", ".join(f"-{name}" for name in self._names),
            outcome_constraints=[f"{name} <= 1" for name in self._names],  # on objectives: its reference point
        )

    def ask(self, number: int) -> Question:
        del number
        ((key, config),) = self._client.get_next_trials(max_trials=1).items()
        return Question(key=key, genome=_genome(self._genes, config))

    def tell(self, key: int, losses: Sequence[float]) -> None:
        self._client.complete_trial(trial_index=key, raw_data=dict(zip(self._names, losses, strict=True)))


class Neps:
    """MO-ASHA and PriMO."""

    def __init__(self, table: Table, kind: str, seed: int) -> None:
        import neps  # pyright: ignore[reportMissingImports]
        import torch

        logging.getLogger("neps").setLevel(logging.ERROR)
        np.random.seed(seed)  # it draws from the global generators
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self._genes, self._last_epoch = table.genes, max(table.num_epochs, 2)
        parameters: dict[str, Any] = {
            gene.name: neps.HPOInteger(0, len(gene.options) - 1)
            if gene.is_ordinal
            else neps.HPOCategorical(list(range(len(gene.options))))
            for gene in table.genes
            if len(gene.options) > 1
        }
        middle = {gene.name: (len(gene.options) - 1) // 2 for gene in table.genes if len(gene.options) > 1}
        space = neps.SearchSpace({**parameters, "epochs": neps.HPOInteger(1, self._last_epoch, is_fidelity=True)})
        optimiser = (
            neps.algorithms.moasha(space)
            if kind == "moasha"
            else neps.algorithms.primo(
                space,
                prior_centers={"accuracy": middle},
                prior_confidences={"accuracy": dict.fromkeys(middle, 0.25)},
            )
        )
        self._neps = neps.AskAndTell(optimiser)
        self._numbers = dict[str, int]()
        self._is_waiting = False

    def ask(self, number: int) -> Question | None:
        if self._is_waiting:
            return None
        self._is_waiting = True
        trial = self._neps.ask()
        before = trial.metadata.previous_trial_id
        earlier = None if before is None else self._numbers[before]
        self._numbers[trial.metadata.id] = number if earlier is None else earlier
        epochs = int(trial.config["epochs"])
        return Question(
            key=trial.metadata.id,
            genome=_genome(self._genes, trial.config),
            number=earlier,
            epochs=None if epochs == self._last_epoch else epochs,
        )

    def tell(self, key: str, losses: Sequence[float]) -> None:
        self._is_waiting = False
        self._neps.tell(key, list(losses))


def _genome(genes: Sequence[Any], config: Mapping[str, Any]) -> Genome:
    """A gene without a choice is left out."""
    return tuple(int(config.get(gene.name, 0)) for gene in genes)
