"""The verbs that end by themselves. Torch and ray are imported inside the verb that needs them."""

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cvt_nas.cli.output import command, operand, print_front, print_note, quoted, say, write
from cvt_nas.cli.searching import SignalledStop
from cvt_nas.errors import ArchError, DataError, ExportError, StorageError


def space(options: argparse.Namespace) -> int:
    from cvt_nas.arch import attention_flops, cost_of
    from cvt_nas.config import load_experiment
    from cvt_nas.report import short

    experiment = load_experiment(options.file)
    space = experiment.space
    least, greatest = space.cost_range
    without_attention = {
        name: cost_of(arch).flops - attention_flops(arch)
        for name, arch in (("smallest", space.smallest), ("largest", space.largest))
    }
    result = {
        "name": experiment.name,
        "size": space.size,
        "params": {"min": least.params, "max": greatest.params},
        "flops": {"min": least.flops, "max": greatest.flops},
        "flops_without_attention": without_attention,
        "feasible_fraction": space.feasible_fraction(),
    }
    if options.json:
        write(json.dumps(result))
        return 0
    for warning in experiment.warnings:
        write(f"warning: {warning}", file=sys.stderr)
    write(f"{experiment.name}: {space.size:,} architectures, {len(space.genes)} choices")
    write(f"params {short(least.params)} to {short(greatest.params)}, FLOPs {short(least.flops)} to "
          f"{short(greatest.flops)}")  # fmt: skip
    counts = ", ".join(f"{short(flops)} in the {name}" for name, flops in without_attention.items())
    write(f"FLOPs without attention's two products, which some papers leave out: {counts}")
    write(f"{result['feasible_fraction']:.1%} of evenly drawn architectures meet the constraints")
    return 0


def _load_arch(text: str, image_size: int | None = None) -> Any:
    """The architecture that a name or a file tells.

    A config of transformers tells no size of images: then it is that of the processor beside it, or `image_size`.
    """
    from cvt_nas.arch import NAMED_ARCHS, is_of_transformers, load_arch, read_object

    arch, path = load_arch(text), Path(text)
    config = path / "config.json" if path.is_dir() and not (path / "arch.json").is_file() else path
    if text in NAMED_ARCHS or not config.is_file() or not is_of_transformers(read_object(config)):
        return arch
    from cvt_nas.evaluate.preprocessing import preprocessing_beside

    found, source = preprocessing_beside(config.parent)
    size, why = found.get("image_size"), f"as {source} says"
    if size is None:
        size, why = image_size, "as the space has them"
    if size is None:
        size, why = arch.image_size, "as of the published models"
    print_note(f"{config} tells no size of images: {size} x {size}, {why}")
    return arch.with_image_size(size)


def _arch_of(text: str, image_size: int | None = None) -> tuple[Any, Any]:
    """The architecture that ARCH names, and its run's folder where it is RUN:ID; see `_load_arch`."""
    from cvt_nas.run import RunFolder, is_url

    folder, colon, arch_id = text.rpartition(":")
    if colon and (is_url(folder) or (Path(folder) / "manifest.json").is_file()):
        run = RunFolder.open(folder)
        return (run.pick(arch_id) if arch_id in ("knee", "best") else run.find(arch_id)).arch, run
    if colon and not Path(text).exists():
        raise ArchError(f"{text}: {folder} holds no run")
    return _load_arch(text, image_size), None


