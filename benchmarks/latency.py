"""How well a table of parts tells the latency of whole networks: networks that had no part in it, in the same rounds.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/latency.py --space search_spaces/fashion_mnist.yaml --busy 1
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/latency.py --space search_spaces/fashion_mnist.yaml --busy 1 \
        --runtime onnxruntime --kit /tmp/kit

`--busy` has other processes train networks on the same cores meanwhile. ONNX files are written before that.
"""

import argparse
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from cvt_nas.arch import NAMED_ARCHS
from cvt_nas.config import load_experiment
from cvt_nas.engine.latency_table import measure_table, on_device
from cvt_nas.export.kit import write_kit
from cvt_nas.latency import Deployment, LatencyTable, facts_of
from cvt_nas.latency.measuring import measure_kit
from cvt_nas.model import build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--networks", type=int, default=90)
    parser.add_argument("--seed", type=int, default=1, help="of the networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runtime", default="torch", help="see section deploy of the space file")
    parser.add_argument("--kit", type=Path, help="folder of the ONNX files, which is written where it is not there yet")
    parser.add_argument("--write-only", action="store_true", help="only write the kit")
    parser.add_argument("--busy", type=int, default=0, help="processes that work beside it")
    options = parser.parse_args()
    experiment, device = load_experiment(options.space), torch.device(options.device)
    space = experiment.space
    asked = {"num_judged": options.networks, "seed": options.seed}
    precision = facts_of(options.runtime).precisions[0]
    deployment = Deployment(runtime=options.runtime, threads=1, precision=precision, image_size=space.image_size)
    deployment = on_device(deployment, device)
    kit = None
    if deployment.facts.is_graph:
        kit = options.kit or Path(tempfile.mkdtemp()) / "kit"
        if not kit.exists():
            write_kit(kit, space, deployment, name=experiment.name, **asked)
    if options.write_only:
        return
    with others_at_work(options.busy):
        started = time.perf_counter()
        if kit is None:
            table = measure_table(space, device=device, deployment=deployment, **asked)
        else:
            table = LatencyTable.from_json(measure_kit(kit))
        seconds = time.perf_counter() - started
    print(f"{experiment.name} on {table.device}: {len(table.parts)} parts in {seconds:.0f} s, {options.busy} busy")
    print(f"median error {table.error:.1%}; {table.judged}")


@contextlib.contextmanager
def others_at_work(number: int) -> Iterator[None]:
    """Processes that train CvT-13 on noise until this ends."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, daemon=True) for _ in range(number)]
    for worker in workers:
        worker.start()
    time.sleep(10 if number else 0)  # until they train
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()


def work() -> None:
    torch.set_num_threads(1)
    model = build_model(NAMED_ARCHS["cvt-13"])
    while True:
        model(torch.randn(2, 3, 224, 224)).sum().backward()


if __name__ == "__main__":
    main()
