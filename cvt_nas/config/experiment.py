"""An experiment: a space file, read and checked."""

import dataclasses
import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Self

import yaml
from pydantic import TypeAdapter, ValidationError

from cvt_nas.arch import NAMED_ARCHS, ArchConfig
from cvt_nas.config.anchors import anchors_of
from cvt_nas.config.building import check_feasible, space_of
from cvt_nas.config.checks import (
    check_deploy,
    check_same_twice,
    check_search,
    check_stages,
    check_supernet,
    check_training,
)
from cvt_nas.config.idle import without_effect
from cvt_nas.config.priors import priors_of
from cvt_nas.config.reader import MAX_LENGTH, Reader, did_you_mean, explain
from cvt_nas.config.sections import DaNasConfig, DataConfig, SearchConfig, SpaceFile, SupernetConfig, TrainingConfig
from cvt_nas.errors import ArchError, RunFolderError, SpaceFileError
from cvt_nas.latency import Deployment, LatencyTable
from cvt_nas.ready import ready_spaces
from cvt_nas.results import HypervolumeBox, Metric, rung_epochs
from cvt_nas.space import ALL_COST_METRICS, COST_METRICS, TIMED_METRICS, Genome, SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """A space file after it was read and checked.

    Args:
        anchors: Architectures that are evaluated first, by name. All are inside the space and its bounds.
        priors: Weight of each option of a gene, by the name of the gene; see `search.priors`.
        objectives: Metrics of the search. Accuracy and throughput are maximised, and other costs are minimised.
        text: Text of the file.
        warnings: Settings of the file that have no effect, one line each.
    """

    name: str
    space: SearchSpace
    anchors: Mapping[str, Genome]
    priors: Mapping[str, tuple[float, ...]]
    objectives: tuple[Metric, ...]
    data: DataConfig
    training: TrainingConfig
    supernet: SupernetConfig | None
    da_nas: DaNasConfig
    search: SearchConfig
    text: str
    warnings: tuple[str, ...] = ()

    @property
    def box(self) -> HypervolumeBox:
        least, greatest = self.space.cost_range
        return HypervolumeBox(least=least, greatest=greatest)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which the scheduler decides. They are defined without a scheduler, too."""
        return self._rungs()

    def rungs_of(self, manifest: Mapping[str, object]) -> tuple[int, ...]:
        """Rungs of an existing run, from its manifest. Old manifests have none, so the old rule is applied."""
        recorded = manifest.get("rungs")
        return tuple(recorded) if isinstance(recorded, list) else self._rungs(also_late=True)

    def _rungs(self, **rule: bool) -> tuple[int, ...]:
        search = self.search
        return rung_epochs(
            self.training.epochs, grace_period=search.grace_period, reduction_factor=search.reduction_factor, **rule
        )

    @property
    def goes_by_latency(self) -> bool:
        """Whether latency or throughput is an objective or a constraint, so that a search needs a `LatencyTable`."""
        return any(metric in self.objectives or metric in self.space.bounds for metric in TIMED_METRICS)

    @property
    def deployment(self) -> Deployment:
        """What latency is measured of: section `deploy`, or what it is by default."""
        return self.space.deployment or Deployment(image_size=self.space.image_size)

    def with_latency(self, table: LatencyTable) -> Self:
        """Returns the experiment with latency among the costs. Anchors that are too slow are dropped.

        Raises:
            SpaceFileError: No architecture is as fast as the constraints ask.
            RunFolderError: The table is of another space, or of another deployment. Or the fastest network would take
                no time by it.
        """
        table.check_fits(self.space.as_deployed.parts(), self.deployment)
        space = dataclasses.replace(self.space, latency=table)
        if (fastest := space.cost_range[0].latency_ms) <= 0:
            raise RunFolderError(
                f"latency_table: the fastest network of the space would take {fastest:g} ms; measure it again"
            )
        if space.sample_feasible(random.Random(0), tries=20_000) is None:
            least, bounds = space.cost_range[0], space.bounds
            limits = [
                (
                    f"{metric}.{side}",
                    bounds[metric].max or bounds[metric].min,
                    f"{ends} at {getattr(least, metric):.3g}",
                )
                for metric, (side, ends) in zip(TIMED_METRICS, (("max", "begins"), ("min", "ends")), strict=True)
                if metric in bounds
            ]
            raise SpaceFileError([
                f"constraints.{name}: got {limit:g}, no architecture meets it and the other constraints; the space "
                f"{where} on {table.device}"
                for name, limit, where in limits
            ])  # fmt: skip
        anchors = {name: genome for name, genome in self.anchors.items() if space.is_feasible(space.cost(genome))}
        return dataclasses.replace(self, space=space, anchors=anchors)

    def says(self, section: str, setting: str) -> bool:
        """Whether the file contains a setting, even with its default value."""
        return setting in (yaml.safe_load(self.text).get(section) or {})

    def changed(self, **sections: Mapping[str, object]) -> "Experiment":
        """Returns the experiment with other values in some sections of its file, such as `training={"lr": 1e-3}`.

        Raises:
            SpaceFileError: Values are wrong, or do not fit the rest.
        """
        if not any(sections.values()):
            return self
        tree = yaml.safe_load(self.text)
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values}
        return parse_experiment(yaml.safe_dump(tree, sort_keys=False), f"{self.name}, changed")

    def anchor_archs(self) -> dict[str, ArchConfig]:
        return {name: self.space.decode(genome) for name, genome in self.anchors.items()}

    def manifest(self, *, seed: int, num_trials: int) -> dict[str, object]:
        """Entries about the experiment in a run's manifest, as plain JSON values."""
        return {
            "format": 1,
            "name": self.name,
            "trials": num_trials,
            "seed": seed,
            "objectives": list(self.objectives),
            "hypervolume_box": self.box.to_json(),
            "epochs": self.training.epochs,
            "rungs": list(self.rungs),
            "dataset": self.data.dataset,
            "fingerprint": self.fingerprint,
            "space_file_sha256": hashlib.sha256(self.text.encode()).hexdigest(),
            "space_file": self.text,
            **({} if self.space.deployment is None else {"deploy": self.space.deployment.to_json()}),
            **({} if self.space.latency is None else {"latency_table": self.space.latency.to_json()}),
        }

    @property
    def fingerprint(self) -> str:
        """Hash of all settings that results depend on. Results with the same fingerprint are comparable.

        It leaves out the name, the numbers of trials and of further trainings, the handling of faults, and how batches
        are cut to fit a device's memory.
        """
        return _fingerprint_of(self.text)

    def compares_with(self, manifest: Mapping[str, object]) -> bool:
        """Whether the run of `manifest` belongs to this experiment, so that this file can resume it.

        The space file in the manifest decides. Its fingerprint may come from a version with another rule.
        """
        return self.fingerprint == _fingerprint_of(str(manifest["space_file"]))


