"""Number of values that a network holds at once in the forward pass of one image, in closed form."""

import math

from cvt_nas.arch.cost import kv_grid, mlp_width
from cvt_nas.arch.network import BlockConfig, StageConfig
from cvt_nas.arch.sizes import Grid


def embedding_values(stage: StageConfig, *, in_channels: int, grid: Grid) -> int:
    """The most values held at once in an embedding: input and output of the convolution, or two maps of tokens."""
    tokens = stage.embed_dim * (math.prod(grid) + stage.class_token)
    inputs = in_channels * math.prod(grid) * stage.patch_stride**2
    return tokens + max(inputs, tokens)


def block_values(block: BlockConfig, *, embed_dim: int, grid: Grid, class_token: bool) -> int:
    """The most values held at once in a block.

    The block keeps its input for the residual sum. In addition, each step holds its own inputs and outputs:

    - The projections hold normed tokens, queries, keys and values.
    - The softmax holds the products of queries and keys, before and after it, and the values.
    - The MLP holds its hidden layer before and after the activation.

    A runtime that fuses attention holds fewer.
    """
    tokens, keys = (math.prod(each) + class_token for each in (grid, kv_grid(grid, block)))
    products = block.num_heads * tokens * keys
    projections = 2 * tokens * embed_dim + 2 * keys * embed_dim
    softmax = 2 * products + keys * embed_dim
    hidden = 2 * tokens * mlp_width(embed_dim, block.mlp_ratio)
    return tokens * embed_dim + max(projections, softmax, hidden)


def head_values(*, dim: int, grid: Grid, class_token: bool, num_classes: int) -> int:
    """The most values held at once in the head: all tokens, the normed tokens (the class token alone, if there is one),
    and the logits."""
    tokens = math.prod(grid) + class_token
    return dim * (tokens + (1 if class_token else tokens)) + num_classes
