"""The verbs that train, evaluate and use one network: `train`, `eval` and `predict`."""

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cvt_nas.cli.archs import arch_of, load_named
from cvt_nas.cli.output import command, operand, print_note, quoted, write
from cvt_nas.errors import ArchError, DataError

if TYPE_CHECKING:
    from cvt_nas.config import Experiment
    from cvt_nas.engine import TrainingReport

_NUM_NAMED = 5


def train(options: argparse.Namespace) -> int:
    from cvt_nas.arch import NAMED_ARCHS
    from cvt_nas.config import load_experiment, space_file_of
    from cvt_nas.results import DataIdentity
    from cvt_nas.train import fitted, recipe_for, train

    given = None if options.space is None else load_experiment(options.space)
    arch, run = arch_of(options.arch, None if given is None else given.space.image_size)
    data, origin = options.data, None
    if given is not None:
        experiment = given
        if options.arch in NAMED_ARCHS:
            arch, note = fitted(arch, experiment)
            if note is not None:
                print_note(note)
    elif run is not None:
        experiment = space_file_of(run)
        origin = DataIdentity.of(run.manifest)
    elif options.arch in NAMED_ARCHS:
        experiment, data = recipe_for(options.arch, data)
        arch = experiment.space.largest
    else:
        raise ArchError(f"{options.arch}: name the file whose data and training are to be used by --space FILE")
    experiment = _with_training(experiment, options)

    from cvt_nas.report import report_paths, summary, write_report
    from cvt_nas.run import RunFolder

    out = Path(options.out or Path("results") / f"train-{arch.id}")
    said = set[str]()

    def told(report: "TrainingReport") -> None:
        note = report.get("note")
        if note is not None and note not in said:
            said.add(note)
            print_note(note)
        if report["status"] == "running":
            score = RunFolder(out).score_name
            done = f"epoch {report['epoch']}/{experiment.training.epochs}, {score} {report['accuracy']:.4f}"
            write(f"{done}, {report['train_seconds']:.0f} s", file=sys.stderr, flush=True)

    result = train(
        arch,
        experiment,
        out=options.out or out,
        data=data,
        num_workers=options.gpus,
        seed=options.seed,
        init=options.init,
        resume=options.resume,
        origin=origin,
        on_note=print_note,
        on_report=told,
    )
    run = RunFolder.open(out)
    write_report(run)
    if options.json:
        write(json.dumps(summary(run)))
        return 0
    test = run.test_accuracies()[arch.id]
    write(f"{arch.id}: {run.score_name} {result.accuracy:.4f} on the search split, {test:.4f} on the test split; {out}")
    plots = [quoted(str(path)) for path in report_paths(run) if path.suffix == ".html"]
    write(f"plots: {', '.join(plots)}")
    write("next: " + command("cvt-nas", "export", operand(str(out)), "--pick", "best", "--to", "my_model"))
    return 0


def _with_training(experiment: "Experiment", options: argparse.Namespace) -> "Experiment":
    """The same experiment with the options of the command line in its section `training`.

    Learning rates belong to a batch size. They are scaled in proportion to a new one, unless `--lr` is given. That
    is the greatest rate, so others are no greater.
    """
    own = experiment.training
    told = {
        "optimizer": options.optimizer,
        "schedule": options.sched,
        "lr": options.lr,
        "batch_size": options.batch_size,
    }
    changes = {name: value for name, value in told.items() if value is not None}
    if options.batch_size not in (None, own.batch_size) and options.lr is None:
        rates = [name for name in ("lr", "min_lr", "warmup_lr") if getattr(own, name) > 0]
        if own.warmup_epochs == 0:
            rates.remove("warmup_lr")
        factor = options.batch_size / own.batch_size
        scaled = {name: float(f"{factor * getattr(own, name):.6g}") for name in rates}
        changes |= scaled
        rescaled = ", ".join(f"{name} {getattr(own, name):g} becomes {to:g}" for name, to in scaled.items())
        write(f"note: --batch-size {options.batch_size} instead of {own.batch_size}: {rescaled}, in proportion; "
              f"--lr sets it otherwise", file=sys.stderr)  # fmt: skip
    if options.lr is not None:
        changes |= {name: options.lr for name in ("min_lr", "warmup_lr") if getattr(own, name) > options.lr}
    if options.epochs is not None:
        lasting = experiment.training.lasting(options.epochs)
        changes |= {name: getattr(lasting, name) for name in ("epochs", "warmup_epochs", "restarts")}
    return experiment.changed(training={name: to for name, to in changes.items() if to != getattr(own, name)})