def profile(options: argparse.Namespace) -> int:
    from cvt_nas.arch import attention_flops, cost_of, describe_stages, stage_costs
    from cvt_nas.report import published_as, short

    arch, _ = _arch_of(options.arch)
    if options.image_size is not None:
        arch = arch.with_image_size(options.image_size)
    total, stages, published = cost_of(arch), stage_costs(arch), published_as(arch)
    without_attention = total.flops - attention_flops(arch)
    latency = _latency(arch, options)
    if options.json:
        result = {
            "arch_id": arch.id,
            "image_size": arch.image_size,
            "params": total.params,
            "flops": total.flops,
            "flops_without_attention": without_attention,
            "published": [asdict(model) for model in published],
            "stages": [
                {
                    "params": cost.params,
                    "flops": cost.flops,
                    "embed_dim": stage.embed_dim,
                    "depth": len(stage.blocks),
                    "grid": grid,
                }
                for cost, stage, grid in zip(stages, arch.stages, arch.grids, strict=True)
            ],
            **({} if latency is None else {"latency": latency.to_json()}),
        }
        write(json.dumps(result))
        return 0
    for cost, line in zip(stages, describe_stages(arch), strict=True):
        write(f"{short(cost.params):>7} params {short(cost.flops):>7} FLOPs  {line}")
    write(f"{short(total.params):>7} params {short(total.flops):>7} FLOPs  in total at {arch.image_size} x "
          f"{arch.image_size}, head included: {total.params:,} and {total.flops:,}")  # fmt: skip
    write("A multiply-add is one FLOP; norms and attention's two products are counted, as fvcore does. Without those "
          f"products, which some papers leave out: {short(without_attention)} FLOPs.")  # fmt: skip
    for model in published:
        write(f"published: {model.line}")
    if latency is not None:
        from cvt_nas.engine.latency import latency_line

        write(latency_line(latency))
    return 0


def _latency(arch: Any, options: argparse.Namespace) -> Any:
    """What `--latency` asks for; None where it is not given."""
    if options.latency is None:
        if options.onnx or options.batch is not None:
            raise ArchError("--onnx, --batch: say how latency is measured; give --latency cpu or cuda with them")
        return None
    from cvt_nas.export.latency import profile_latency

    return profile_latency(arch, device=options.latency, onnx=options.onnx, batch_size=options.batch or 1)


def train(options: argparse.Namespace) -> int:
    from cvt_nas.arch import NAMED_ARCHS
    from cvt_nas.config import load_experiment, parse_experiment
    from cvt_nas.results import DataIdentity
    from cvt_nas.train import fitted, recipe_for, train

    given = None if options.space is None else load_experiment(options.space)
    arch, run = _arch_of(options.arch, None if given is None else given.space.image_size)
    data, origin = options.data, None
    if given is not None:
        experiment = given
        if options.arch in NAMED_ARCHS:
            arch, note = fitted(arch, experiment)
            if note is not None:
                print_note(note)
    elif run is not None:
        experiment = parse_experiment(run.manifest["space_file"], f"{run.path}/manifest.json")
        origin = DataIdentity.of(run.manifest)
    elif options.arch in NAMED_ARCHS:
        experiment, data = recipe_for(options.arch, data)
        arch = experiment.space.largest
    else:
        raise ArchError(f"{options.arch}: name the file whose data and training are to be used by --space FILE")
    experiment = _with_training(experiment, options)

    from cvt_nas.report import report_paths, summary, write_report

    said = set[str]()

    def told(report: dict[str, Any]) -> None:
        note = report.get("note")
        if note is not None and note not in said:
            said.add(note)
            print_note(note)
        if report["status"] == "running":
            done = f"epoch {report['epoch']}/{experiment.training.epochs}, accuracy {report['accuracy']:.4f}"
            write(f"{done}, {report['train_seconds']:.0f} s", file=sys.stderr, flush=True)

    out = Path(options.out or Path("results") / f"train-{arch.id}")
    result = train(
        arch,
        experiment,
        out=out,
        data=data,
        num_workers=options.gpus,
        seed=options.seed,
        init=options.init,
        resume=options.resume,
        origin=origin,
        on_note=print_note,
        on_report=told,
    )
    from cvt_nas.run import RunFolder

    run = RunFolder.open(out)
    write_report(run)
    if options.json:
        write(json.dumps(summary(run)))
        return 0
    test = run.test_accuracies()[arch.id]
    write(f"{arch.id}: accuracy {result.accuracy:.4f} on the search split, {test:.4f} on the test split; {out}")
    plots = [quoted(str(path)) for path in report_paths(run) if path.suffix == ".html"]
    write(f"plots: {', '.join(plots)}")
    write("next: " + command("cvt-nas", "export", operand(str(out)), "--pick", "best", "--to", "my_model"))
    return 0


