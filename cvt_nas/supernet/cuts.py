"""Cuts: the parts of a supernet's tensors that are the tensors of a subnet."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvt_nas.errors import ArchError


def cut_from(
    owner: nn.Module, tensor: str, name: str, shape: torch.Size, kernel_map: tuple[dict, str] | None = None
) -> "Cut":
    """Cuts a tensor of the module `owner`. Raises ArchError if the module has no such tensor, or a smaller one.

    Args:
        tensor: Name of the tensor in `owner`.
        name: Name of the tensor in the subnet.
        shape: Shape of the tensor in the subnet.
        kernel_map: See `Cut`.
    """
    values = owner._parameters if tensor in owner._parameters else owner._buffers
    whole = values.get(tensor)
    if whole is None or any(inner > outer for inner, outer in zip(shape, whole.shape, strict=True)):
        have = "none" if whole is None else tuple(whole.shape)
        raise ArchError(f"{name}: the subnet needs {tuple(shape)}, the supernet has {have}")
    return Cut(values, tensor, _index_of(shape, whole.shape), kernel_map)


def _index_of(shape: torch.Size, whole: torch.Size) -> tuple[slice, ...] | None:
    """Index of the first channels, and of the centre of a kernel or a grid of positions; None if nothing is cut off."""
    if shape == whole:
        return None
    starts = [(outer - inner) // 2 if axis >= 2 and len(shape) == 4 else 0
              for axis, (inner, outer) in enumerate(zip(shape, whole, strict=True))]  # fmt: skip
    return tuple(slice(start, start + inner) for start, inner in zip(starts, shape, strict=True))


class Cut:
    """Place of a subnet's tensor in the supernet.

    Args:
        values, name: Dict of the parameters or buffers of a module, and the name of the tensor there. The tensor is
            looked up at each call, since moving a module to another device may replace it.
        index: Index of the part; None for the whole tensor.
        kernel_map: Dict and name of the linear map that is applied to the part, the centre of a kernel; None if there
            is no map.
    """

    __slots__ = ("_index", "_kernel_map", "_name", "_values")

    def __init__(
        self, values: dict[str, Any], name: str, index: tuple[slice, ...] | None, kernel_map: tuple[dict, str] | None
    ) -> None:
        self._values, self._name, self._index, self._kernel_map = values, name, index, kernel_map

    @property
    def whole(self) -> Tensor:
        return self._values[self._name]

    @property
    def index(self) -> tuple[slice, ...] | None:
        return self._index

    def __call__(self, part: Tensor | None = None) -> Tensor:
        """The tensor of the subnet. `part` is the part of the whole tensor, if it was cut out already."""
        tensor = self.whole if part is None else part
        if part is None and self._index is not None:
            tensor = tensor[self._index].contiguous()
        if self._kernel_map is not None:
            owner, name = self._kernel_map
            tensor = (tensor.flatten(2) @ owner[name]).view_as(tensor)
        return tensor

    def put(self, tensor: Tensor) -> None:
        whole = self.whole
        if self._index is None:
            whole.copy_(tensor)
            return
        if whole.ndim == 4:  # also clears the surroundings of the kernel
            whole[self._index[:2]] = 0
        whole[self._index] = tensor


class CutOut(torch.autograd.Function):
    """Cuts parts out of parameters. The gradients of the parts are added in place to those of the parameters.

    Autograd alone would put the gradient of each part into a tensor of zeros as large as the parameter, and add that
    tensor. This would take two more launches on a GPU, and more memory traffic.
    """

    @staticmethod
    def forward(ctx: Any, indices: Sequence[tuple[slice, ...]], *wholes: Tensor) -> tuple[Tensor, ...]:
        ctx.indices, ctx.wholes = indices, wholes
        return tuple(whole[index].contiguous() for whole, index in zip(wholes, indices, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        for whole, index, gradient in zip(ctx.wholes, ctx.indices, gradients, strict=True):
            if gradient is not None:
                if whole.grad is None:
                    whole.grad = torch.zeros_like(whole)
                whole.grad[index].add_(gradient)
        return (None,) * (1 + len(gradients))
