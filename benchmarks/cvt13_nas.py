"""Whether a search does what CvT-13-NAS is reported to: better than CvT-13 at a lower cost, rich in the middle.

The network found is the most accurate one on the search split that has neither more params nor more FLOPs than the
baseline. It, the baseline and the baseline with kv stride 1 are then trained from scratch, with seeds that the search
did not have. Can be stopped and started again.

    cvt-nas search --space search_spaces/cvt13_nas_small.yaml --out results/cvt13_nas_small
    OMP_NUM_THREADS=1 python benchmarks/cvt13_nas.py results/cvt13_nas_small --seeds 3 --processes 2
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from cvt_nas.arch import ArchConfig, attention_flops, cost_of
from cvt_nas.config import load_experiment
from cvt_nas.run import RunFolder
from shared import markdown, train_all

SPACE = Path(__file__).parent.parent / "search_spaces" / "cvt13_nas_small.yaml"
BASELINE, FINER = "cvt-13", "cvt-13-stride-1"
PAPER = {BASELINE: "81.6, 20 M, 4.5 G", FINER: "82.3, 20 M, 6.55 G", "found": "82.2, 18 M, 4.1 G"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, where it is not installed")
    options = parser.parse_args()
    experiment, run = load_experiment(SPACE), RunFolder.open(options.run)
    anchors = experiment.anchor_archs()
    limit = cost_of(anchors[BASELINE])
    front = run.front()
    affordable = [
        result for result in front.members
        if result.cost.params <= limit.params and result.cost.flops <= limit.flops
        and result.arch.id != anchors[BASELINE].id
    ]  # fmt: skip
    if not affordable:
        raise SystemExit(f"{options.run}: nothing on the front costs at most what {BASELINE} does")
    found = max(affordable, key=lambda result: result.accuracy or 0.0).arch
    archs = {BASELINE: anchors[BASELINE], FINER: anchors[FINER], "found": found}
    table = train_all(
        archs, SPACE, seeds=range(options.first_seed, options.first_seed + options.seeds),
        to=options.run / "retrained.csv", processes=options.processes, data=options.data,
    )  # fmt: skip
    without = {name: f"{(cost_of(arch).flops - attention_flops(arch)) / 1e6:.2f} M" for name, arch in archs.items()}
    print(f"\n{markdown(table, list(archs), **{'FLOPs without attention': without, 'the paper on ImageNet': PAPER})}\n")
    print_pattern({"found": [found], f"front, {len(front.members)} networks": [r.arch for r in front.members]})


def print_pattern(groups: dict[str, Iterable[ArchConfig]]) -> None:
    """For each block, first to last, the share of a group's networks that have stride 1 and ratio 4 there."""
    for name, archs in groups.items():
        blocks = [[block for stage in arch.stages for block in stage.blocks] for arch in archs]
        for what, is_rich in (("kv stride 1", lambda block: block.kv_stride == 1),
                              ("mlp ratio 4", lambda block: block.mlp_ratio == 4)):  # fmt: skip
            shares = [sum(map(is_rich, at)) / len(at) for at in zip(*blocks, strict=True)]
            print(f"{name}: {what} " + " ".join(f"{share:.2f}".removeprefix("0") for share in shares))


if __name__ == "__main__":
    main()