def _with_training(experiment: Any, options: argparse.Namespace) -> Any:
    """The same with what the command line says of `training`.

    Learning rates belong to their batch size: with another one they are scaled in proportion, unless `--lr` is given.
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
    if options.epochs is not None:
        lasting = experiment.training.lasting(options.epochs)
        changes |= {name: getattr(lasting, name) for name in ("epochs", "warmup_epochs", "restarts")}
    return experiment.changed(training={name: to for name, to in changes.items() if to != getattr(own, name)})


def evaluate(options: argparse.Namespace) -> int:
    from cvt_nas.arch import NAMED_ARCHS
    from cvt_nas.config import parse_experiment
    from cvt_nas.evaluate import evaluate_model

    weights, data, arch, on_error = options.weights, options.data, None, "raise"
    if re.match("https?://", weights):
        raise ArchError(f"{weights}: is an address; download the weights first, and give their file or folder")
    if not Path(weights).exists():  # then it is RUN:ID
        if ":" not in weights and weights.lower().replace("_", "-") not in NAMED_ARCHS:
            on_hub = re.fullmatch(r"[\w-]+/[\w-]+(\.\d+)?", weights)
            hint = f"; of the Hugging Face Hub, download it first: hf download {weights} --local-dir DIR"
            raise ArchError(f"{weights}: no such file or folder{hint if on_hub else ''}")
        if ":" not in weights:
            raise ArchError(f"{weights}: is an architecture; give its weights: a folder, a .pth, or RUN:ID")
        trained, run = _arch_of(weights)
        assert run is not None, "nothing else has a colon and is no path"
        if data is None and (dataset := run.manifest["dataset"]) not in ("imagefolder", "imagenet"):
            data = dataset
        weights = run.fetched_model(trained.id)
        on_error = parse_experiment(run.manifest["space_file"], f"{run.path}/manifest.json").data.on_error
    elif (Path(weights) / "manifest.json").is_file():
        raise ArchError(f"{weights}: is a run; name one of its models, as {weights}:best")
    if options.arch is not None:
        arch = _load_arch(options.arch)
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
        on_error=on_error,
        on_note=print_note,
    )
    if options.json:
        write(json.dumps(asdict(found)))
        return 0
    write(f"{found.arch_id}: top-1 {found.top1:.4f}, top-5 {found.top5:.4f} of {found.num_images:,} test images at "
          f"{found.image_size} x {found.image_size}")  # fmt: skip
    return 0


def query(options: argparse.Namespace) -> int:
    from cvt_nas.arch import describe_stages
    from cvt_nas.pipeline.query import query
    from cvt_nas.report import short
    from cvt_nas.run import RunFolder

    answers = query(
        RunFolder.open(options.run),
        max_params=None if options.max_params is None else int(options.max_params),
        max_flops=None if options.max_flops is None else int(options.max_flops),
        max_latency_ms=options.max_latency_ms,
        number=options.top,
        data=options.data,
        to=options.to,
        on_note=print_note,
    )
    if options.json:
        write(json.dumps([
            {"arch_id": answer.arch.id, "accuracy": answer.accuracy, "params": answer.cost.params,
             "flops": answer.cost.flops, "latency_ms": answer.latency_ms}
            for answer in answers
        ]))  # fmt: skip
        return 0
    for answer in answers:
        latency = "" if answer.latency_ms is None else f", {answer.latency_ms:.2f} ms"
        write(f"{answer.arch.id}  {answer.accuracy:.4f} inherited, {short(answer.cost.params)} params, "
              f"{short(answer.cost.flops)} FLOPs{latency}")  # fmt: skip
        write(*(f"    {line}" for line in describe_stages(answer.arch)))
    if options.to is not None:
        write(f"{answers[0].arch.id} is in {options.to}, with the weights that it inherits")
    return 0


def check(options: argparse.Namespace) -> int:
    from cvt_nas.data.report import check_set

    report = check_set(options.data, decode=options.decode, on_note=print_note)
    if options.json:
        write(json.dumps(report.to_json()))
    else:
        write(*report.lines())
    return 0 if report.is_usable else 1


def report(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.follow.watch import watch
    from cvt_nas.report import summary, write_pictures, write_report
    from cvt_nas.run import RunFolder

    run, console = RunFolder.open(options.run), Console(stderr=True, soft_wrap=True)
    unwritten: StorageError | None = None
    if options.watch is None:
        try:
            write_report(run)
        except StorageError as error:  # of a run that one may only read, the front can be told
            unwritten = error
    else:
        if not run.is_at_work():
            say(console, f"no search is at work on {run.place}")
        with SignalledStop(console) as stop:
            for num_trials in watch(run, seconds=options.watch, stop=stop):
                say(console, f"{num_trials} trials: {run.path / 'report.html'}")
    pictures = [] if options.static is None or unwritten is not None else write_pictures(run, options.static)
    if options.json:
        write(json.dumps(summary(run)))
    else:
        print_front(run, options.run)
    for picture in pictures:
        say(console, f"picture: {picture}")
    if unwritten is not None:
        raise unwritten
    return 0


def compare(options: argparse.Namespace) -> int:
    from cvt_nas.report import Comparison, compare_page
    from cvt_nas.run import RunFolder, write_atomically

    comparison = Comparison.of([RunFolder.open(place) for place in options.runs])
    options.to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.to.absolute(), compare_page(comparison))
    found = comparison.summary()
    if (num_again := len(options.runs) - len(found["runs"])) > 0:
        print_note(f"{num_again} of the folders {'holds' if num_again == 1 else 'hold'} a run again, which counts once")
    if options.json:
        write(json.dumps(found))
        return 0
    for run in found["runs"]:
        best = "no front" if run["best"] is None else f"best {run['best']:.4f}"
        write(f"{run['run']}: hypervolume {run['hypervolume']:.4f}, {best}, {run['complete']} of {run['trials']} "
              f"trials complete, {run['hours']:.2f} hours of training")  # fmt: skip
    for group in found["groups"]:
        if group["sd"] is not None:
            write(f"{group['group']}, {group['runs']} runs: {group['mean']:.4f} ± {group['sd']:.4f}")
    write(f"page: {options.to}")
    return 0


def bench(options: argparse.Namespace) -> int:
    from cvt_nas import bench

    metrics = bench.metrics_of(options.objectives)
    methods = bench.methods_of(options.searcher, options.scheduler)
    table = bench.load_table(options.table)
    settings = bench.Settings(
        metrics=metrics,
        budget=options.budget,
        num_workers=options.workers,
        grace_period=options.grace_period,
        reduction_factor=options.reduction_factor,
    )
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = []
    for run in bench.compare(table, methods, settings, seeds=seeds, processes=options.processes):
        runs.append(run)
        method, seed, values, _ = run
        write(f"seed {seed}, {method}: {values[-1]:.4f}, {len(runs)}/{len(methods) * len(seeds)}", file=sys.stderr)
    if options.plot is not None:
        bench.plot(runs, settings, options.plot)
    summary = bench.summarise(runs, settings)
    if options.json:
        write(json.dumps({"table": str(options.table), "objectives": list(metrics), **summary}))
        return 0
    write(f"{'hypervolume after a share of the budget, mean of the seeds':40}")
    write(f"{'':32}" + "".join(f"{float(f):>9.0%}" for f in next(iter(summary["methods"].values()))["hypervolume"]))
    for name, found in summary["methods"].items():
        means = [sum(values) / len(values) for values in found["hypervolume"].values()]
        write(f"{name:32}" + "".join(f"{mean:9.4f}" for mean in means))
    return 0


def export(options: argparse.Namespace) -> int:
    from cvt_nas.export import check_repo_id, export, push
    from cvt_nas.report import accuracy_text
    from cvt_nas.run import RunFolder

    if options.push is not None:
        check_repo_id(options.push)
    elif options.private:
        raise ExportError("--private: is of what is uploaded; give --push USER/NAME with it")
    run, to = RunFolder.open(options.run), Path(options.to)
    result = export(run, options.pick, to, format=options.format, opset=options.opset)
    url = None if options.push is None else push(to, options.push, private=options.private)
    found = result.confirmation
    if options.json:
        more = {} if found is None else {"own_accuracy": result.own_accuracy, **found.to_json()}
        more |= {} if url is None else {"url": url}
        write(json.dumps({"arch_id": result.arch_id, "to": str(to), "accuracy": result.accuracy,
                          "params": result.cost.params, "flops": result.cost.flops, **more}))  # fmt: skip
        return 0
    own = "" if found is None else f" ({result.own_accuracy:.4f} of these weights)"
    write(f"{result.arch_id}: accuracy {accuracy_text(result)}{own}, {result.cost.params:,} params, "
          f"{result.cost.flops:,} FLOPs; its logits equal those of the trained model")  # fmt: skip
    if url is not None:
        write(f"uploaded: {url}")
    write(f"next: see {to / 'README.md'}, which shows how to load it")
    return 0
