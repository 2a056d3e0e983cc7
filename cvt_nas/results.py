"""What a search produced: trial results, their confirmation, the Pareto front, its hypervolume, the run folder.

`RunFolder` is the only code that knows file names under `results/`.
"""

import dataclasses
import json
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from cvt_nas.arch import ArchConfig, Cost, arch_from_dict, arch_to_dict
from cvt_nas.errors import RunFolderError

Metric = Literal["accuracy", "params", "flops"]
Status = Literal["complete", "stopped", "diverged", "failed", "oom"]

# A million trials would take longer than anyone waits, and in decimals the two parts can be read off.
_ROUND = 1_000_000


# Of means, so that equal ones are equal, whatever they are sums of.
_DIGITS = 12


def further_number(trial: int, round_: int) -> int:
    """Number of the further training of `trial` in round 1, 2, ...: 2_000_037 is the second one of trial 37.

    A function of the two alone, so that neither more trials nor more rounds change what is on disk.
    """
    assert 0 <= trial < _ROUND
    assert round_ >= 1
    return round_ * _ROUND + trial


def round_and_trial(number: int) -> tuple[int, int]:
    """The two parts of `further_number`; round 0 is the race itself."""
    return divmod(number, _ROUND)


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """What further trainings of one architecture reached, with seeds that had no part in its selection.

    Args:
        accuracies: Of those that reached the last epoch, in rising order; at least one.
        num_lost: Further trainings that diverged, failed or ran out of memory. They have no accuracy that compares,
            so that the mean is of an architecture's trainings that end well; how many do not stands beside it.
        membership: Share of bootstrap resamples in which the architecture is on the front; None with one seed, whose
            resamples are all the same.
    """

    accuracies: tuple[float, ...]
    num_lost: int = 0
    membership: float | None = None

    @property
    def mean(self) -> float:
        return round(statistics.fmean(self.accuracies), _DIGITS)

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds, with n - 1 degrees of freedom; None with one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    def to_json(self) -> dict[str, float | None]:
        """Plain values, in the names that scripts rely on."""
        return {
            "accuracy_sd": self.sd,
            "seeds": len(self.accuracies),
            "seeds_lost": self.num_lost,
            "membership": self.membership,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """One trial as it ended.

    Args:
        number: Number of the trial in the run and in Optuna's study, from 0; of a further training, see
            `further_number`.
        arch: What was trained.
        status: `complete` reached the full number of epochs; `stopped` was ended by the scheduler;
            `diverged` met a loss that is not finite; `oom` ran out of device memory; `failed` raised.
        epochs: Epochs that were trained.
        accuracy: Fraction of the search split after the last of them; None where there was none. Where there is a
            `confirmation`, its mean, which is what competes; the trial's own is `own_accuracy`.
        cost: Exact params and FLOPs.
        curve: Accuracy on the search split after each epoch.
        seconds: From the proposal to the result, worker start and data included.
        train_seconds: The part of `seconds` spent in epochs, their evaluation included.
        seed: Seed of this trial's training.
        device: Where it ran, `cpu` or the index of the GPU on its node.
        reason: Why it ended, where it did not end well.
        confirmation: Of its architecture, where `RunFolder.confirmed` made this; never in the record.
    """

    number: int
    arch: ArchConfig
    status: Status
    epochs: int
    accuracy: float | None
    cost: Cost
    curve: tuple[float, ...]
    seconds: float
    train_seconds: float
    seed: int
    device: str = "cpu"
    reason: str | None = None
    confirmation: Confirmation | None = None

    @property
    def arch_id(self) -> str:
        return self.arch.id

    @property
    def own_accuracy(self) -> float | None:
        """Accuracy of this one training, and so of the weights that it left."""
        return self.accuracy if self.confirmation is None else self.curve[-1]

    def metric(self, name: Metric) -> float:
        value = self.accuracy if name == "accuracy" else getattr(self.cost, name)
        assert value is not None, "only finished trials have an accuracy"
        return value

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the names that scripts rely on."""
        return {
            "number": self.number,
            "arch_id": self.arch_id,
            "arch": arch_to_dict(self.arch),
            "status": self.status,
            "epochs": self.epochs,
            "accuracy": self.accuracy,
            "params": self.cost.params,
            "flops": self.cost.flops,
            "curve": list(self.curve),
            "seconds": round(self.seconds, 3),
            "train_seconds": round(self.train_seconds, 3),
            "seed": self.seed,
            "device": self.device,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        values = {field.name: tree[field.name] for field in dataclasses.fields(cls) if field.name in tree}
        return cls(
            **{
                **values,
                "arch": arch_from_dict(tree["arch"]),
                "cost": Cost(params=tree["params"], flops=tree["flops"]),
                "curve": tuple(tree["curve"]),
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class HypervolumeBox:
    """The fixed box in which hypervolume is measured, so that runs of one space compare.

    The reference point is accuracy 0 at the space's greatest params and FLOPs; the ideal one is
    accuracy 1 at its least. Each axis is scaled to [0, 1] between them, linearly.
    """

    least: Cost
    greatest: Cost

    def normalise(self, results: Sequence[TrialResult], metrics: Sequence[Metric]) -> np.ndarray:
        """Losses in [0, 1], `(results, metrics)`, smaller is better; the reference point is all ones."""
        columns = []
        for metric in metrics:
            values = np.array([result.metric(metric) for result in results], dtype=float)
            if metric == "accuracy":
                columns.append(1 - values)
            else:
                low, high = getattr(self.least, metric), getattr(self.greatest, metric)
                columns.append((values - low) / max(high - low, 1))
        return np.stack(columns, axis=1) if results else np.empty((0, len(metrics)))


def is_non_dominated(losses: np.ndarray) -> np.ndarray:
    """Which rows no other row dominates: at least as small everywhere and smaller somewhere.

    Args:
        losses: `(points, objectives)`, smaller is better.

    Returns:
        Booleans, `(points,)`. Equal rows do not dominate each other.
    """
    at_most = (losses[:, None, :] <= losses[None, :, :]).all(axis=2)
    below = (losses[:, None, :] < losses[None, :, :]).any(axis=2)
    return np.asarray(~(at_most & below).any(axis=0))


def hypervolume(losses: np.ndarray) -> float:
    """Volume between the points and the reference point (1, ..., 1) that some point dominates.

    Sweeps the last objective, and measures in each slab the volume of the points below it in one
    dimension fewer; exact, and fast enough for the few hundred points and three objectives of a front.

    Args:
        losses: `(points, objectives)`, smaller is better; points beyond the reference add nothing.
    """
    losses = losses[(losses < 1).all(axis=1)]
    if len(losses) == 0:
        return 0.0
    losses = losses[is_non_dominated(losses)]
    if losses.shape[1] == 1:
        return float(1 - losses.min())
    losses = losses[np.argsort(losses[:, -1], kind="stable")]
    upper = np.append(losses[1:, -1], 1.0)
    return sum(
        (upper[index] - losses[index, -1]) * hypervolume(losses[: index + 1, :-1])
        for index in range(len(losses))
        if upper[index] > losses[index, -1]
    )


def losses_of(results: Sequence[TrialResult], metrics: Sequence[Metric]) -> np.ndarray:
    """`(results, metrics)`, smaller is better: costs as they are, accuracy negated."""
    rows = [[(-1 if m == "accuracy" else 1) * result.metric(m) for m in metrics] for result in results]
    return np.array(rows, dtype=float).reshape(len(results), len(metrics))


def confirm(trials: Iterable[TrialResult], further: Iterable[TrialResult]) -> list[TrialResult]:
    """The trials whose architectures were trained again, each with its `Confirmation` and its mean as accuracy.

    The trial's own accuracy is no part of the mean. It was selected for being high, so it is biased upwards, and a
    mean that held it would keep one part in so many of that bias; the further seeds had no part in the selection.
    A front of means selects once more, among few, so its members' means are optimistic still, by far less.

    Args:
        trials: Of the race.
        further: Trainings of their architectures, of any status.

    Returns:
        In the order of `trials`; those without a further training that reached the last epoch are left out.
    """
    by_arch: dict[str, list[TrialResult]] = {}
    for result in further:
        by_arch.setdefault(result.arch_id, []).append(result)
    confirmed = []
    for trial in trials:
        trainings = by_arch.get(trial.arch_id, [])
        accuracies = sorted(result.metric("accuracy") for result in trainings if result.status == "complete")
        if trial.status == "complete" and accuracies:
            confirmation = Confirmation(accuracies=tuple(accuracies), num_lost=len(trainings) - len(accuracies))
            confirmed.append(dataclasses.replace(trial, accuracy=confirmation.mean, confirmation=confirmation))
    return confirmed


def with_memberships(
    confirmed: Sequence[TrialResult], metrics: Sequence[Metric], *, num_resamples: int = 1_000, seed: int = 0
) -> tuple[TrialResult, ...]:
    """`confirmed`, each with the share of bootstrap resamples in which it is on the front of means.

    A resample draws, for every architecture, as many of its seeds as it has, with replacement. With few seeds the
    share is too sure of itself: n seeds spread too little in it by a factor of sqrt(1 - 1/n). In made-up races with
    three seeds, one in nine to one in six of those with a share of 0 was truly on the front; with five, one in
    fourteen or fewer (benchmarks/confirmation.py, which compares other ways to resample).

    Args:
        confirmed: What `confirm` returns; its order has no part in the shares.
        metrics: The objectives.

    Returns:
        In the order of `confirmed`. The share is None for an architecture with one seed, whose own luck no resample
        shows; the others compete with it as it stands.

    Source: Efron 1979, doi:10.1214/aos/1176344552, for the bootstrap.
    """
    rng = np.random.default_rng(seed)
    ordered = sorted(confirmed, key=lambda result: result.arch_id)
    losses, on_front = losses_of(ordered, metrics), np.zeros(len(ordered), dtype=int)
    column = list(metrics).index("accuracy")
    draws = np.zeros((num_resamples, len(ordered)))
    for index, result in enumerate(ordered):
        assert result.confirmation is not None, "only what was trained again has seeds to resample"
        accuracies = np.array(result.confirmation.accuracies)
        chosen = rng.integers(len(accuracies), size=(num_resamples, len(accuracies)))
        draws[:, index] = accuracies[chosen].mean(axis=1)
    draws = draws.round(_DIGITS)
    for draw in draws:
        losses[:, column] = -draw
        on_front += is_non_dominated(losses)
    shares = {result.arch_id: int(count) / num_resamples for result, count in zip(ordered, on_front, strict=True)}
    return tuple(_with_membership(result, shares[result.arch_id]) for result in confirmed)


def _with_membership(result: TrialResult, share: float) -> TrialResult:
    found = result.confirmation
    assert found is not None
    membership = None if found.sd is None else share
    return dataclasses.replace(result, confirmation=dataclasses.replace(found, membership=membership))


@dataclass(frozen=True)
class ParetoFront:
    """The complete trials that no other complete trial dominates, most accurate first.

    Args:
        members: One result for each architecture.
        metrics: The objectives: accuracy is maximised, params and FLOPs are minimised.
    """

    members: tuple[TrialResult, ...]
    metrics: tuple[Metric, ...]

    @classmethod
    def of(cls, results: Iterable[TrialResult], metrics: Sequence[Metric]) -> Self:
        """The front of `results`. Stopped trials do not compete: their accuracy is not of the full training."""
        complete = [result for result in results if result.status == "complete"]
        keeps = is_non_dominated(losses_of(complete, metrics))
        on_front = [result for result, keep in zip(complete, keeps, strict=True) if keep]
        on_front.sort(key=lambda result: (-result.metric("accuracy"), result.cost.flops, result.number))
        return cls(members=tuple(on_front), metrics=tuple(metrics))

    def hypervolume(self, box: HypervolumeBox) -> float:
        """In [0, 1]; see `HypervolumeBox` for the reference point."""
        return hypervolume(box.normalise(self.members, self.metrics))

    @property
    def best(self) -> TrialResult | None:
        """The most accurate member; the cheapest of several."""
        return self.members[0] if self.members else None

    def knee(self) -> TrialResult | None:
        """The member farthest above the straight line between the cheapest and the most accurate one.

        Measured on accuracy against the logarithm of FLOPs (or of params where FLOPs are no
        objective), both scaled to [0, 1].

        Source: the chord criterion of Das 1999, doi:10.1007/BF01195985, in two dimensions.
        """
        cost: Metric = "flops" if "flops" in self.metrics else "params"
        front = ParetoFront.of(self.members, ("accuracy", cost)).members
        if len(front) < 3:
            return front[0] if front else None
        x = np.log([result.metric(cost) for result in front])
        y = np.array([result.metric("accuracy") for result in front])
        x, y = (x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y)
        return front[int(np.argmax(y - x))]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmPlan:
    """Which trials' architectures are trained again, and how often each.

    Args:
        top: As the space file has it.
        seeds: Rounds; each trains every member once.
        members: Numbers of the trials, the first to be trained first.
    """

    top: Literal["front"] | int
    seeds: int
    members: tuple[int, ...]

    @property
    def numbers(self) -> list[int]:
        """Of all the further trainings, round by round, so that a race that is cut short here is cut evenly."""
        return [further_number(member, index + 1) for index in range(self.seeds) for member in self.members]


class RunFolder:
    """One run on disk: the record, and what is made from it.

    manifest.json      what was run: file, versions, devices, seeds, command line; written once
    trials.jsonl       one `TrialResult` a line, append-only, flushed: the record
    confirm.json       which architectures are trained again, once the race is over; see `ConfirmPlan`
    confirm.jsonl      one `TrialResult` a line, of those further trainings, append-only, flushed
    test.jsonl         accuracy on the test split of the front's members, read once at the end
    study.journal      Optuna's storage
    pareto.csv, pareto_flops.html, pareto_params.html
    models/<arch id>/  arch.json, model.safetensors, probe.safetensors of each complete trial
    checkpoints/       of trials in flight
    errors/            tracebacks of trials that failed
    tune/              Ray Tune's own files, of no use after the run
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, manifest: Mapping[str, Any]) -> Self:
        """A new run at `path`.

        Raises:
            RunFolderError: `path` holds a run already, or cannot be written.
        """
        if (path / "manifest.json").exists():
            num_done = len(cls(path).results())
            raise RunFolderError(
                f"{path} holds a run already, with {num_done} of its trials done; "
                f"go on with it by --resume, or write elsewhere by --out DIR"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be written: {error.strerror}") from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The run at `path`.

        Raises:
            RunFolderError: There is none.
        """
        if not (path / "manifest.json").is_file():
            raise RunFolderError(f"{path} holds no run: no manifest.json in it")
        return cls(path)

    @property
    def manifest(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / "manifest.json").read_text())
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{self.path}/manifest.json:{error.lineno}: not JSON: {error.msg}") from error

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(self.manifest["objectives"])

    @property
    def box(self) -> HypervolumeBox:
        tree = self.manifest["hypervolume_box"]
        return HypervolumeBox(least=Cost(**tree["least"]), greatest=Cost(**tree["greatest"]))

    @property
    def journal_path(self) -> Path:
        return self.path / "study.journal"

    @property
    def tune_path(self) -> Path:
        return self.path / "tune"

    def model_path(self, arch_id: str) -> Path:
        return self.path / "models" / arch_id

    def checkpoint_path(self, number: int) -> Path:
        return self.path / "checkpoints" / f"{number}.pt"

    def error_path(self, number: int) -> Path:
        """Traceback of a trial that failed."""
        return self.path / "errors" / f"{number}.txt"

    def append(self, result: TrialResult) -> None:
        """Adds a line to the record, on disk when this returns."""
        _append_line(self.path / "trials.jsonl", result.to_json())

    def results(self) -> tuple[TrialResult, ...]:
        """The record, in order of trial number. A last line torn by a crash is left out.

        Raises:
            RunFolderError: Another line is damaged.
        """
        results = [TrialResult.from_json(tree) for tree in _read_lines(self.path / "trials.jsonl")]
        return tuple(sorted(results, key=lambda result: result.number))

    def append_confirmation(self, result: TrialResult) -> None:
        """Adds a further training to its record, on disk when this returns."""
        _append_line(self.path / "confirm.jsonl", result.to_json())

    def confirmations(self) -> tuple[TrialResult, ...]:
        """The further trainings that ended, however they did, round by round. Raises as `results` does."""
        further = [TrialResult.from_json(tree) for tree in _read_lines(self.path / "confirm.jsonl")]
        return tuple(sorted(further, key=lambda result: result.number))

    def write_confirm_plan(self, plan: ConfirmPlan) -> None:
        write_atomically(self.path / "confirm.json", json.dumps(dataclasses.asdict(plan)) + "\n")

    def confirm_plan(self) -> ConfirmPlan | None:
        """None before the race is over, and where nothing is trained again."""
        path = self.path / "confirm.json"
        if not path.exists():
            return None
        tree = json.loads(path.read_text())
        return ConfirmPlan(top=tree["top"], seeds=tree["seeds"], members=tuple(tree["members"]))

    def unconfirmed(self) -> list[int]:
        """Numbers of the planned further trainings that have not ended."""
        plan = self.confirm_plan()
        ended = {result.number for result in self.confirmations()}
        return [] if plan is None else [number for number in plan.numbers if number not in ended]

    def confirmed(self) -> tuple[TrialResult, ...]:
        """The trials whose architectures were trained again; see `confirm`.

        Empty until the first round is over: a front of those that happened to be first would be none of the search.
        """
        plan, further = self.confirm_plan(), self.confirmations()
        if plan is not None and not set(plan.members) <= {round_and_trial(result.number)[1] for result in further}:
            return ()
        return with_memberships(confirm(self.results(), further), self.metrics)

    def front(self) -> ParetoFront:
        """Of the trials that are confirmed, by means over their further trainings; of all trials where none is.

        One training of a trial that was not confirmed is no match for a mean: it may be the luckiest of many.
        """
        return ParetoFront.of(self.confirmed() or self.results(), self.metrics)

    def find(self, arch_id: str) -> TrialResult:
        """The result of the architecture whose id is, or alone begins with, `arch_id`; confirmed where it was.

        Raises:
            RunFolderError: None, or several.
        """
        results = {result.number: result for result in (*self.results(), *self.confirmed())}
        found = [result for result in results.values() if result.arch_id.startswith(arch_id)]
        if len(found) != 1:
            what = "no trial" if not found else f"{len(found)} trials"
            raise RunFolderError(f"{self.path}: {what} with an arch id that begins with {arch_id!r}")
        return found[0]

    def pick(self, what: str) -> TrialResult:
        """A trial of the front: `knee`, `best`, or the most accurate under a limit; any by the begin of its arch id.

        Args:
            what: Limits are written `flops<4e9` or `params<20e6`.

        Raises:
            RunFolderError: Nothing of the run is meant by it.
        """
        front = self.front()
        if not front.members:
            raise RunFolderError(f"{self.path}: no trial reached its last epoch yet")
        if what in ("knee", "best"):
            found = front.knee() if what == "knee" else front.best
            assert found is not None, "a front with members has both"
            return found
        limit = re.fullmatch(r"\s*(flops|params)\s*<\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][0-9]+)?)\s*", what)
        if limit is None:
            return self.find(what)
        metric: Metric = "flops" if limit[1] == "flops" else "params"
        under = [member for member in front.members if member.metric(metric) < float(limit[2])]
        if not under:
            least = min(member.metric(metric) for member in front.members)
            raise RunFolderError(f"{self.path}: nothing on the front has {what}; the least {metric} are {least:_.0f}")
        return under[0]

    def append_test_accuracy(self, number: int, arch_id: str, accuracy: float, num_images: int) -> None:
        """Records the one reading of the test split for one member of the front."""
        _append_line(
            self.path / "test.jsonl",
            {"number": number, "arch_id": arch_id, "test_accuracy": accuracy, "num_images": num_images},
        )

    def test_accuracies(self) -> dict[str, float]:
        """Accuracy on the test split by arch id."""
        return {tree["arch_id"]: tree["test_accuracy"] for tree in _read_lines(self.path / "test.jsonl")}


def write_atomically(path: Path, content: str | Callable[[Path], None]) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part.

    Args:
        path: Where to; its folder exists.
        content: The text, or a function that writes the file at the path it is given.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    if isinstance(content, str):
        partial.write_text(content)
    else:
        content(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _append_line(path: Path, tree: Mapping[str, Any]) -> None:
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size and _last_byte(file) != b"\n":  # a line torn by a crash: what follows must not join it
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(tree).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is nothing, or torn
    trees = []
    for number, line in enumerate(lines, start=1):
        try:
            trees.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{path}:{number}: damaged: {error.msg}") from error
    return trees
