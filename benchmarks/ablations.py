"""The ablations of CvT's paper, tables 5 to 8 of arXiv:2103.15808, on Fashion-MNIST.

Each part is taken from a small CvT as the paper takes it from CvT-13: position embeddings, convolutional token
embedding, the stride of keys and values, and convolutional projections. Can be stopped and started again.

    OMP_NUM_THREADS=1 python benchmarks/ablations.py --seeds 3 --processes 2
"""

import argparse
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

from cvt_nas.arch import ArchConfig, StageConfig
from cvt_nas.config import load_experiment
from shared import markdown, train_all

HERE = Path(__file__).parent
# of each table of the paper its rows, and their top-1 accuracy on ImageNet
PAPER: dict[str, dict[str, str]] = {
    "5, position embedding": {
        "CvT": "81.6", "positions in every stage": "81.5", "positions in the first stage": "81.4",
        "positions in the last stage": "81.4",
    },
    "6, token embedding": {
        "CvT": "81.6", "patches": "80.7", "patches, positions in every stage": "81.1",
        "positions in every stage": "81.4",
    },
    "7, stride of keys and values": {"CvT": "81.6", "kv stride 1": "82.3"},
    "8, convolutional projection": {
        "CvT": "81.6", "linear in every stage": "80.6", "linear in stages 2 and 3": "80.8", "linear in stage 3": "81.0",
    },
}  # fmt: skip


def variants(arch: ArchConfig) -> dict[str, ArchConfig]:
    """Each row of the paper's tables 5 to 8, for any network of three stages with CvT's parts.

    Table 6 does not say where its position embeddings are; by its parameters, in every stage. A linear projection has
    no stride, as in figure 3a, so keys and values are not fewer there.
    """
    every, last = range(len(arch.stages)), len(arch.stages) - 1
    patches = _with(
        arch, every, lambda stage: dataclasses.replace(stage, patch_kernel=stage.patch_stride, patch_padding=0)
    )
    if patches.grids != arch.grids:
        raise ValueError(f"patches without overlap: their grids are {patches.grids} instead of {arch.grids}")
    return {
        "CvT": arch,
        "positions in every stage": _with_positions(arch, every),
        "positions in the first stage": _with_positions(arch, [0]),
        "positions in the last stage": _with_positions(arch, [last]),
        "patches": patches,
        "patches, positions in every stage": _with_positions(patches, every),
        "kv stride 1": _with(arch, every, lambda stage: _with_blocks(stage, kv_stride=1)),
        "linear in every stage": _linear(arch, every),
        "linear in stages 2 and 3": _linear(arch, every[1:]),
        "linear in stage 3": _linear(arch, every[2:]),
    }


def _with(arch: ArchConfig, where: Collection[int], change: Callable[[StageConfig], StageConfig]) -> ArchConfig:
    return dataclasses.replace(
        arch, stages=tuple(change(stage) if index in where else stage for index, stage in enumerate(arch.stages))
    )


def _with_blocks(stage: StageConfig, **changes: object) -> StageConfig:
    return dataclasses.replace(stage, blocks=tuple(dataclasses.replace(block, **changes) for block in stage.blocks))


def _with_positions(arch: ArchConfig, where: Collection[int]) -> ArchConfig:
    return _with(arch, where, lambda stage: dataclasses.replace(stage, pos_embed=True))


def _linear(arch: ArchConfig, where: Collection[int]) -> ArchConfig:
    return _with(arch, where, lambda stage: _with_blocks(stage, projection="linear", kernel_size=1, kv_stride=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, where it is not installed")
    options = parser.parse_args()
    space_file = HERE / "ablations.yaml"
    archs = variants(load_experiment(space_file).space.largest)
    table = train_all(
        archs, space_file, seeds=range(options.seeds), to=HERE / "tables" / "ablations.csv",
        processes=options.processes, data=options.data,
    )  # fmt: skip
    for title, rows in PAPER.items():
        print(f"\nTable {title}\n\n{markdown(table, list(rows), **{'ImageNet, in the paper': rows})}")


if __name__ == "__main__":
    main()
