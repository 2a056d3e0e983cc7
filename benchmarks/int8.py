"""What int8 weights of 7 bits cost in accuracy, and what weights of 8 bits cost on a CPU without VNNI.

Networks of a space are trained as in its table, and quantised by each recipe. Their answers to the test split are
compared with those in fp32, in each runtime. Each network is one line of `--to`; a run that was stopped goes on.

    OMP_NUM_THREADS=1 python benchmarks/int8.py --space benchmarks/tables/cvt-bench-strides.yaml --to int8.jsonl
    python benchmarks/int8.py --to int8.jsonl --table
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cvt_nas.config import TrainingConfig, load_experiment
from cvt_nas.data import load_data
from cvt_nas.engine import fit
from cvt_nas.engine.evaluation import answers_of
from cvt_nas.engine.int8 import calibration_batches, logits_error
from cvt_nas.model import runtimes_for
from cvt_nas.model.onnx_files import write_onnx
from cvt_nas.model.quantising import Images, quantise_onnx, quantise_openvino
from cvt_nas.space import spread_over_flops

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path)
    parser.add_argument("--data", type=Path, help="folder or file of the images, where it is not the usual one")
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="only print the table of what is in --to")
    options = parser.parse_args()
    kept = [json.loads(line) for line in options.to.read_text().splitlines()] if options.to.exists() else []
    if options.table:
        print(table_of(kept).to_string())
        return
    experiment = load_experiment(options.space)
    space, name = experiment.space, options.space.stem
    data = load_data(
        experiment.data, root=options.data, image_size=space.image_size, num_channels=space.num_channels,
        num_classes=space.num_classes,
    )  # fmt: skip
    done = {(row["space"], tuple(row["genome"])) for row in kept}
    for genome in spread_over_flops(space, options.networks):
        if (name, genome) in done:
            continue
        *_, last = fit(space.decode(genome), experiment.training, data, device=CPU, seed=1)
        row = {"space": name, "genome": genome, "found": judged(last.model.eval(), data)}
        with options.to.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def judged(model: Any, data: Any) -> list[dict[str, Any]]:
    batches = calibration_batches(data)

    def answers(network: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return answers_of(network, data.eval_batches("test", batch_size=64, device=CPU), TrainingConfig(epochs=0))

    expected, labels = answers(model)
    accuracy = (expected.argmax(dim=1) == labels).double().mean().item()
    rows = []
    for recipe, (quantise, file_name) in recipes().items():
        with tempfile.TemporaryDirectory() as folder:
            source, file = Path(folder) / "fp32" / "model.onnx", Path(folder) / "int8" / file_name
            source.parent.mkdir()
            file.parent.mkdir()
            write_onnx(model, source)
            quantise(source, file, batches)
            only = "openvino" if file.suffix == ".xml" else "onnxruntime"
            for runtime, opened in runtimes_for(file_name, only=only, num_threads=1).items():
                found, _ = answers(opened(file))
                in_int8 = (found.argmax(dim=1) == labels).double().mean().item()
                error = logits_error(found, expected)
                rows.append({"recipe": recipe, "runtime": runtime, "fp32": accuracy, "int8": in_int8, "error": error})
    return rows


def recipes() -> Mapping[str, tuple[Callable[[Path, Path, Iterable[Images]], None], str]]:
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix

    def in_8_bits(source: Path, to: Path, batches: Iterable[Images]) -> None:
        quantise_onnx(source, to, batches, reduce_range=False)

    def openvino_in_8_bits(source: Path, to: Path, batches: Iterable[Images]) -> None:
        no_smoothing = nncf.AdvancedSmoothQuantParameters(matmul=-1)
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.FIRST_LAYER, smooth_quant_alphas=no_smoothing
        )
        quantise_openvino(source, to, batches, advanced_parameters=advanced)

    return {
        "onnx, 7 bits": (quantise_onnx, "model.onnx"),
        "onnx, 8 bits": (in_8_bits, "model.onnx"),
        "openvino, 7 bits": (quantise_openvino, "model.xml"),
        "openvino, 8 bits": (openvino_in_8_bits, "model.xml"),
    }


def table_of(kept: list[dict[str, Any]]) -> pd.DataFrame:
    """For each space, recipe and runtime: points gained over fp32 (mean, deviation, worst), and errors of logits."""
    rows = pd.DataFrame([{"space": row["space"], **found} for row in kept for found in row["found"]])
    rows["gain"] = 100 * (rows["int8"] - rows["fp32"])
    return rows.groupby(["space", "recipe", "runtime"]).agg(
        networks=("gain", "size"), gain=("gain", "mean"), deviation=("gain", "std"), worst=("gain", "min"),
        error=("error", "median"), largest_error=("error", "max"),
    ).round(4)  # fmt: skip


if __name__ == "__main__":
    main()
