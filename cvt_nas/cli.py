"""The command line: verbs, nothing else. Torch and ray are imported inside the verb that needs them.

Exit status: 0 done, 1 failed, 2 a mistake of the user's, with its message and no traceback; 130 after Ctrl-C.
"""

import argparse
import json
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from cvt_nas import __version__
from cvt_nas.errors import ArchError, CvtNasError, ExportError, StorageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `cvt-nas`; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.verb(options)
    except (CvtNasError, StorageError) as error:
        print(f"cvt-nas: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cvt-nas", description="Finds CvT architectures on the best trade-off of accuracy against cost."
    )
    parser.add_argument("--version", action="version", version=f"cvt-nas {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, verb: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help_text, description=help_text)
        added.set_defaults(verb=verb)
        return added

    search = add("search", _search, "search a space, and write the Pareto front to a run folder")
    search.add_argument("--space", required=True, metavar="FILE", help="the space file")
    search.add_argument("--gpus", type=_whole, metavar="N", help="GPUs to use; all of them if absent, 0 for the CPU")
    search.add_argument("--gpus-per-trial", type=float, metavar="X", help="a fraction below 1, or a whole number")
    search.add_argument("--cpus", type=_whole, metavar="N", help="CPUs to use; all of them if absent")
    search.add_argument("--data", metavar="DIR", help="folder of the data set")
    search.add_argument("--out", metavar="DIR", help="run folder, or its URL; results/NAME if absent")
    search.add_argument("--trials", type=_positive, metavar="N", help="instead of the file's number")
    search.add_argument(
        "--time-budget", type=_duration, metavar="TIME", help="stop in order after 90s, 30m or 8h in all"
    )
    search.add_argument("--seed", type=_whole, metavar="N", help="instead of the file's")
    search.add_argument("--address", metavar="ADDR", help="Ray cluster: auto, host:port, or ray://host:port")
    search.add_argument(
        "--warm-start",
        metavar="PATH",
        help="weights that the supernet begins with: an official .pth, a folder of transformers' CvT, or a model's",
    )
    search.add_argument("--tensorboard", action="store_true", help="track each trial in the run folder's tensorboard/")
    search.add_argument("--mlflow", metavar="URI", help="track each trial as a run of this MLflow tracking server")
    search.add_argument("--wandb", metavar="PROJECT", help="track each trial as a run of this Weights & Biases project")
    search.add_argument("--resume", action="store_true", help="go on with the run in the run folder")
    _add_json(search)

    space = add("space", _space, "size of a space, range of its costs, share that meets the constraints")
    space.add_argument("file", metavar="FILE")
    _add_json(space)

    profile = add("profile", _profile, "params and FLOPs of an architecture, per stage and in total")
    profile.add_argument("arch", metavar="ARCH", help="cvt-13, cvt-21, cvt-w24, an arch.json, or RUN:ID")
    profile.add_argument("--image-size", type=_positive, metavar="N", help="pixels, instead of its own")
    profile.add_argument("--latency", choices=["cpu", "cuda"], help="time forward passes there, too")
    profile.add_argument("--onnx", action="store_true", help="with --latency: of the ONNX export, in onnxruntime")
    profile.add_argument("--batch", type=_positive, metavar="N", help="with --latency: images in a pass, 1 if absent")
    _add_json(profile)

    train = add("train", _train, "train one architecture in full")
    train.add_argument("arch", metavar="ARCH", help="cvt-13, cvt-21, cvt-w24, an arch.json, or RUN:ID")
    train.add_argument("--space", metavar="FILE", help="space file whose data and training are used; RUN's if absent")
    train.add_argument("--data", metavar="DIR", help="folder of the data set")
    train.add_argument("--out", metavar="DIR", help="run folder; results/train-ID if absent")
    train.add_argument("--epochs", type=_positive, metavar="N", help="instead of the file's number")
    train.add_argument("--gpus", type=_whole, metavar="N", help="GPUs to use; all of them if absent, 0 for the CPU")
    train.add_argument("--seed", type=_whole, default=0, metavar="N")
    train.add_argument(
        "--init",
        metavar="PATH",
        help="weights to begin with: an official .pth, a folder of transformers' CvT, or a model's folder",
    )
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run folder")
    _add_json(train)

    query = add("query", _query, "search a trained supernet again under new limits, without training anything")
    query.add_argument("run", metavar="RUN")
    query.add_argument("--max-params", type=float, metavar="N", help="for example 15e6")
    query.add_argument("--max-flops", type=float, metavar="N", help="for example 3e9")
    query.add_argument("--max-latency-ms", "--latency", type=float, metavar="MS", help="of one image, on this machine")
    query.add_argument("--top", type=_positive, default=5, metavar="N", help="architectures to show")
    query.add_argument("--data", metavar="DIR", help="folder of the data set")
    query.add_argument("--to", type=Path, metavar="DIR", help="a new folder, for the first as a model")
    _add_json(query)

    supernet = add("supernet", _supernet, "judge the supernet of a run")
    supernet.add_argument("what", choices=["evaluate"], help="train architectures by themselves, and compare ranks")
    supernet.add_argument("run", metavar="RUN")
    supernet.add_argument("--archs", type=_positive, default=40, metavar="N", help="spread over log-FLOPs")
    supernet.add_argument("--seeds", type=_positive, default=2, metavar="N", help="trainings of each")
    supernet.add_argument("--epochs", type=_positive, metavar="N", help="of each training, instead of the file's")
    supernet.add_argument("--data", metavar="DIR", help="folder of the data set")
    supernet.add_argument("--gpus", type=_whole, metavar="N", help="GPUs to use; all of them if absent, 0 for the CPU")
    supernet.add_argument("--cpus", type=_whole, metavar="N", help="CPUs to use; all of them if absent")
    supernet.add_argument("--address", metavar="ADDR", help="Ray cluster to join: auto, or host:port")
    _add_json(supernet)

    report = add("report", _report, "rebuild the page, tables and plots of a run folder")
    report.add_argument("run", metavar="RUN")
    report.add_argument("--static", choices=["png", "svg", "pdf"], help="the figures as files for papers, too")
    report.add_argument("--watch", nargs="?", type=_positive, const=10, metavar="SECONDS",
                        help="rebuild as results arrive, until the search is over")  # fmt: skip
    _add_json(report)

    compare = add("compare", _compare, "fronts of several runs overlaid, hypervolume side by side")
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument("--to", type=Path, default=Path("compare.html"), metavar="FILE", help="the page; compare.html")
    _add_json(compare)

    bench = add("bench", _bench, "compare searchers and schedulers on a table instead of training")
    bench.add_argument("--table", required=True, type=Path, metavar="FILE", help="CSV or parquet")
    bench.add_argument("--objectives", type=_list, default=["accuracy", "flops"], metavar="LIST")
    bench.add_argument(
        "--searcher", type=_list, default=["surrogate", "tpe", "nsga2", "random"], metavar="LIST",
        help="surrogate, tpe, nsga2, gp, random; optuna-NAME is Optuna's as it ships",
    )  # fmt: skip
    bench.add_argument(
        "--scheduler", type=_list, default=["none"], metavar="LIST",
        help="pareto-asha, asha, none; pareto-asha:stop decides for good at a rung",
    )  # fmt: skip
    bench.add_argument("--budget", type=_positive, required=True, metavar="EPOCHS", help="of each search")
    bench.add_argument("--workers", type=_positive, default=4, metavar="N", help="trials side by side; simulated")
    bench.add_argument("--seeds", type=_positive, default=10, metavar="N")
    bench.add_argument("--first-seed", type=_whole, default=0, metavar="N")
    bench.add_argument("--grace-period", type=_positive, default=1, metavar="EPOCHS", help="of the first rung")
    bench.add_argument("--reduction-factor", type=_positive, default=3, metavar="N")
    bench.add_argument("--processes", type=_positive, default=1, metavar="N", help="searches at the same time")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="HTML page of hypervolume over epochs")
    _add_json(bench)

    export = add("export", _export, "write one architecture of a run as a plain model")
    export.add_argument("run", metavar="RUN")
    export.add_argument("--pick", default="knee", metavar="WHAT", help='knee, best, an arch id, or "flops<4e9"')
    export.add_argument("--to", required=True, metavar="DIR", help="a new folder")
    export.add_argument("--format", choices=["torch", "hf", "timm", "onnx", "pt2"], default="torch",
                        help="for cvt_nas.load_model, transformers, timm, onnxruntime, torch.export.load")  # fmt: skip
    export.add_argument("--push", metavar="USER/NAME", help="upload it to the Hugging Face Hub, too")
    export.add_argument("--private", action="store_true", help="with --push: for nobody else to see")
    _add_json(export)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a whole number")
    return int(text)


