"""The verb that describes an architecture, and the ways to name an architecture."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cvt_nas.cli.output import print_note, write
from cvt_nas.errors import ArchError

if TYPE_CHECKING:
    from cvt_nas.arch import ArchConfig
    from cvt_nas.engine.latency import Latency
    from cvt_nas.run import RunFolder


def load_named(text: str, image_size: int | tuple[int, int] | None = None) -> "ArchConfig":
    """The architecture of a name or a file.

    A config of transformers does not contain the image size. The size then comes from the processor file beside it, or
    else from `image_size`, or else from the published models.
    """
    from cvt_nas.arch import NAMED_ARCHS, is_of_transformers, load_arch, read_object, size_text

    arch, path = load_arch(text), Path(text)
    config = path / "config.json" if path.is_dir() and not (path / "arch.json").is_file() else path
    if text in NAMED_ARCHS or not config.is_file() or not is_of_transformers(read_object(config)):
        return arch
    from cvt_nas.data.preprocessing import preprocessing_beside

    found, source = preprocessing_beside(config.parent)
    size, why = found.get("image_size"), f"as {source} says"
    if size is None:
        size, why = image_size, "as the space has them"
    if size is None:
        size, why = arch.image_size, "as of the published models"
    print_note(f"{config} tells no size of images: {size_text(size)}, {why}")
    return arch.with_image_size(size)


def arch_of(text: str, image_size: int | tuple[int, int] | None = None) -> "tuple[ArchConfig, RunFolder | None]":
    """The architecture that ARCH names, and the folder of its run if ARCH is RUN:ID; see `load_named`."""
    from cvt_nas.run import RunFolder, is_url

    folder, colon, arch_id = text.rpartition(":")
    if colon and (is_url(folder) or (Path(folder) / "manifest.json").is_file()):
        run = RunFolder.open(folder)
        return (run.pick(arch_id) if arch_id in ("knee", "best") else run.find(arch_id)).arch, run
    if colon and not Path(text).exists():
        raise ArchError(f"{text}: {folder} holds no run")
    return load_named(text, image_size), None


def profile(options: argparse.Namespace) -> int:
    from cvt_nas.arch import as_size, attention_flops, cost_of, describe_stages, size_text, stage_costs
    from cvt_nas.report import published_as, short

    arch, _ = arch_of(options.arch)
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
                    "grid": as_size(*grid),
                }
                for cost, stage, grid in zip(stages, arch.stages, arch.grids, strict=True)
            ],
            **({} if latency is None else {"latency": latency.to_json()}),
        }
        write(json.dumps(result))
        return 0
    for cost, line in zip(stages, describe_stages(arch), strict=True):
        write(f"{short(cost.params):>7} params {short(cost.flops):>7} FLOPs  {line}")
    write(f"{short(total.params):>7} params {short(total.flops):>7} FLOPs  in total at "
          f"{size_text(arch.image_size)}, head included: {total.params:,} and {total.flops:,}")  # fmt: skip
    write("A multiply-add is one FLOP; norms and attention's two products are counted, as fvcore does. Without those "
          f"products, which some papers leave out: {short(without_attention)} FLOPs.")  # fmt: skip
    for model in published:
        write(f"published: {model.line}")
    if latency is not None:
        from cvt_nas.engine.latency import latency_line

        write(latency_line(latency))
    return 0


def _latency(arch: "ArchConfig", options: argparse.Namespace) -> "Latency | None":
    """The latency that `--latency` asks for. None if it is not given."""
    if options.latency is None:
        if options.onnx or options.batch is not None:
            raise ArchError("--onnx, --batch: say how latency is measured; give --latency cpu or cuda with them")
        return None
    from cvt_nas.export.latency import profile_latency

    return profile_latency(arch, device=options.latency, onnx=options.onnx, batch_size=options.batch or 1)
