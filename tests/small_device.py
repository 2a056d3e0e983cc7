"""A device with little memory, on the CPU: the tensors of its operations are counted, and more than a limit refused."""

import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SmallDevice(TorchDispatchMode):
    """Counts the bytes of all storages that operations within it made, as long as anything holds them.

    It is a `Meter`, too, whose operations are those within it.

    Args:
        limit: Bytes; an operation that leads beyond it raises, as that of a full GPU does.
    """

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.limit, self.live, self.peak, self.num_refused = limit, 0, 0, 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        if self.live > self.limit:
            self.num_refused += 1
            raise torch.OutOfMemoryError("small device out of memory")
        self.peak = max(self.peak, self.live)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: Any) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live += size

    def room(self) -> int:
        return int(self.limit)

    def peak_of(self, run: Callable[[], object], /) -> int:
        self.peak = self.live
        run()
        return self.peak

    def __enter__(self) -> Self:
        super().__enter__()
        return self
