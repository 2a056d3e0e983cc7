"""The arguments of each verb."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from cvt_nas import __version__
from cvt_nas.cli import archs, data, deploying, runs, searching, spaces, tables, training, watching
from cvt_nas.ready import ready_tables

_SIZES = "pixels of square images, or height and width as 256x128"
_OTHER_SIZE = f"instead of the network's own: {_SIZES}"
_WEIGHTS = "an official .pth, a folder of transformers' CvT or its name on the Hub, a model's folder, RUN:ID, or cvt-13"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cvt-nas", description="Finds CvT architectures on the best trade-off of accuracy against cost."
    )
    parser.add_argument("--version", action="version", version=f"cvt-nas {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, verb: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=help_text, description=help_text)
        added.set_defaults(verb=verb)
        return added

    search = add("search", searching.search, "search a space, and write the Pareto front to a run folder")
    search.add_argument(
        "--space", required=True, metavar="FILE", help="the space file, or the name of a ready one such as cvt13"
    )
    search.add_argument("--gpus", type=_whole, metavar="N", help="GPUs to use; all of them if absent, 0 for the CPU")
    search.add_argument(
        "--gpus-per-trial",
        type=_gpus_per_trial,
        metavar="X",
        help="a fraction below 1, a whole number, or auto: as many trials share a GPU as train most images together",
    )
    search.add_argument("--cpus", type=_whole, metavar="N", help="CPUs to use; all of them if absent")
    search.add_argument("--data", metavar="DIR", help="folder or file of the data set")
    search.add_argument("--out", metavar="DIR", help="run folder, or its URL; results/NAME if absent")
    search.add_argument("--trials", type=_positive, metavar="N", help="instead of the file's number")
    search.add_argument(
        "--time-budget", type=_duration, metavar="TIME", help="stop in order after 90s, 30m or 8h in all"
    )
    search.add_argument("--seed", type=_seed, metavar="N", help="instead of the file's")
    search.add_argument("--address", metavar="ADDR", help="Ray cluster: auto, host:port, or ray://host:port")
    search.add_argument(
        "--init",
        "--warm-start",
        metavar="WEIGHTS",
        help=f"weights that trials or the supernet begin with, as far as their networks have room for them: {_WEIGHTS}",
    )
    search.add_argument(
        "--learn-from",
        nargs="+",
        default=[],
        metavar="RUN",
        help="folders or URLs of earlier runs that guide the first trials, as far as the new trials confirm them; "
        "their spaces and data may differ",
    )
    search.add_argument(
        "--latency-table", metavar="TABLE", help="of the machine where the networks will run; see cvt-nas measure"
    )
    search.add_argument(
        "--callback",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a function of yours, called with each event",
    )
    search.add_argument(
        "--ui", nargs="?", type=_port, const=0, metavar="PORT", help="serve a live page beside the search; see watch"
    )
    search.add_argument("--tensorboard", action="store_true", help="track each trial in the run folder's tensorboard/")
    search.add_argument("--mlflow", metavar="URI", help="track each trial as a run of this MLflow tracking server")
    search.add_argument("--wandb", metavar="PROJECT", help="track each trial as a run of this Weights & Biases project")
    search.add_argument(
        "--resume", action="store_true", help="go on with the run in the run folder; what failed is tried again"
    )
    _add_json(search)

    space = add("space", spaces.space, "size of a space, range of its costs, share that meets the constraints")
    space.add_argument(
        "file", nargs="?", metavar="FILE", help="the space file, or the name of a ready one such as cvt13"
    )
    space.add_argument("--schema", action="store_true", help="print the JSON Schema of space files, for editors")
    _add_json(space)

    init = add("init", data.init, "a space file for a data set and this machine, with what its search will take")
    init.add_argument("data", metavar="DATA", help="a folder or file of images, or a data set by its name")
    init.add_argument("--to", metavar="FILE", help="where to write it; NAME.yaml if absent")
    init.add_argument("--name", metavar="NAME", help="of the experiment; that of the data if absent")
    init.add_argument(
        "--hours", type=_above_0, default=4.0, metavar="H", help="how long the search may take; 4 if absent"
    )
    init.add_argument("--like", metavar="NAME", help="begin with a ready space file, such as cvt13")
    init.add_argument("--init", metavar="WEIGHTS", help="draw the space around the network of these weights")
    init.add_argument(
        "--no-measure", action="store_true", help="do not measure this machine; trials and epochs are then a guess"
    )
    _add_json(init)

    measure = add("measure", deploying.measure, "the latency of a space's networks where they will run")
    measure.add_argument("target", metavar="TARGET", help="local, or a new folder to run on another machine")
    measure.add_argument("--space", required=True, metavar="FILE", help="a space file; see its section deploy")
    measure.add_argument("--to", type=Path, metavar="TABLE", help="with local: the file to write the table to")
    measure.add_argument("--networks", type=_positive, default=12, metavar="N", help="unseen networks for a check")
    measure.add_argument("--seed", type=_seed, default=0, metavar="N", help="of these networks; 0 if absent")
    _add_json(measure)

    plan = add("plan", searching.plan, "what a search takes: memory, hours, disk, its bottleneck, and what to change")
    plan.add_argument(
        "--space", required=True, metavar="FILE", help="the space file, or the name of a ready one such as cvt13"
    )
    plan.add_argument("--data", metavar="DIR", help="folder or file of the data set; ImageNet's size is known without")
    plan.add_argument("--gpus", type=_whole, metavar="N", help="GPUs to use; all of them if absent, 0 for the CPU")
    plan.add_argument(
        "--gpus-per-trial", type=_gpus_per_trial, metavar="X", help="a fraction below 1, a whole number, or auto"
    )
    plan.add_argument("--cpus", type=_whole, metavar="N", help="CPUs to use; all of them if absent")
    plan.add_argument("--out", default="results", metavar="DIR", help="where the search would write, or its URL")
    plan.add_argument("--trials", type=_positive, metavar="N", help="instead of the file's number")
    plan.add_argument(
        "--hours", type=_above_0, metavar="H", help="find the trials, epochs and grace period that end in H hours"
    )
    plan.add_argument(
        "--images-per-second",
        type=_above_0,
        metavar="X",
        help="training speed of one GPU of another machine, for the first anchor, or else for the median network",
    )
    plan.add_argument(
        "--loader-images-per-second", type=_above_0, metavar="X", help="of another machine, for one of its GPUs"
    )
    plan.add_argument("--gpu-memory", type=_above_0, metavar="GIB", help="of another machine's GPU; 80 if absent")
    _add_json(plan)

    profile = add("profile", archs.profile, "params and FLOPs of an architecture, per stage and in total")
    profile.add_argument("arch", metavar="ARCH", help="cvt-13, cvt-21, cvt-w24, an arch.json, or RUN:ID")
    profile.add_argument("--image-size", type=_image_size, metavar="N|HxW", help=f"instead of its own: {_SIZES}")
    profile.add_argument("--latency", choices=["cpu", "cuda"], help="time forward passes there, too")
    profile.add_argument("--onnx", action="store_true", help="with --latency: of the ONNX export, in onnxruntime")
    profile.add_argument("--batch", type=_positive, metavar="N", help="with --latency: images in a pass, 1 if absent")
    _add_json(profile)

    train = add("train", training.train, "train one architecture in full")
    train.add_argument("arch", metavar="ARCH", help="cvt-13, cvt-21, cvt-w24, cvt-13-cifar, an arch.json, or RUN:ID")
    train.add_argument(
        "--space", metavar="FILE",
        help="space file whose data and training are used; RUN's, or the published recipe of a named one, if absent",
    )  # fmt: skip
    train.add_argument(
        "--data", metavar="DIR", help="folder or file of the data set; without a file also a name, as fashion-mnist"
    )
    train.add_argument("--out", metavar="DIR", help="run folder; results/train-ID if absent")
    train.add_argument("--epochs", type=_positive, metavar="N", help="instead of the file's number")
    train.add_argument("--optimizer", choices=["adamw", "sgd"], help="instead of the file's")
    train.add_argument("--sched", choices=["wsd", "cosine"], help="instead of the file's")
    train.add_argument("--lr", type=_above_0, metavar="X", help="peak learning rate, instead of the file's")
    train.add_argument(
        "--batch-size",
        type=_positive,
        metavar="N",
        help="images a step, instead of the file's; its learning rates are scaled in proportion, unless --lr is given",
    )
    train.add_argument("--gpus", type=_whole, metavar="N", help="GPUs to use; all of them if absent, 0 for the CPU")
    train.add_argument("--seed", type=_seed, metavar="N", help="0 if absent")
    train.add_argument("--init", metavar="WEIGHTS", help=f"weights to begin with: {_WEIGHTS}")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run folder")
    _add_json(train)

    evaluate = add("eval", training.evaluate, "how well a trained network does on the test images, also class by class")
    evaluate.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="a model's folder in any format of export, one of transformers' CvT, an official .pth, or RUN:ID",
    )
    evaluate.add_argument("--data", metavar="DIR", help="folder or file of the data set, or a name, as fashion-mnist")
    evaluate.add_argument("--arch", metavar="ARCH", help="of a .pth, where it is none of the published ones")
    evaluate.add_argument("--image-size", type=_image_size, metavar="N|HxW", help=_OTHER_SIZE)
    evaluate.add_argument("--batch-size", type=_positive, default=256, metavar="N")
    evaluate.add_argument("--device", choices=["cpu", "cuda"], help="cuda where there is one, if absent")
    evaluate.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    evaluate.add_argument("--to", metavar="DIR", help="write figures of each class, and what is taken for what, there")
    _add_json(evaluate)

    predict = add("predict", training.predict, "what a trained network says of images without labels, as a CSV")
    predict.add_argument("weights", metavar="MODEL", help=f"the folder of an export in any format, or {_WEIGHTS}")
    predict.add_argument(
        "images", metavar="IMAGES", help="a folder, a file, a pattern, or a CSV with a column of paths"
    )
    predict.add_argument("--to", required=True, type=Path, metavar="CSV", help="where to write a row for each image")
    predict.add_argument("--top", type=_positive, default=5, metavar="N", help="classes of a row; 5 if absent")
    predict.add_argument("--arch", metavar="ARCH", help="of a .pth, where it is none of the published ones")
    predict.add_argument("--image-size", type=_image_size, metavar="N|HxW", help=_OTHER_SIZE)
    predict.add_argument("--batch-size", type=_positive, default=64, metavar="N")
    predict.add_argument(
        "--num-workers", type=_whole, default=4, metavar="N", help="processes that decode; 4 if absent"
    )
    predict.add_argument("--device", choices=["cpu", "cuda"], help="cuda where there is one, if absent")
    predict.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    predict.add_argument("--resume", action="store_true", help="go on with the answers that the CSV has")
    _add_json(predict)

    query = add("query", runs.query, "search a trained supernet again under new limits, without training anything")
    query.add_argument("run", metavar="RUN")
    query.add_argument("--max-params", type=_above_0, metavar="N", help="for example 15e6")
    query.add_argument("--max-flops", type=_above_0, metavar="N", help="for example 3e9")
    query.add_argument(
        "--max-latency-ms", "--latency", type=_above_0, metavar="MS", help="of an image, on this machine"
    )
    query.add_argument("--top", type=_positive, default=5, metavar="N", help="architectures to show")
    query.add_argument("--data", metavar="DIR", help="folder or file of the data set")
    ranked_by = query.add_mutually_exclusive_group()
    ranked_by.add_argument("--reuse", nargs="+", default=[], metavar="RUN", help="other runs whose trainings count")
    ranked_by.add_argument("--uncorrected", action="store_true", help="rank by inherited accuracies alone")
    query.add_argument("--to", type=Path, metavar="DIR", help="a new folder, for the first as a model")
    _add_json(query)

    supernet = add("supernet", searching.supernet, "judge the supernet of a run")
    supernet.add_argument("what", choices=["evaluate"], help="train architectures by themselves, and compare ranks")
    supernet.add_argument("run", metavar="RUN")
    supernet.add_argument("--archs", type=_positive, default=40, metavar="N", help="at most so many, over log-FLOPs")
    supernet.add_argument("--seeds", type=_positive, default=2, metavar="N", help="trainings of each")
    supernet.add_argument("--epochs", type=_positive, metavar="N", help="of each training, instead of the file's")
    supernet.add_argument(
        "--reuse", nargs="+", default=[], metavar="RUN", help="other runs on the same data, whose trainings count"
    )
    supernet.add_argument("--all", action="store_true", help="train all of them, also where fewer can tell")
    supernet.add_argument("--plan", action="store_true", help="only say how many it takes to tell, and how long")
    supernet.add_argument("--data", metavar="DIR", help="folder or file of the data set")
    supernet.add_argument("--gpus", type=_whole, metavar="N", help="GPUs to use; all of them if absent, 0 for the CPU")
    supernet.add_argument("--gpus-per-trial", type=_above_0, metavar="X", help="a fraction below 1, or a whole number")
    supernet.add_argument("--cpus", type=_whole, metavar="N", help="CPUs to use; all of them if absent")
    supernet.add_argument("--address", metavar="ADDR", help="Ray cluster to join: auto, or host:port")
    _add_json(supernet)

    check = add("check", data.check, "look at a data set: its classes and splits, and each image that cannot be read")
    check.add_argument("data", metavar="DATA", help="folder or file of the data set, or a name, as fashion-mnist")
    check.add_argument(
        "--decode",
        action="store_true",
        help="decode the training images too, which finds damage in the middle of a file",
    )
    _add_json(check)

    pack = add("pack", data.pack, "encode a folder of images once more, as small JPEG files for a slow disk")
    pack.add_argument("data", metavar="DATA", help="folder or file of the data set")
    pack.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder, or one that was begun so")
    pack.add_argument(
        "--short-side", type=_positive, default=256, metavar="N", help="pixels of the shorter side of large images"
    )
    pack.add_argument(
        "--on-error", choices=["raise", "skip"], default="raise", help="whether images that cannot be read are left out"
    )
    _add_json(pack)

    report = add("report", runs.report, "rebuild the page, tables and plots of a run folder")
    report.add_argument("run", metavar="RUN")
    report.add_argument("--static", choices=["png", "svg", "pdf"], help="the figures as files for papers, too")
    report.add_argument("--watch", nargs="?", type=_positive, const=10, metavar="SECONDS",
                        help="rebuild as results arrive, until the search is over")  # fmt: skip
    _add_json(report)

    watch = add("watch", watching.watch, "serve the page of a run on this machine, with new results as they arrive")
    watch.add_argument("run", metavar="RUN")
    watch.add_argument("--port", type=_port, default=0, metavar="N", help="a free one if absent; on 127.0.0.1 only")

    ask = add("ask", watching.ask, "ask something of the search of a run, which takes it while it runs")
    ask.add_argument("run", metavar="RUN")
    what = ask.add_mutually_exclusive_group()
    what.add_argument("--stop", action="store_true", help="stop in order, as by Ctrl-C")
    what.add_argument("--trials", type=_positive, metavar="N", help="raise the number of trials to N")
    what.add_argument("--try", metavar="ARCH", dest="arch", help="train this next: an id, cvt-13, arch.json, or RUN:ID")
    ask.add_argument("--from", metavar="RUN", dest="source", help="with --try: another run, which has the id")
    _add_json(ask)

    compare = add("compare", runs.compare, "fronts of several runs overlaid, hypervolume side by side")
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument(
        "--to", type=Path, default=Path("results/compare.html"), metavar="FILE", help="the page; results/compare.html"
    )
    _add_json(compare)

    bench = add("bench", tables.bench, "compare searchers and schedulers on a table instead of training")
    bench.add_argument(
        "--table", required=True, type=Path, metavar="FILE",
        help=f"CSV or parquet, or a ready one: {', '.join(ready_tables())}",
    )  # fmt: skip
    bench.add_argument(
        "--objectives", type=_list, default=["accuracy", "flops"], metavar="LIST", help="accuracy,flops if absent"
    )
    bench.add_argument(
        "--searcher", type=_list, default=["surrogate", "tpe", "nsga2", "random"], metavar="LIST",
        help="surrogate, tpe, nsga2, gp, random; optuna-NAME is Optuna's as it ships; surrogate,tpe,nsga2,random if "
             "absent",
    )  # fmt: skip
    bench.add_argument(
        "--scheduler", type=_list, default=["none"], metavar="LIST",
        help="freeze-thaw, pareto-asha, asha, none; pareto-asha:stop decides for good at a rung; none if absent",
    )  # fmt: skip
    bench.add_argument("--budget", type=_positive, required=True, metavar="EPOCHS", help="of each search")
    bench.add_argument(
        "--workers", type=_positive, default=4, metavar="N", help="trials side by side, simulated; 4 if absent"
    )
    bench.add_argument("--seeds", type=_positive, default=10, metavar="N", help="searches by each method; 10 if absent")
    bench.add_argument("--first-seed", type=_whole, default=0, metavar="N", help="0 if absent")
    bench.add_argument("--grace-period", type=_positive, metavar="EPOCHS", help="of the first rung; 1 if absent")
    bench.add_argument(
        "--reduction-factor", type=_above_1, metavar="N", help="ratio of the epochs of rungs; 3 if absent"
    )
    bench.add_argument("--processes", type=_positive, default=1, metavar="N", help="searches at the same time")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="HTML page of hypervolume over epochs")
    _add_json(bench)

    export = add("export", runs.export, "write one architecture of a run as a plain model")
    export.add_argument("run", metavar="RUN")
    export.add_argument("--pick", default="knee", metavar="WHAT", help='knee, best, an arch id, or "flops<4e9"')
    export.add_argument("--to", required=True, metavar="DIR", help="a new folder")
    export.add_argument("--format", default="torch",
                        choices=["torch", "hf", "timm", "onnx", "onnx-int8", "openvino-int8", "pt2"],
                        help="for cvt_nas.load_model, transformers, timm, onnxruntime, OpenVINO, "
                             "torch.export.load")  # fmt: skip
    export.add_argument("--opset", type=_positive, metavar="N", help="of --format onnx; 20 if absent")
    export.add_argument(
        "--data", metavar="DIR", help="of formats in int8: folder or file of the run's data set, where it needs one"
    )
    export.add_argument(
        "--max-loss",
        type=_above_0,
        metavar="X",
        help="of formats in int8: refuse what loses more of the accuracy, as a fraction; 0.01 if absent",
    )
    export.add_argument(
        "--runtime", choices=["onnxruntime", "openvino"], help="of formats in int8: judge it in this runtime alone"
    )
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


def _port(text: str) -> int:
    if _whole(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be below {2**16}")
    return int(text)


def _seed(text: str) -> int:
    if _whole(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be below 2 ** 32")
    return int(text)


def _positive(text: str) -> int:
    if _whole(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be at least 1")
    return int(text)


def _above_1(text: str) -> int:
    if _whole(text) < 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be at least 2")
    return int(text)


def _image_size(text: str) -> int | tuple[int, int]:
    """Reads one word, since a second word could be ARCH."""
    from cvt_nas.arch import as_size

    sides = [_positive(side) for side in text.split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be {_SIZES}")
    return as_size(sides[0], sides[-1])


def _above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a number above 0")
    return value


def _gpus_per_trial(text: str) -> float | str:
    try:
        return text if text == "auto" else _above_0(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be auto, a fraction below 1, or a whole number") from None


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a time above 0 like 90s, 30m, 8h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
