"""Compiled blocks for a GPU. A network has few kinds of blocks, and each kind is compiled once.

torch keeps compiled code on disk, so all processes of a machine share it, and with them all trials of a space.
"""

import contextlib
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from cvt_nas.model import Block, CvT, compute_block

BACKEND = "inductor"
_MOST_KINDS = 256  # kept by a process, since a worker goes from trial to trial
_COMPILED: dict[Hashable, Callable[..., Tensor]] = {}


class CompiledBlocks:
    """A call gives a context in which the blocks of `model` are compiled.

    They draw the same random numbers as uncompiled blocks. Their sums differ by rounding.
    """

    def __init__(self, model: CvT) -> None:
        self._blocks: list[tuple[Block, Callable[..., Tensor]]] = []
        for index, (stage, grid) in enumerate(zip(model.arch.stages, model.arch.grids, strict=True)):
            blocks: Any = model.get_submodule(f"stage{index}.blocks")
            for block, config in zip(blocks, stage.blocks, strict=True):
                kind = config, stage.embed_dim, stage.class_token, grid, block.drop_path_rate > 0
                self._blocks.append((block, _compiled(kind)))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        for block, function in self._blocks:
            block.compute = function
        try:
            yield
        finally:
            for block, _ in self._blocks:
                block.compute = None


def _compiled(kind: Hashable) -> Callable[..., Tensor]:
    if kind not in _COMPILED:
        if len(_COMPILED) >= _MOST_KINDS:
            _COMPILED.clear()
            torch.compiler.reset()
        # each kind has its own code; otherwise, each call would check the compiled code of other kinds
        code = compute_block.__code__.replace(co_name=f"compute_block_{len(_COMPILED)}")
        function = types.FunctionType(code, compute_block.__globals__, code.co_name, compute_block.__defaults__)
        _COMPILED[kind] = torch.compile(function, backend=BACKEND, dynamic=False, fullgraph=True)
    return _COMPILED[kind]
