"""Requests of people to a search. They are checked before they are written into the run folder."""

import dataclasses
import json
import re
from typing import Any

import yaml

from cvt_nas.arch import NAMED_ARCHS, ArchConfig, arch_from_dict
from cvt_nas.config import experiment_of
from cvt_nas.errors import ArchError, RunFolderError
from cvt_nas.propose.asked import arch_of_genes, genes_of, genome_in
from cvt_nas.results import Request
from cvt_nas.run import RunFolder
from cvt_nas.run.picking import find_arch

_MAX_TRIALS = 1_000_000


def ask_to_stop(run: RunFolder) -> Request:
    """Asks the search of a run to stop in order. Raises RunFolderError if no search is at work."""
    if not is_search(run):
        raise RunFolderError(f"{run.place}: is the training of one architecture, and no search; stop it by Ctrl-C")
    if not run.is_at_work():
        raise RunFolderError(f"{run.place}: no search is at work, so there is nothing to stop")
    return run.requests.add("stop")


def ask_for_trials(run: RunFolder, num_trials: int) -> Request:
    """Asks for `num_trials` trials in total.

    Raises:
        RunFolderError: If at least as many trials are planned already, or if the number of trials cannot rise.
    """
    _check_trains(run)
    planned = run.num_planned or 0
    if not planned < num_trials <= _MAX_TRIALS:
        raise RunFolderError(f"{num_trials} trials: must be above the {planned} that are planned, up to {_MAX_TRIALS}")
    if experiment_of(run).search.has_supernet:
        raise RunFolderError(
            f"{run.place}: its trials are the best candidates of a supernet; stop it, and resume it with --trials"
        )
    return run.requests.add("trials", trials=num_trials)


def ask_to_try(run: RunFolder, arch: ArchConfig) -> Request:
    """Asks for a trial of `arch` as the next one. The image size and the number of classes are those of the run.

    Raises:
        ArchError: If `arch` lies outside the space of the run or its constraints.
        RunFolderError: If a trial or a waiting request has `arch` already, or if the run trains no trials.
    """
    _check_trains(run)
    space = experiment_of(run).space
    try:
        arch = dataclasses.replace(
            arch, image_size=space.image_size, num_channels=space.num_channels, num_classes=space.num_classes
        )
        genome_in(space, arch)
    except ArchError as error:
        raise ArchError(f"{arch.id} {error}") from error
    for result in run.results():
        if result.arch_id == arch.id:
            more = "" if result.status == "complete" else f"; cvt-nas train {run.place}:{arch.id} trains it in full"
            raise RunFolderError(f"{arch.id}: trial {result.number} has this architecture, {result.status}{more}")
    for request in run.requests.waiting():
        if request.arch == arch:
            raise RunFolderError(f"{arch.id}: was asked for already, and waits")
    return run.requests.add("try", arch=arch)


def parse_arch(text: str, run: RunFolder) -> ArchConfig:
    """Reads an architecture that a person has written.

    Args:
        text: Content of an `arch.json`, or choices such as `stage0.depth: 2` in a line each, or a published name such
            as `cvt-13`, or what `arch_in` takes. It never names a file.

    Raises:
        CvtNasError: If it is none of these.
    """
    text = text.strip()
    if text in NAMED_ARCHS:
        return NAMED_ARCHS[text]
    if text.startswith("{"):
        try:
            return arch_from_dict(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ArchError(f"the architecture cannot be read: not JSON: {error}") from error
    if ":" in text:
        return arch_of_genes(experiment_of(run).space, _choices(text))
    if not looks_like_id(text):
        raise ArchError(f"the architecture cannot be read: give choices such as stage0.depth: 2, one a line, the "
                        f"content of an arch.json, an id, a trial's number, or one of "
                        f"{', '.join(NAMED_ARCHS)}")  # fmt: skip
    return arch_in(run, text)


def looks_like_id(text: str) -> bool:
    """Whether `text` may be an arch id, the beginning of one, or the number of a trial."""
    return re.fullmatch("[0-9a-f]{1,64}", text) is not None


def arch_in(run: RunFolder, named: str) -> ArchConfig:
    """An architecture of a run: of the trial with this number, or of the trial or candidate whose id begins so.

    Raises:
        RunFolderError: No architecture or several are named so.
    """
    return find_arch(run.results(), run.candidates(), named, run.place)


def _choices(text: str) -> dict[str, Any]:
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = re.fullmatch(r"([\w.]+)\s*:\s*([\w.+-]+)", line)
        if match is None:
            raise ArchError(f"the architecture cannot be read: {line[:80]!r}: must be as stage0.depth: 2")
        try:
            found[match[1]] = yaml.safe_load(match[2])
        except ValueError as error:  # what looks like a date and is none
            raise ArchError(f"{match[1]}: got {match[2]}: {error}") from error
    return found


def text_of(arch: ArchConfig, run: RunFolder) -> str:
    """`arch` as lines that `parse_arch` reads. Raises ArchError if it lies outside the space of the run."""
    return "".join(f"{name}: {value}\n" for name, value in genes_of(experiment_of(run).space, arch).items())


def is_search(run: RunFolder) -> bool:
    """Whether the run is a search. Otherwise it is the training of one architecture."""
    return "arch_id" not in run.manifest


def _check_trains(run: RunFolder) -> None:
    if not is_search(run):
        raise RunFolderError(f"{run.place}: is the training of one architecture, and no search")
    if run.manifest["epochs"] == 0:
        raise RunFolderError(f"{run.place}: its search trains no trials (training.epochs is 0)")
