"""A table of the times of parts on one device. The time of any network of a space is a sum over the table."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from cvt_nas.arch import ArchConfig, BlockConfig, Grid, StageConfig, size_text
from cvt_nas.errors import RunFolderError
from cvt_nas.latency.deployment import Deployment
from cvt_nas.latency.measuring import UNKNOWN_PROCESSOR


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """All parts that the networks of a space are made of.

    Args:
        embeddings: For each, a stage (its blocks do not matter), and the channels and the grid of its input map.
        blocks: For each, the block, its width, its grid, and whether there is a class token.
        heads: For each, its width and its grid.
        num_classes: Number of classes of each head.
    """

    embeddings: tuple[tuple[StageConfig, int, Grid], ...]
    blocks: tuple[tuple[BlockConfig, int, Grid, bool], ...]
    heads: tuple[tuple[int, Grid], ...]
    num_classes: int

    @property
    def keys(self) -> list[str]:
        """Names of the parts in a table."""
        return [
            *(embedding_key(s, in_channels=c, grid=s.grid_after(before)) for s, c, before in self.embeddings),
            *(block_key(b, embed_dim=d, grid=grid, class_token=token) for b, d, grid, token in self.blocks),
            *(head_key(dim=dim, grid=grid) for dim, grid in self.heads),
        ]

    @property
    def id(self) -> str:
        """Hash of the parts and the number of classes. Spaces of the same parts have the same id."""
        return hashlib.sha256(json.dumps([sorted(self.keys), self.num_classes]).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """How well a table predicts the latency of whole networks that it was not fitted to. All but `number` are
    fractions.

    Args:
        number: Number of these networks.
        within_5, within_10: Share of the networks that are predicted within 5 % and within 10 %.
        bias: Mean relative error of the predictions. It is above 0 if they are too great.
        spearman: Rank correlation of predictions and measurements. It is 0 if all of either are equal.
        noise: Relative difference between two halves of the rounds of a network, as the median over the networks.
        drift: Relative slowdown of the machine from the beginning of the measurement to its end.
    """

    number: int
    within_5: float
    within_10: float
    bias: float
    spearman: float
    noise: float
    drift: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyTable:
    """Times of a batch through each part. The time of a network is their sum.

    Args:
        parts: Microseconds by part, with the keys below. They are scaled so that sums agree with whole networks that
            were timed.
        constant_us: Microseconds that a network takes in addition to its parts.
        device: Name of the processor, and what ran on it.
        error: Median relative error of the sums, as a fraction, over whole networks that the scale was not fitted to.
        judged: More about these errors. None in a table of an earlier version.
        deployment: Deployment that was measured. None in a table of an earlier version, which supported torch and a
            batch of one image only.
        space: `Parts.id` of the space. None in a table of an earlier version.

    Source: Cai et al. 2019, arXiv:1812.00332, section 3.3. The table there holds operations instead of parts.
    """

    parts: Mapping[str, int]
    constant_us: int
    device: str
    error: float
    judged: Judged | None = None
    deployment: Deployment | None = None
    space: str | None = None

    def embedding(self, stage: StageConfig, *, in_channels: int, grid: Grid) -> int:
        return self.parts[embedding_key(stage, in_channels=in_channels, grid=grid)]

    def block(self, block: BlockConfig, *, embed_dim: int, grid: Grid, class_token: bool) -> int:
        return self.parts[block_key(block, embed_dim=embed_dim, grid=grid, class_token=class_token)]

    def head(self, *, dim: int, grid: Grid) -> int:
        """Time of a head plus the constant. Each network has one head, so the constant counts once per network."""
        return self.parts[head_key(dim=dim, grid=grid)] + self.constant_us

    def check_fits(self, parts: Parts, deployment: Deployment) -> None:
        """Raises RunFolderError if the table belongs to another space or another deployment."""
        needed = set(parts.keys)
        for what, odd in (("lacks", needed - self.parts.keys()), ("also has", self.parts.keys() - needed)):
            if odd:
                raise RunFolderError(
                    f"latency_table: is of another space: it {what} {len(odd)} parts, such as {min(odd)!r}; measure "
                    f"this space by cvt-nas measure"
                )
        if self.space not in (None, parts.id):
            raise RunFolderError("latency_table: is of a space of another number of classes; measure this space")
        own = self.deployment or Deployment(image_size=deployment.image_size)
        if differences := deployment.differences(own):
            raise RunFolderError(
                f"latency_table: was measured with {', '.join(differences)} of section deploy; measure again, or "
                f"change the section"
            )

    def is_of(self, device: str | None) -> bool:
        """Whether the table was measured on a device of this description. A processor of unknown kind is never it."""
        return device is not None and device == self.device and not device.startswith(UNKNOWN_PROCESSOR)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: object) -> "LatencyTable":
        """Raises RunFolderError if the tree is not a table."""
        try:
            return _ADAPTER.validate_python(tree)
        except ValidationError as error:
            raise RunFolderError(f"latency_table: is none: {error.errors()[0]['msg']}") from error


_ADAPTER = TypeAdapter(LatencyTable)


def part_counts(arch: ArchConfig) -> Counter[str]:
    """Number of times that a network has each part, by the name of the part in a table."""
    found, channels = Counter[str](), arch.num_channels
    for stage, grid in zip(arch.stages, arch.grids, strict=True):
        found[embedding_key(stage, in_channels=channels, grid=grid)] += 1
        for block in stage.blocks:
            found[block_key(block, embed_dim=stage.embed_dim, grid=grid, class_token=stage.class_token)] += 1
        channels = stage.embed_dim
    found[head_key(dim=channels, grid=arch.grids[-1])] += 1
    return found


def embedding_key(stage: StageConfig, *, in_channels: int, grid: Grid) -> str:
    return (
        f"embedding {in_channels} to {stage.embed_dim} channels, kernel {stage.patch_kernel}, stride "
        f"{stage.patch_stride}, padding {stage.patch_padding}, grid {_text_of(grid)}"
        + (", position embedding" if stage.pos_embed else "")
    )


def block_key(block: BlockConfig, *, embed_dim: int, grid: Grid, class_token: bool) -> str:
    return (
        f"block of {embed_dim} channels, heads {block.num_heads}, mlp {block.mlp_ratio:g}, kernel {block.kernel_size}, "
        f"kv stride {block.kv_stride}, {block.projection}, {block.activation}, grid {_text_of(grid)}, "
        f"class token {class_token}"
    )


def head_key(*, dim: int, grid: Grid) -> str:
    return f"head of {dim} channels, grid {_text_of(grid)}"


def _text_of(grid: Grid) -> str:
    """Text of a grid in a key. A square is one number, as in the tables that earlier runs hold."""
    return str(grid[0]) if grid[0] == grid[1] else size_text(grid)