def _positive(text: str) -> int:
    if _whole(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be at least 1")
    return int(text)


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a time above 0 like 90s, 30m, 8h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _search(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.config import load_experiment

    experiment = load_experiment(options.space)
    console = Console(stderr=True, soft_wrap=True)
    for warning in experiment.warnings:
        console.print(f"warning: {warning}", highlight=False)

    from cvt_nas.race import search
    from cvt_nas.race.events import following
    from cvt_nas.race.progress import ConsoleProgress
    from cvt_nas.race.trackers import check_trackers, trackers
    from cvt_nas.report import confirmation_lines, front_table, rank_lines, report_paths, summary, write_report

    tracked = {"tensorboard": options.tensorboard, "mlflow": options.mlflow, "wandb": options.wandb}
    check_trackers(**tracked)

    def warn(message: str) -> None:
        console.print(f"warning: {message}", highlight=False, markup=False)

    @contextmanager
    def progress(run: Any, resources: Any, num_trials: int, deadline: float | None) -> Iterator[Any]:
        console.print(f"{experiment.name}: {num_trials} trials, {resources.describe()}; {run.place}", highlight=False)
        shown = ConsoleProgress(
            console,
            results=run.results(),
            metrics=run.metrics,
            box=run.box,
            num_trials=num_trials,
            num_epochs=experiment.training.epochs,
            deadline=deadline,
        )
        with trackers(run, **tracked, warn=warn) as track, shown:
            yield following(shown, track)

    out = options.out or f"results/{experiment.name}"
    with _SignalledStop(console) as stop:
        run = search(
            experiment,
            out=out,
            data=options.data,
            gpus=options.gpus,
            gpus_per_trial=options.gpus_per_trial,
            cpus=options.cpus,
            trials=options.trials,
            time_budget=options.time_budget,
            seed=options.seed,
            address=options.address,
            warm_start=options.warm_start,
            resume=options.resume,
            stop=stop,
            progress=progress,
        )
    write_report(run)
    num_trials = experiment.search.trials if options.trials is None else options.trials
    num_done = len(run.results())
    if options.json:
        print(json.dumps(summary(run)))
    else:
        print_front(run, front_table(run), report_paths(run), out, [*confirmation_lines(run), *rank_lines(run)])
    plan, num_left = run.confirm_plan(), len(run.unconfirmed())
    if stop.is_set() and (num_left or num_done < num_trials):
        done = f"{num_done} of {num_trials} trials"
        if plan is not None and num_left:  # the race is over
            done = f"{num_done} trials and {len(plan.numbers) - num_left} of {len(plan.numbers)} further trainings"
        again = f"cvt-nas search --space {options.space} --out {out} --resume"
        again += "".join(
            f" --{name}" + ("" if value is True else f" {shlex.quote(value)}")
            for name, value in tracked.items()
            if value
        )
        if run.manifest.get("time_budget") or options.time_budget:
            again += " --time-budget TIME, which counts from the search's beginning"
        console.print(f"{done} are done and kept. Go on with: {again}", highlight=False)
    return 130 if stop.was_signalled else 0


def print_front(run: Any, table: Any, paths: Sequence[Path], out: str, notes: Sequence[str]) -> None:
    """The front, where its plots are, and what to do next."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    front = run.front()
    if not front.members:
        console.print("No trial reached its last epoch, so there is no front yet.")
        return
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    console.print(f"hypervolume {front.hypervolume(run.box):.4f} (reference: accuracy 0 at the space's greatest costs)")
    console.print("plots: " + ", ".join(f"{out}/{path.name}" for path in paths if path.suffix == ".html"))
    console.print(f"next: cvt-nas export {out} --pick knee --to my_model", style="bold")


class _SignalledStop(threading.Event):
    """An event that Ctrl-C and SIGTERM set, within a `with`; a second Ctrl-C ends the process at once."""

    def __init__(self, console: Any) -> None:
        super().__init__()
        self._console, self.was_signalled = console, False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        del frame
        if self.was_signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.was_signalled = True
        self.set()
        self._console.print("stopping in order; once more to stop at once", highlight=False)


def _space(options: argparse.Namespace) -> int:
    from cvt_nas.config import load_experiment
    from cvt_nas.report import short

    experiment = load_experiment(options.file)
    space = experiment.space
    least, greatest = space.cost_range
    result = {
        "name": experiment.name,
        "size": space.size,
        "params": {"min": least.params, "max": greatest.params},
        "flops": {"min": least.flops, "max": greatest.flops},
        "feasible_fraction": space.feasible_fraction(),
    }
    if options.json:
        print(json.dumps(result))
        return 0
    for warning in experiment.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{experiment.name}: {space.size:,} architectures, {len(space.genes)} choices")
    print(f"params {short(least.params)} to {short(greatest.params)}, FLOPs {short(least.flops)} to "
          f"{short(greatest.flops)}")  # fmt: skip
    print(f"{result['feasible_fraction']:.1%} of evenly drawn architectures meet the constraints")
    return 0


def _arch_of(text: str) -> tuple[Any, Any]:
    """The architecture that ARCH names, and its run's folder where it is RUN:ID."""
    from cvt_nas.arch import load_arch
    from cvt_nas.results import RunFolder, is_url

    folder, colon, arch_id = text.rpartition(":")
    if colon and (is_url(folder) or (Path(folder) / "manifest.json").is_file()):
        run = RunFolder.open(folder)
        return (run.pick(arch_id) if arch_id in ("knee", "best") else run.find(arch_id)).arch, run
    if colon and not Path(text).exists():
        raise ArchError(f"{text}: {folder} holds no run")
    return load_arch(text), None


def _profile(options: argparse.Namespace) -> int:
    from cvt_nas.arch import cost_of, describe_stages, stage_costs
    from cvt_nas.report import short

    arch, _ = _arch_of(options.arch)
    if options.image_size is not None:
        arch = arch.with_image_size(options.image_size)
    total, stages = cost_of(arch), stage_costs(arch)
    latency = _latency(arch, options)
    if options.json:
        result = {
            "arch_id": arch.id,
            "image_size": arch.image_size,
            "params": total.params,
            "flops": total.flops,
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
        print(json.dumps(result))
        return 0
    for cost, line in zip(stages, describe_stages(arch), strict=True):
        print(f"{short(cost.params):>7} params {short(cost.flops):>7} FLOPs  {line}")
    print(f"{short(total.params):>7} params {short(total.flops):>7} FLOPs  in total at {arch.image_size} x "
          f"{arch.image_size}, head included: {total.params:,} and {total.flops:,}")  # fmt: skip
    print("A multiply-add is one FLOP; attention's products and norms are counted, as fvcore does.")
    if latency is not None:
        from cvt_nas.engine.latency import latency_line

        print(latency_line(latency))
    return 0


def _latency(arch: Any, options: argparse.Namespace) -> Any:
    """What `--latency` asks for; None where it is not given."""
    if options.latency is None:
        if options.onnx or options.batch is not None:
            raise ArchError("--onnx, --batch: say how latency is measured; give --latency cpu or cuda with them")
        return None
    from cvt_nas.export.latency import profile_latency

    return profile_latency(arch, device=options.latency, onnx=options.onnx, batch_size=options.batch or 1)


def _train(options: argparse.Namespace) -> int:
    import dataclasses

    from cvt_nas.config import load_experiment, parse_experiment

    arch, run = _arch_of(options.arch)
    if options.space is not None:
        experiment = load_experiment(options.space)
    elif run is not None:
        experiment = parse_experiment(run.manifest["space_file"], f"{run.path}/manifest.json")
    else:
        raise ArchError(f"{options.arch}: name the file whose data and training are to be used by --space FILE")
    if options.epochs is not None:
        experiment = dataclasses.replace(experiment, training=experiment.training.lasting(options.epochs))

    from cvt_nas.report import report_paths, summary, write_report
    from cvt_nas.train import train

    out = Path(options.out or Path("results") / f"train-{arch.id}")
    result = train(
        arch,
        experiment,
        out=out,
        data=options.data,
        num_workers=options.gpus,
        seed=options.seed,
        init=options.init,
        resume=options.resume,
        on_note=lambda note: print(f"note: {note}", file=sys.stderr, flush=True),
        on_report=lambda report: print(
            f"epoch {report['epoch']}/{experiment.training.epochs}, accuracy {report['accuracy']:.4f}, "
            f"{report['train_seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        ),
    )
    from cvt_nas.results import RunFolder

    run = RunFolder.open(out)
    write_report(run)
    if options.json:
        print(json.dumps(summary(run)))
        return 0
    test = run.test_accuracies()[arch.id]
    print(f"{arch.id}: accuracy {result.accuracy:.4f} on the search split, {test:.4f} on the test split; {out}")
    print(f"plots: {', '.join(str(path) for path in report_paths(run) if path.suffix == '.html')}")
    print(f"next: cvt-nas export {out} --pick best --to my_model")
    return 0


def _query(options: argparse.Namespace) -> int:
    from cvt_nas.arch import describe_stages
    from cvt_nas.race.query import query
    from cvt_nas.report import short
    from cvt_nas.results import RunFolder

    answers = query(
        RunFolder.open(options.run),
        max_params=None if options.max_params is None else int(options.max_params),
        max_flops=None if options.max_flops is None else int(options.max_flops),
        max_latency_ms=options.max_latency_ms,
        number=options.top,
        data=options.data,
        to=options.to,
    )
    if options.json:
        print(json.dumps([
            {"arch_id": answer.arch.id, "accuracy": answer.accuracy, "params": answer.cost.params,
             "flops": answer.cost.flops, "latency_ms": answer.latency_ms}
            for answer in answers
        ]))  # fmt: skip
        return 0
    for answer in answers:
        latency = "" if answer.latency_ms is None else f", {answer.latency_ms:.2f} ms"
        print(f"{answer.arch.id}  {answer.accuracy:.4f} inherited, {short(answer.cost.params)} params, "
              f"{short(answer.cost.flops)} FLOPs{latency}")  # fmt: skip
        print("    " + "\n    ".join(describe_stages(answer.arch)))
    if options.to is not None:
        print(f"{answers[0].arch.id} is in {options.to}, with the weights that it inherits")
    return 0


def _supernet(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.race.progress import ConsoleProgress
    from cvt_nas.race.quality import evaluate_supernet
    from cvt_nas.report import quality_lines
    from cvt_nas.results import RunFolder

    run, console = RunFolder.open(options.run), Console(stderr=True, soft_wrap=True)

    def progress(alone: Any, resources: Any, num_trials: int, deadline: float | None) -> ConsoleProgress:
        console.print(f"{num_trials} trainings, {resources.describe()}; {alone.path}", highlight=False)
        return ConsoleProgress(
            console,
            results=alone.results(),
            metrics=alone.metrics,
            box=alone.box,
            num_trials=num_trials,
            num_epochs=alone.manifest["epochs"],
            deadline=deadline,
        )

    with _SignalledStop(console) as stop:
        quality = evaluate_supernet(
            run,
            num_archs=options.archs,
            num_seeds=options.seeds,
            epochs=options.epochs,
            data=options.data,
            gpus=options.gpus,
            cpus=options.cpus,
            address=options.address,
            stop=stop,
            progress=progress,
        )
    if quality is None:
        console.print("what is trained is kept; the same command goes on", highlight=False)
        return 130
    if options.json:
        print(json.dumps(quality.to_json()))
    else:
        print("\n".join(quality_lines(quality)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.report import (
        confirmation_lines,
        front_table,
        rank_lines,
        report_paths,
        summary,
        watch,
        write_pictures,
        write_report,
    )
    from cvt_nas.results import RunFolder

    run, console = RunFolder.open(options.run), Console(stderr=True, soft_wrap=True)
    if options.watch is None:
        write_report(run)
    else:
        if not run.is_at_work():
            console.print(f"no search is at work on {run.place}", highlight=False)
        with _SignalledStop(console) as stop:
            for num_trials in watch(run, seconds=options.watch, stop=stop):
                console.print(f"{num_trials} trials: {run.path / 'report.html'}", highlight=False)
    pictures = [] if options.static is None else write_pictures(run, options.static)
    if options.json:
        print(json.dumps(summary(run)))
    else:
        print_front(run, front_table(run), report_paths(run), options.run, [*confirmation_lines(run), *rank_lines(run)])
    for picture in pictures:
        console.print(f"picture: {picture}", highlight=False)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from cvt_nas.report import Comparison, compare_page
    from cvt_nas.results import RunFolder, write_atomically

    comparison = Comparison.of([RunFolder.open(place) for place in options.runs])
    options.to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.to.absolute(), compare_page(comparison))
    found = comparison.summary()
    if options.json:
        print(json.dumps(found))
        return 0
    for run in found["runs"]:
        best = "no front" if run["best"] is None else f"best {run['best']:.4f}"
        print(f"{run['run']}: hypervolume {run['hypervolume']:.4f}, {best}, {run['complete']} of {run['trials']} "
              f"trials complete, {run['hours']:.2f} hours of training")  # fmt: skip
    for group in found["groups"]:
        if group["sd"] is not None:
            print(f"{group['group']}, {group['runs']} runs: {group['mean']:.4f} ± {group['sd']:.4f}")
    print(f"page: {options.to}")
    return 0


def _bench(options: argparse.Namespace) -> int:
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
        print(f"seed {seed}, {method}: {values[-1]:.4f}, {len(runs)}/{len(methods) * len(seeds)}", file=sys.stderr)
    if options.plot is not None:
        bench.plot(runs, settings, options.plot)
    summary = bench.summarise(runs, settings)
    if options.json:
        print(json.dumps({"table": str(options.table), "objectives": list(metrics), **summary}))
        return 0
    print(f"{'hypervolume after a share of the budget, mean of the seeds':40}")
    print(f"{'':32}" + "".join(f"{float(f):>9.0%}" for f in next(iter(summary["methods"].values()))["hypervolume"]))
    for name, found in summary["methods"].items():
        means = [sum(values) / len(values) for values in found["hypervolume"].values()]
        print(f"{name:32}" + "".join(f"{mean:9.4f}" for mean in means))
    return 0


def _export(options: argparse.Namespace) -> int:
    from cvt_nas.export import check_repo_id, export, push
    from cvt_nas.report import accuracy_text
    from cvt_nas.results import RunFolder

    if options.push is not None:
        check_repo_id(options.push)
    elif options.private:
        raise ExportError("--private: is of what is uploaded; give --push USER/NAME with it")
    run, to = RunFolder.open(options.run), Path(options.to)
    result = export(run, options.pick, to, format=options.format)
    url = None if options.push is None else push(to, options.push, private=options.private)
    found = result.confirmation
    if options.json:
        more = {} if found is None else {"own_accuracy": result.own_accuracy, **found.to_json()}
        more |= {} if url is None else {"url": url}
        print(json.dumps({"arch_id": result.arch_id, "to": str(to), "accuracy": result.accuracy,
                          "params": result.cost.params, "flops": result.cost.flops, **more}))  # fmt: skip
        return 0
    own = "" if found is None else f" ({result.own_accuracy:.4f} of these weights)"
    print(f"{result.arch_id}: accuracy {accuracy_text(result)}{own}, {result.cost.params:,} params, "
          f"{result.cost.flops:,} FLOPs; its logits equal those of the trained model")  # fmt: skip
    if url is not None:
        print(f"uploaded: {url}")
    print(f"next: see {to / 'README.md'}, which shows how to load it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