def load_experiment(path: str | Path) -> Experiment:
    """Reads and checks a space file.

    Args:
        path: Path of a file, or the name of a space that comes with the package, such as `cvt13`.

    Raises:
        SpaceFileError: The file is missing, not YAML, or wrong. It holds all problems.
    """
    path = Path(path)
    ready = ready_spaces()
    if str(path) in ready and not path.is_file():
        path = ready[str(path)]
    try:
        if path.stat().st_size > 4 * MAX_LENGTH:  # a character has at most four bytes
            raise SpaceFileError([f"{path}: too long for a space file: {path.stat().st_size:,} bytes"])
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        if isinstance(error, FileNotFoundError) and not path.suffix:
            reason = f"{reason}, and no ready space has this name{did_you_mean(str(path), list(ready))}"
        raise SpaceFileError([f"{path}: cannot be read: {reason}"]) from error
    return parse_experiment(text, str(path))


def load_recipe(name: str) -> Experiment:
    """Loads the recipe of a published network: a space file whose space contains only that network.

    Raises:
        ArchError: There is no recipe with this name.
    """
    file = resources.files("cvt_nas") / "recipes" / f"{name}.yaml"
    if name not in NAMED_ARCHS or not file.is_file():
        raise ArchError(f"{name}: no recipe has this name, but {', '.join(NAMED_ARCHS)} have")
    return parse_experiment(file.read_text(encoding="utf-8"), f"recipe {name}")


