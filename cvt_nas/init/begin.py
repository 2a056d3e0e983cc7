"""`cvt-nas init`: makes a space file for a data set and a machine, and plans its search."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cvt_nas.arch import size_text
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.config.reader import did_you_mean
from cvt_nas.errors import ArchError, CvtNasError, SpaceFileError
from cvt_nas.init.choosing import Draft, Section, draft_around, draft_for, draft_like
from cvt_nas.init.looking import DataLook, Host, look_at_data, look_at_machine
from cvt_nas.init.writing import text_of
from cvt_nas.model import locate, read_weights
from cvt_nas.plan.planning import plan as plan_search
from cvt_nas.plan.values import Plan, duration
from cvt_nas.ready import ready_spaces


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """A space file, and what it was made from.

    Args:
        text: Text of the file.
        plan: Plan of its search; None if it was not measured.
    """

    text: str
    experiment: Experiment
    look: DataLook
    host: Host
    draft: Draft
    plan: Plan | None

    def to_json(self) -> dict[str, object]:
        """Values that `init --json` prints."""
        fit = None if self.plan is None else self.plan.fit
        return {
            "dataset": self.look.dataset,
            "classes": list(self.look.class_names),
            "counts": list(self.look.counts),
            "images": dict(self.look.num_images),
            "channels": self.look.num_channels,
            "median_size": list(self.look.median_size),
            "image_size": self.experiment.space.image_size,
            "architectures": self.experiment.space.size,
            "reasons": self.draft.reasons,
            "fit": None if fit is None else dataclasses.asdict(fit),
        }

    def lines(self) -> list[str]:
        """Lines for people: what was seen, what was chosen and why."""
        training, space = self.experiment.training, self.experiment.space
        least, greatest = space.cost_range
        chosen = [
            f"images of {size_text(space.image_size)} pixels: {self.draft.reasons['image_size']}",
            f"{space.size:,} networks of {least.params / 1e6:.3g} to {greatest.params / 1e6:.3g} M parameters and "
            f"{least.flops / 1e6:,.0f} to {greatest.flops / 1e6:,.0f} MFLOPs: {self.draft.basis}",
            f"{self.experiment.search.trials} trials of up to {training.epochs} epochs, the first rung after "
            f"{self.experiment.search.grace_period}",
        ]
        if "metric" in self.draft.reasons:
            chosen.append(f"maximises {training.metric}: {self.draft.reasons['metric']}")
        return [
            *(f"saw: {line}" for line in (*self.look.lines(), self.host.line())),
            *(f"chose: {line}" for line in chosen),
            *self._expected(),
        ]

    def _expected(self) -> Iterator[str]:
        if self.plan is None or self.plan.fit is None:
            return
        fit = self.plan.fit
        yield f"expected: {duration(3600 * fit.hours)}; first front after {duration(3600 * fit.first_front_hours)}"
        yield f"bottleneck: {self.plan.bottleneck}; {self.plan.advice}"


def begin(
    data: str | Path,
    *,
    name: str,
    hours: float = 4.0,
    like: str | None = None,
    init: str | Path | None = None,
    measure: bool = True,
    on_note: Callable[[str], None] | None = None,
) -> Beginning:
    """Makes a space file for the images at `data` and this machine.

    Args:
        data: See `find_data`.
        name: Name of the experiment.
        hours: Time limit of the search.
        like: Name of a ready space file to start from; None for a new one.
        init: Weights, see `read_weights`. The space is drawn around their network.
        measure: Whether to measure the speed of this machine, which takes some seconds. Trials and epochs then fit into
            `hours`.
        on_note: Called with notes, and with progress if it takes long.

    Raises:
        CvtNasError: The data cannot be trained on, or nothing fits into `hours`.
        SpaceFileError: There is no ready file of this name.
        ArchError: The weights cannot be read, or nothing tells their architecture.
    """
    look, host = look_at_data(data, on_note=on_note), look_at_machine()
    draft = draft_for(look, host, name=name) if like is None else draft_like(_ready(like), look, name=name, of=like)
    if init is not None:
        arch = read_weights(locate(init)).arch
        if arch is None:
            raise ArchError(f"--init {init}: nothing tells which architecture the weights are of")
        draft = draft_around(arch, draft)
    header = [
        f"{look.dataset}: {look.num_classes:,} classes, {look.num_images['train']:,} training images. Made by "
        f"cvt-nas init for {host.line()}; change what you like.",
        "A scalar is fixed; a list is a choice of the search.",
    ]
    experiment = parse_experiment(text_of(draft, header), f"the file for {data}")
    plan = None
    if measure:
        plan = plan_search(experiment, data=look.root or str(look.dataset), hours=hours, is_quick=True, on_note=on_note)
        draft = _fitting(draft, plan)
        experiment = parse_experiment(text_of(draft, header), f"the file for {data}")
    return Beginning(text=text_of(draft, header), experiment=experiment, look=look, host=host, draft=draft, plan=plan)


def _ready(name: str) -> Section:
    ready = ready_spaces()
    if name not in ready:
        raise SpaceFileError([f"--like {name}: no ready space has this name{did_you_mean(name, list(ready))}"])
    return yaml.safe_load(ready[name].read_text(encoding="utf-8"))


def _fitting(draft: Draft, plan: Plan) -> Draft:
    """Returns the draft with trials, epochs and a grace period that end in time."""
    fit = plan.fit
    if fit is None:
        raise CvtNasError("no settings were found that end in time")
    sections = dict(draft.sections)
    old = sections["training"]
    share = fit.epochs / old["epochs"]
    warmup = old.get("warmup_epochs", 0)
    sections["training"] = {**old, "epochs": fit.epochs, "warmup_epochs": round(warmup * share, 2)}
    sections["search"] = {**sections["search"], "trials": fit.trials, "grace_period": fit.grace_period}
    return dataclasses.replace(draft, sections=sections)
