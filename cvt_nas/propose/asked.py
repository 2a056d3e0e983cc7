"""Takes the requests that users send to a running search."""

from collections.abc import Mapping
from typing import Any

from cvt_nas.arch import ArchConfig
from cvt_nas.errors import ArchError, CvtNasError
from cvt_nas.propose.proposal import Proposal
from cvt_nas.propose.study import Study
from cvt_nas.results import Request
from cvt_nas.run import RunFolder
from cvt_nas.space import SearchSpace


class Asked:
    """Takes the requests of a run each time that its study decides what is trained next.

    A trial and the id of its request are one line of the journal. So a request begins one trial only, even if the
    search is killed: if its answer is missing after a kill, the journal supplies it.

    Args:
        is_fixed: Whether the study trains the best of ranked candidates. Their number cannot rise.
    """

    def __init__(self, study: Study, run: RunFolder, space: SearchSpace, *, is_fixed: bool) -> None:
        self._study, self._run, self._space, self._is_fixed = study, run, space, is_fixed

    def __call__(self) -> Proposal | None:
        """The next architecture that a user asked for. It also takes earlier requests to raise the number of trials."""
        for request in self._run.requests.waiting():
            if request.arch is not None:
                if (proposal := self._try(request, request.arch)) is not None:
                    return proposal
            elif request.trials is not None:
                self._raise(request, request.trials)
        return None

    def _try(self, request: Request, arch: ArchConfig) -> Proposal | None:
        begun = self._study.requested.get(request.id)
        if begun is not None:  # the process was killed before it could answer
            self._run.requests.answer(request, trial=begun)
            return None
        try:
            genome = genome_in(self._space, arch)
        except ArchError as error:
            self._run.requests.answer(request, refused=str(error))
            return None
        if (known := self._study.trial_of(genome)) is not None:
            self._run.requests.answer(request, refused=f"trial {known} has this architecture")
            return None
        proposal = self._study.ask_for(genome, request=request.id)
        self._run.requests.answer(request, trial=proposal.number)
        return proposal

    def _raise(self, request: Request, num_trials: int) -> None:
        if self._is_fixed:
            refused = "the trials are the best candidates; stop the search, and resume it with --trials"
            self._run.requests.answer(request, refused=refused)
            return
        self._study.raise_to(num_trials)
        self._run.requests.answer(request)


def genome_in(space: SearchSpace, arch: ArchConfig) -> tuple[int, ...]:
    """The genome of `arch`.

    Raises:
        ArchError: `arch` lies outside the space, or outside its constraints.
    """
    try:
        genome = space.encode(arch)
    except ArchError as error:
        raise ArchError(f"is not in the space: {error}") from error
    if not space.is_feasible(cost := space.cost(genome)):
        costs = f"{cost.params:,} params, {cost.flops:,} FLOPs"
        raise ArchError(f"is outside the constraints of the space file: {costs}")
    return genome


def arch_of_genes(space: SearchSpace, genes: Mapping[str, Any]) -> ArchConfig:
    """The architecture with these options. Their keys are names of genes, such as `stage0.depth`.

    Raises:
        CvtNasError: A gene is missing or unknown, or has no such option.
    """
    names = [gene.name for gene in space.genes]
    if unknown := [str(name) for name in genes if name not in names]:
        raise CvtNasError(f"{unknown[0]}: is no choice of the space, which has {', '.join(names)}")
    if missing := [name for name in names if name not in genes]:
        raise CvtNasError(f"{missing[0]}: is missing")
    for gene in space.genes:
        if genes[gene.name] not in gene.options:
            raise CvtNasError(f"{gene.name}: {genes[gene.name]!r} is not one of {', '.join(map(str, gene.options))}")
    return space.decode([gene.options.index(genes[gene.name]) for gene in space.genes])


def genes_of(space: SearchSpace, arch: ArchConfig) -> dict[str, Any]:
    """Inverse of `arch_of_genes`. Raises ArchError if `arch` lies outside the space."""
    genome = space.encode(arch)
    return {gene.name: gene.options[index] for gene, index in zip(space.genes, genome, strict=True)}
