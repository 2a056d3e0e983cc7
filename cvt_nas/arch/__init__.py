"""One architecture and its cost, as frozen values without torch."""

from cvt_nas.arch.cost import (
    Cost,
    attention_flops,
    block_cost,
    cost_of,
    embedding_cost,
    head_cost,
    mlp_width,
    stage_costs,
)
from cvt_nas.arch.files import load_arch, read_object, save_arch
from cvt_nas.arch.foreign import arch_of_config, class_names_of_config, is_config, is_of_transformers
from cvt_nas.arch.memory import block_values, embedding_values, head_values
from cvt_nas.arch.network import (
    PROJECTIONS,
    Activation,
    ArchConfig,
    BlockConfig,
    Projection,
    StageConfig,
    arch_from_dict,
    arch_to_dict,
    describe_stages,
)
from cvt_nas.arch.published import NAMED_ARCHS, cvt
from cvt_nas.arch.sizes import Grid, ImageSize, as_size, checked_size, sides_of, size_text
