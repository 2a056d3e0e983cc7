"""The set of architectures that a space file spans, its genome, and its exact cost bounds.

A genome is a fixed-length tuple of option indices, with one gene for each choice of the file. Genes are never
conditional: if the depth varies, `decode` ignores the genes of absent blocks. Genomes that decode to the same
`ArchConfig.id` are one architecture.
"""

from cvt_nas.space.arch_space import ArchSpace, spread_over_flops
from cvt_nas.space.choices import (
    ALL_COST_METRICS,
    BLOCK_CHOICES,
    COST_METRICS,
    LINEAR_IGNORES,
    SIZE_METRICS,
    STAGE_CHOICES,
    TIMED_METRICS,
    UNSIZED_CHOICES,
    Bound,
    CostMetric,
    Gene,
    Genome,
    GenomeSpace,
    Option,
    StageSpace,
)
from cvt_nas.space.narrowed import NarrowedSpace
from cvt_nas.space.search_space import SearchSpace