def evaluate(options: argparse.Namespace) -> int:
    from cvt_nas.arch import NAMED_ARCHS, size_text
    from cvt_nas.config import can_be_named, space_file_of
    from cvt_nas.evaluate import evaluate_model
    from cvt_nas.run import check_target

    if options.to is not None:
        check_target(options.to, called=f"--to {options.to}", makes_folders=True)
    weights, data, arch, read_as = options.weights, options.data, None, None
    if re.match("https?://", weights):
        raise ArchError(f"{weights}: is an address; download the weights first, and give their file or folder")
    if not Path(weights).exists():  # then it must be RUN:ID
        if ":" not in weights and weights.lower().replace("_", "-") not in NAMED_ARCHS:
            on_hub = re.fullmatch(r"[\w-]+/[\w-]+(\.\d+)?", weights)
            hint = f"; of the Hugging Face Hub, download it first: hf download {weights} --local-dir DIR"
            raise ArchError(f"{weights}: no such file or folder{hint if on_hub else ''}")
        if ":" not in weights:
            raise ArchError(f"{weights}: is an architecture; give its weights: a folder, a .pth, or RUN:ID")
        trained, run = arch_of(weights)
        assert run is not None, "nothing else has a colon and is no path"
        if data is None and can_be_named(dataset := run.manifest["dataset"]):
            data = dataset
        weights = run.fetched_model(trained.id)
        read_as = space_file_of(run).data
    elif (Path(weights) / "manifest.json").is_file():
        raise ArchError(f"{weights}: is a run; name one of its models, as {weights}:best")
    if options.arch is not None:
        arch = load_named(options.arch)
    if data is None:
        raise DataError(f"{options.weights}: name the images by --data DIR, or a data set by its name")
    found = evaluate_model(
        weights,
        data=data,
        arch=arch,
        image_size=options.image_size,
        batch_size=options.batch_size,
        device=options.device,
        precision=options.precision,
        read_as=read_as,
        on_note=print_note,
    )
    paths = {}
    if options.to is not None:
        from cvt_nas.evaluate.figures import write_figures

        paths = write_figures(Path(options.to), found.labels, found.answers, found.class_names)
    if options.json:
        written = {"written": {name: str(path) for name, path in paths.items()}} if paths else {}
        write(json.dumps({**found.to_json(), **written}))
        return 0
    tops = [] if found.top1 is None else [f"top-1 {found.top1:.4f}", f"top-5 {found.top5:.4f}"]
    others = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.metrics.items()]
    write(f"{found.arch_id}: {', '.join([*tops, *others])} of {found.num_images:,} images at "
          f"{size_text(found.image_size)}")  # fmt: skip
    if paths:
        write("wrote " + ", ".join(quoted(str(path)) for path in paths.values()))
    return 0


def predict(options: argparse.Namespace) -> int:
    from cvt_nas.evaluate import predict as predict_images
    from cvt_nas.model import locate

    found = predict_images(
        locate(options.weights),
        options.images,
        to=options.to,
        top=options.top,
        arch=None if options.arch is None else load_named(options.arch),
        image_size=options.image_size,
        batch_size=options.batch_size,
        device=options.device,
        precision=options.precision,
        num_workers=options.num_workers,
        resume=options.resume,
        on_note=print_note,
    )
    if options.json:
        write(json.dumps({"to": str(options.to), **asdict(found)}))
    else:
        known = f", {found.num_known:,} of them before" if found.num_known else ""
        write(f"{found.num_images - len(found.damaged):,} of {found.num_images:,} images answered{known}: {options.to}")
        for path, why in list(found.damaged.items())[:_NUM_NAMED]:
            write(f"cannot be read: {path}: {why}", file=sys.stderr)
        if len(found.damaged) > _NUM_NAMED:
            write(f"and {len(found.damaged) - _NUM_NAMED:,} more, see {options.to}", file=sys.stderr)
    return 1 if found.damaged else 0
