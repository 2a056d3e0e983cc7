"""The published architectures."""

from cvt_nas.arch.network import ArchConfig, BlockConfig, StageConfig


def cvt(
    *,
    embed_dims: tuple[int, ...],
    depths: tuple[int, ...],
    num_heads: tuple[int, ...],
    stem_kernel: int = 7,
    stem_padding: int = 2,  # 2 in the official files, not 7 // 2
    class_token: bool = True,
    kv_stride: int = 2,
    image_size: int = 224,
    num_classes: int = 1000,
) -> ArchConfig:
    """A CvT as published: 7x7 stem of stride 4, then 3x3 of stride 2, 3x3 projections, MLP ratio 4."""
    return ArchConfig(
        image_size=image_size,
        num_classes=num_classes,
        stages=tuple(
            StageConfig(
                patch_kernel=stem_kernel if index == 0 else 3,
                patch_stride=4 if index == 0 else 2,
                patch_padding=stem_padding if index == 0 else 1,
                embed_dim=dim,
                blocks=(BlockConfig(num_heads=heads, kv_stride=kv_stride),) * depth,
                class_token=class_token and index == len(embed_dims) - 1,
            )
            for index, (dim, depth, heads) in enumerate(zip(embed_dims, depths, num_heads, strict=True))
        ),
    )


# Wu et al. 2021, arXiv:2103.15808, table 2, and experiments/imagenet/cvt of github.com/microsoft/CvT.
NAMED_ARCHS: dict[str, ArchConfig] = {
    "cvt-13": cvt(embed_dims=(64, 192, 384), depths=(1, 2, 10), num_heads=(1, 3, 6)),
    "cvt-21": cvt(embed_dims=(64, 192, 384), depths=(1, 4, 16), num_heads=(1, 3, 6)),
    "cvt-w24": cvt(embed_dims=(192, 768, 1024), depths=(2, 2, 20), num_heads=(3, 12, 16), image_size=384),
    # model/vit/cvt.py of github.com/pprp/PyTorch-CIFAR-Model-Hub: CvT-13 with another stem kernel and no class token
    "cvt-13-cifar": cvt(
        embed_dims=(64, 192, 384),
        depths=(1, 2, 10),
        num_heads=(1, 3, 6),
        stem_kernel=3,
        stem_padding=1,
        class_token=False,
        image_size=32,
        num_classes=10,
    ),
}