def parse_experiment(text: str, where: str) -> Experiment:
    """Reads and checks the text of a space file. Messages call it `where`; see `load_experiment`."""
    reader = Reader(text, where)
    tree = reader.read()
    if not isinstance(tree, dict):
        reader.stop_if_wrong()
    try:
        file = _FILE.validate_json(json.dumps(tree))
    except ValidationError as error:
        for details in error.errors():
            reader.add(*explain(details, tree, SpaceFile))
        reader.stop_if_wrong()
        raise AssertionError("a failed validation has errors") from error
    reader.stop_if_wrong()
    return _build(file, reader)


_FILE = TypeAdapter(SpaceFile)

_OF_THE_MACHINE = ("micro_batch", "activation_checkpointing", "compile", "checkpoint_minutes")
# By section: settings that a run may be resumed with other values of. So may its name.
MAY_CHANGE: Mapping[str, tuple[str, ...]] = {
    "search": ("trials", "candidates", "confirm", "max_failures", "trial_timeout", "spread_last"),
    "data": ("show_images",),
    "training": _OF_THE_MACHINE,
    "supernet": _OF_THE_MACHINE,
}
# a supernet takes these settings from `training`
_TASK = (
    "loss",
    "class_weights",
    "metric",
    "teacher",
    "teacher_weight",
    "teacher_temperature",
)


def _build(file: SpaceFile, reader: Reader) -> Experiment:
    """Checks that all parts of a file fit each other, which pydantic cannot, and builds the experiment."""
    objectives: tuple[Metric, ...] = (
        "accuracy",
        *(metric for metric in ALL_COST_METRICS if getattr(file.objectives, metric) is not None),
    )
    if not 2 <= len(objectives) <= 3:
        told = {1: "accuracy alone", 4: "three costs"}.get(len(objectives), f"{len(objectives) - 1} costs")
        known = ", ".join(ALL_COST_METRICS)
        reader.add(("objectives",), f"got {told}, must hold one or two of {known} beside accuracy")
    check_same_twice(file, reader)
    file = _with_task_of_training(file, reader)
    check_stages(file.space, reader)
    check_training(file.training, "training", file.space, reader)
    check_search(file, reader)
    check_deploy(file, reader)
    check_supernet(file, reader)
    for metric in COST_METRICS:
        bound = getattr(file.constraints, metric)
        if bound.min is not None and bound.max is not None and bound.min > bound.max:
            reader.add(("constraints", metric), f"got min {bound.min} above max {bound.max}")
    reader.stop_if_wrong()
    space = space_of(file, reader)
    check_feasible(space, reader)
    anchors = anchors_of(file.anchors, space, reader)
    priors = priors_of(file.search.priors, space, reader)
    reader.stop_if_wrong()
    return Experiment(
        name=file.name,
        space=space,
        anchors=anchors,
        priors=priors,
        objectives=objectives,
        data=file.data,
        training=file.training,
        supernet=file.supernet,
        da_nas=file.da_nas,
        search=file.search,
        text=reader.text,
        warnings=without_effect(
            file,
            reader,
            chosen={gene.choice for gene in space.genes},
            preferred={gene.choice for gene in space.genes if gene.name in priors},
        ),
    )


def _with_task_of_training(file: SpaceFile, reader: Reader) -> SpaceFile:
    """Copies the task of section `training` to section `supernet`, except settings that are written there."""
    if file.supernet is None:
        return file
    task: dict[str, object] = {name: getattr(file.training, name) for name in _TASK}
    if file.training.teacher is not None:
        task["distillation"] = "none"
    absent = {name: value for name, value in task.items() if ("supernet", name) not in reader.lines}
    return dataclasses.replace(file, supernet=dataclasses.replace(file.supernet, **absent))


def _fingerprint_of(text: str) -> str:
    tree = yaml.safe_load(text)
    tree.pop("name")
    tree.setdefault("search", {})  # an absent section equals one with nothing but settings that may change
    for section, settings in MAY_CHANGE.items():
        for setting in settings:
            (tree.get(section) or {}).pop(setting, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
