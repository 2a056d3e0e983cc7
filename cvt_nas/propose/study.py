"""Proposes trials and records how they end (ask and tell), in a storage of Optuna that survives a crash."""

import contextlib
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import optuna
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from cvt_nas.propose import samplers
from cvt_nas.propose.beliefs import NO_BELIEFS, Beliefs
from cvt_nas.propose.heirs import next_anchor
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.private import StoredTrials
from cvt_nas.propose.proposal import Ended, PartialTrial, Proposal
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.results import FAILURES, MAXIMISED, Metric, Prediction
from cvt_nas.space import ALL_COST_METRICS, CostMetric, Genome, GenomeSpace

STUDY_NAME = "cvt-nas"
_FITTED, _PREDICTED = "hyperparameters of curves", "predicted"


class Study:
    """Proposes trials (`ask`), and records how they end (`tell`).

    If the storage belongs to an interrupted search, trials that the record holds are marked as ended. `ask` then begins
    with the trials that were in flight. After them, it tries each architecture once more whose last trial failed or ran
    out of memory, with a new trial number and seed.

    Args:
        metrics: The objectives, accuracy first.
        sampler: One of `SAMPLERS`, or a plug-in; see `load_sampler`.
        storage: Storage of Optuna; None for one in memory.
        num_trials: Number of trials after which `ask` ends; None if it never ends.
        num_epochs: Number of epochs of a full training.
        seed: Seed of the proposals and of the trainings.
        anchors: Architectures that are proposed first, by name.
        heirs: Names of the anchors that are ranked candidates of a supernet, best first. They come last. The surrogate
            changes their order; see `next_anchor`.
        inherited: Accuracies of architectures with weights of a supernet, before any training of their own.
        per_second: Whether the surrogate maximises its expectation per second of training, rather than per epoch.
        beliefs: Beliefs of the surrogate about the space before the search.
        recorded: Trials that have ended. Optuna may not know of their end yet.
    """

    def __init__(
        self,
        space: GenomeSpace,
        *,
        metrics: Sequence[Metric],
        sampler: str,
        num_trials: int | None,
        num_epochs: int,
        seed: int,
        storage: BaseStorage | None = None,
        anchors: Mapping[str, Genome] | None = None,
        heirs: Sequence[str] = (),
        inherited: Mapping[Genome, float] | None = None,
        per_second: bool = False,
        beliefs: Beliefs = NO_BELIEFS,
        recorded: Sequence[Ended] = (),
    ) -> None:
        self._space, self._num_trials, self._seed, self._heirs = space, num_trials, seed, tuple(heirs)
        self._metrics = tuple(metrics)
        self._seen: set[Genome] = set()
        self._observed: dict[int, tuple[FrozenTrial, Observation]] = {}
        self._inherited = {space.canonical(genome): accuracy for genome, accuracy in (inherited or {}).items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._surrogate = self._optuna_sampler = None
        if sampler == "surrogate":
            costs: list[CostMetric] = [metric for metric in ALL_COST_METRICS if metric in metrics]
            self._surrogate = Surrogate(
                space, costs=costs, num_epochs=num_epochs, seed=seed, per_second=per_second, beliefs=beliefs
            )
        elif sampler != "random":
            self._optuna_sampler = samplers.UnseenSampler(sampler, space, seed=seed, seen=self._seen)
        self._study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=storage,
            directions=["maximize" if metric in MAXIMISED else "minimize" for metric in self._metrics],
            sampler=self._optuna_sampler or RandomSampler(seed),  # `RandomSampler` is never asked
            load_if_exists=True,
        )
        self._stored = StoredTrials(self._study)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names(list(self._metrics))
        if self._surrogate is not None:
            kept = self._study.user_attrs.get(_FITTED, {})
            self._surrogate.fitted |= {int(number): np.array(values) for number, values in kept.items()}
        self._orphans: list[FrozenTrial] = []
        self._paused: list[FrozenTrial] = []
        self._exhausted = False
        last = self._resume({ended.number: ended for ended in recorded})
        named = {name: space.canonical(genome) for name, genome in (anchors or {}).items()}
        self._anchors = {name: genome for name, genome in named.items() if genome not in self._seen}
        self._retries = self._failed(last, list(named.values()))

    def _failed(self, last: Mapping[Genome, FrozenTrial], first: Sequence[Genome]) -> list[FrozenTrial]:
        """The failed ones among the last trials of all architectures: `first` in its order, then others by number."""
        place = {genome: index for index, genome in enumerate(first)}
        failed = {
            genome: trial
            for genome, trial in last.items()
            if trial.state == TrialState.FAIL and trial.user_attrs.get("status") in FAILURES
        }
        return sorted(failed.values(), key=lambda trial: (
            place.get(self._canonical_of(trial), len(place)), trial.number
        ))  # fmt: skip

    def _canonical_of(self, trial: FrozenTrial) -> Genome:
        return self._space.canonical(samplers.genome_of(self._space, trial.params))

    def _resume(self, recorded: Mapping[int, Ended]) -> dict[Genome, FrozenTrial]:
        """Takes over the trials of an earlier process, and returns the last trial of each architecture."""
        last: dict[Genome, FrozenTrial] = {}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING:
                if trial.number in recorded:  # the process was killed before it could tell Optuna
                    self.tell(recorded[trial.number])
                    trial = self._study.get_trials(deepcopy=False)[trial.number]
                elif samplers.is_whole(trial, self._space):
                    (self._paused if samplers.progress_of(trial).is_paused else self._orphans).append(trial)
                else:  # the process was killed while Optuna wrote the proposal, so nothing was trained
                    self._study.tell(trial.number, state=TrialState.FAIL)
                    continue
            if samplers.is_whole(trial, self._space):
                last[self._canonical_of(trial)] = trial
        self._seen.update(last)  # in place, since the sampler shares the set
        return last

    @property
    def num_asked(self) -> int:
        """Number of architectures that were launched in this process or an earlier one. Each counts once."""
        return len(self._seen)

    @property
    def is_done(self) -> bool:
        """Whether every launched trial has ended, and no other will be launched."""
        return self.has_no_more and not self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    @property
    def has_no_more(self) -> bool:
        """Whether `ask` would return None, as far as is known without a proposal."""
        return not (self._orphans or self._retries) and (self._exhausted or self._is_full)

    def ask(self) -> Proposal | None:
        """The next architecture to train. None if the number of trials is reached, or nothing feasible and new is left.

        Trials in flight when the run was interrupted come first, unless `interrupted` has returned them. Then come
        architectures that failed, then anchors, then new proposals.
        """
        if self._orphans:
            return self._proposal(self._orphans.pop(0))
        if self._retries:
            failed = self._retries[0]
            anchor = {name: value for name, value in failed.user_attrs.items() if name == "anchor"}
            trial = self._begin(samplers.genome_of(self._space, failed.params), retry_of=failed.number, **anchor)
            del self._retries[0]
            return self._proposal(trial)
        if self._is_full:
            return None
        number, optunas = self._next_number, self._optuna_sampler
        trial = self._propose(number) if optunas is None else self._ask_optuna(optunas, number)
        if trial is None:
            self._exhausted = True
            return None
        proposal = self._proposal(trial)
        self._add_seen(proposal)
        return proposal

    def ask_for(self, genome: Genome, *, request: str) -> Proposal:
        """Begins a trial of a feasible genome that has no trial yet, even beyond the number of trials.

        The journal stores the id of the `request` with the trial.
        """
        proposal = self._proposal(self._begin(self._space.canonical(genome), request=request))
        self._add_seen(proposal)
        return proposal

    def trial_of(self, genome: Genome) -> int | None:
        """Number of the last trial of a network; None if it has none."""
        if (canonical := self._space.canonical(genome)) not in self._seen:
            return None
        trials = [trial for trial in self._study.get_trials(deepcopy=False) if samplers.is_whole(trial, self._space)]
        return max(trial.number for trial in trials if self._canonical_of(trial) == canonical)

    @property
    def requested(self) -> dict[str, int]:
        """Numbers of the trials that `ask_for` began, by the id of the request."""
        attributes = ((trial.number, trial.user_attrs) for trial in self._study.get_trials(deepcopy=False))
        return {found["request"]: number for number, found in attributes if "request" in found}

    def raise_to(self, num_trials: int) -> None:
        """Raises the number of trials to `num_trials`, if it is lower."""
        if self._num_trials is not None:
            self._num_trials = max(self._num_trials, num_trials)

    def _add_seen(self, proposal: Proposal) -> None:
        self._seen.add(self._space.canonical(proposal.genome))
        self._anchors = {name: genome for name, genome in self._anchors.items() if genome not in self._seen}

    def _propose(self, number: int) -> FrozenTrial | None:
        if self._surrogate is not None:
            genome, attributes = self._ask_surrogate(self._surrogate, number)
            if genome is not None:
                return self._begin(genome, **attributes)
        elif self._anchors:
            name, genome = next(iter(self._anchors.items()))
            return self._begin(genome, anchor=name)
        genome = samplers.draw_unseen(
            self._space, self._seen, random.Random(samplers.derive_seed(self._seed, number, "proposal"))
        )
        return None if genome is None else self._begin(genome)

    def _ask_surrogate(self, surrogate: Surrogate, number: int) -> tuple[Genome | None, dict[str, object]]:
        """A genome, and attributes of its trial: the name of an anchor, and what the surrogate predicts.

        There is no prediction for the initial design and for anchors that the surrogate did not choose.
        """
        observations, attributes = self._with_untrained(self.observed()), dict[str, object]()
        with self._keeping_fits(surrogate):
            if self._anchors:
                attributes["anchor"], genome, is_chosen = next_anchor(
                    self._anchors, self._heirs, observations, surrogate
                )
            else:
                genome = surrogate.propose(number, observations, self._seen)
                is_chosen = not surrogate.begins(number, observations)
            if genome is not None and is_chosen:
                attributes[_PREDICTED] = surrogate.predict(observations, [genome])[0].to_json()
        return genome, attributes

    def _with_untrained(self, observed: Mapping[int, Observation]) -> list[Observation]:
        """Adds observations of inherited accuracies for anchors that have not begun."""
        untrained = [
            Observation(genome=genome, curve=(), status="stopped", inherited=self._inherited[genome])
            for genome in self._anchors.values()
            if genome in self._inherited
        ]
        return [*observed.values(), *untrained]

    @contextlib.contextmanager
    def _keeping_fits(self, surrogate: Surrogate) -> Iterator[None]:
        """Stores hyperparameters that were fitted within the block before they are used.

        Otherwise, a crash could lose hyperparameters on which a stored proposal depends.
        """
        num_fitted = len(surrogate.fitted)
        yield
        if len(surrogate.fitted) > num_fitted:
            latest = sorted(surrogate.fitted)[-2:]
            self._study.set_user_attr(_FITTED, {str(used): surrogate.fitted[used].tolist() for used in latest})

    def observed(self) -> dict[int, Observation]:
        """Observations by trial number, in order, without failed trials that were tried again.

        A trial is read again only if it has changed. Optuna's storages then replace its object.
        """
        observed, trials = dict[int, Observation](), self._study.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in trials:
            if trial.number in retried:
                continue
            known = self._observed.get(trial.number)
            if known is None or known[0] is not trial:
                if not samplers.is_whole(trial, self._space):
                    continue
                observation = samplers.observation_of(trial, self._space)
                inherited = self._inherited.get(self._space.canonical(observation.genome))
                known = self._observed[trial.number] = trial, replace(observation, inherited=inherited)
            observed[trial.number] = known[1]
        return observed

    def is_initial(self, number: int, observed: Mapping[int, Observation]) -> bool:
        """Whether a trial belongs to the initial design of the surrogate."""
        assert self._surrogate is not None, "the sampler is the surrogate"
        return self._surrogate.begins(number, list(observed.values()))

    def next_is_initial(self, observed: Mapping[int, Observation]) -> bool:
        """Whether the next trial of `ask` belongs to the initial design."""
        return not self.has_no_more and self.is_initial(self._next_number, observed)

    def gains(self, observed: Mapping[int, Observation], numbers: Sequence[int]) -> tuple[float, np.ndarray]:
        """Expected addition to the hypervolume of the front.

        Returns:
            The gain of the next new trial, below 0 if there is none, and the gains of the trials in `numbers`.
        """
        assert self._surrogate is not None, "the sampler is the surrogate"
        observations, genomes = self._with_untrained(observed), [observed[number].genome for number in numbers]
        with self._keeping_fits(self._surrogate):
            first = [self._canonical_of(self._retries[0])] if self._retries else list[Genome]()
            if self._anchors and not first:
                first = [next_anchor(self._anchors, self._heirs, observations, self._surrogate)[1]]
            if self.has_no_more or first:
                gains = self._surrogate.gains(observations, [*first, *genomes])
                return (-1.0, gains[len(first) :]) if self.has_no_more else (float(gains[0]), gains[1:])
            genome, gain, gains = self._surrogate.weigh(self._next_number, observations, self._seen, others=genomes)
        return (-1.0 if genome is None else gain), gains

    @property
    def _next_number(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def _ask_optuna(self, sampler: samplers.UnseenSampler, number: int) -> FrozenTrial | None:
        if self._anchors:
            name, genome = next(iter(self._anchors.items()))
            waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if name not in (trial.user_attrs.get("anchor") for trial in waiting):  # else it was enqueued before a crash
                self._study.enqueue_trial(samplers.params_of(self._space, genome), user_attrs={"anchor": name})
        if not sampler.prepare(number):
            return None
        trial = self._study.ask(samplers.distributions_of(self._space))
        for name, value in self._attributes_of(samplers.genome_of(self._space, trial.params)).items():
            trial.set_user_attr(name, value)
        return self._study.get_trials(deepcopy=False)[trial.number]

    def _begin(self, genome: Genome, **attributes: object) -> FrozenTrial:
        """Begins a trial of `genome`."""
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=samplers.params_of(self._space, genome),
            distributions=samplers.distributions_of(self._space),
            user_attrs={**self._attributes_of(genome), **attributes},
        )
        return self._stored.add(trial)

    def _attributes_of(self, genome: Genome) -> dict[str, object]:
        """Architecture id, choices and costs of a genome, for users who open the journal in optuna-dashboard."""
        genes = zip(self._space.genes, genome, strict=True)
        choices = {gene.name: gene.options[index] for gene, index in genes}
        cost = self._space.cost(genome).to_json()
        return {"arch_id": self._space.arch_id(genome), "choices": choices, **cost}

    @property
    def _is_full(self) -> bool:
        return self._num_trials is not None and self.num_asked >= self._num_trials

    def report(self, trial: PartialTrial) -> None:
        """Stores the progress of a trial in flight, for `interrupted` after a crash. A paused one counts as gone on."""
        self._keep(trial, is_paused=False)

    def pause(self, trial: PartialTrial) -> None:
        """Stores the progress of a paused trial, for `paused` after a crash. For Optuna, the trial is still running."""
        self._keep(trial, is_paused=True)

    def _keep(self, trial: PartialTrial, *, is_paused: bool) -> None:
        number = trial.proposal.number
        progress = samplers.Progress(
            curve=trial.curve, seconds=trial.seconds, train_seconds=trial.train_seconds, is_paused=is_paused
        )
        self._stored.set_attributes(number, samplers.progress_to_attrs(progress, self._stored.attributes(number)))

    def paused(self) -> Iterator[PartialTrial]:
        """Trials that were paused when the search was interrupted."""
        return map(self._partial, self._paused)

    def interrupted(self) -> Iterator[PartialTrial]:
        """Yields the trials that were in flight when the search was interrupted. `ask` then does not return them."""
        while self._orphans:
            yield self._partial(self._orphans.pop(0))

    def _partial(self, trial: FrozenTrial) -> PartialTrial:
        progress = samplers.progress_of(trial)
        return PartialTrial(
            proposal=self._proposal(trial),
            curve=progress.curve,
            seconds=progress.seconds,
            train_seconds=progress.train_seconds,
        )

    def _proposal(self, trial: FrozenTrial) -> Proposal:
        genome = samplers.genome_of(self._space, trial.params)
        return Proposal(
            number=trial.number,
            genome=genome,
            cost=self._space.cost(genome),
            seed=samplers.derive_seed(self._seed, trial.number, "training"),
            predicted=None if (kept := trial.user_attrs.get(_PREDICTED)) is None else Prediction.from_json(kept),
        )

    def tell(self, ended: Ended) -> None:
        """Tells Optuna how a trial ended: complete with its values, stopped as pruned, and all others as failed."""
        attributes = {"status": ended.status, "epochs": ended.epochs, "curve": list(ended.curve)}
        self._stored.set_attributes(ended.number, attributes)
        if ended.status == "complete":
            costs = [getattr(ended.cost, metric) for metric in self._metrics[1:]]
            self._study.tell(ended.number, [ended.curve[-1], *costs])
        elif ended.status == "stopped":
            self._study.tell(ended.number, state=TrialState.PRUNED)
        else:
            self._stored.set_attributes(ended.number, {"reason": ended.reason or ""})
            self._study.tell(ended.number, state=TrialState.FAIL)
