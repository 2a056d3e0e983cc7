"""Forward and backward passes as CUDA graphs: recorded once, then launched as one, which small networks gain by most.

A replay runs the kernels that were recorded, on the same memory, with the random draws that would come next, so its
results are those of the pass itself, to the bit.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cvt_nas.engine.memory import Meter

Pass = Callable[..., tuple[Tensor, ...]]
Recorder = Callable[[Callable[[], tuple[Tensor, ...]]], tuple[tuple[Tensor, ...], Callable[[], None]]]
_WARM_UPS = 2  # by which libraries have what they make at first; the second on a stream of its own, as the graph
_MOST_ROOM = 0.5  # of the memory that a pass may take: a graph keeps it, and evaluation needs some, too


def recorder_of(device: torch.device) -> Recorder | None:
    """Records on `device`, in memory that its recordings share; None where nothing can be recorded.

    Recordings are to be replayed in the order in which they were made.
    """
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # other threads may go on to copy batches meanwhile
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            made = run()
        return made, graph.replay

    return record


class ReplayedPass:
    """A pass that is recorded once it has run twice, and replayed from then on.

    It runs as it is where a batch has another shape than the first, where it takes more than half of the memory, and
    where it cannot be recorded.

    Args:
        run: What is made of the tensors of a batch; adds gradients to those of `parameters`. The host may not look at
            what the device computes.
        record: See `recorder_of`.
        meter: Of the device's memory; None where there is always enough.
    """

    def __init__(self, run: Pass, parameters: Sequence[nn.Parameter], record: Recorder, *, meter: Meter | None) -> None:
        self._run, self._parameters, self._record, self._meter = run, parameters, record, meter
        self._num_runs = 0
        self._is_possible = True
        self._inputs: list[Tensor] = []
        self._made: tuple[Tensor, ...] = ()
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        self._replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What `run` returns; valid until the next call."""
        if not self._is_possible:
            return self._run(*inputs)
        if self._num_runs < _WARM_UPS:
            self._num_runs += 1
            return self._warm_up(*inputs)
        if self._replay is None and not self._try_to_record(inputs):
            return self._run(*inputs)
        if any(_layout(new) != _layout(own) for new, own in zip(inputs, self._inputs, strict=True)):
            return self._run(*inputs)
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new)
        assert self._replay is not None, "it was recorded"
        self._replay()
        self._add_gradients()
        return self._made

    def _warm_up(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._meter is None:
            return self._run(*inputs)
        made: list[tuple[Tensor, ...]] = []
        peak = self._meter.peak_of(lambda: made.append(self._run(*inputs)))
        self._is_possible = peak <= _MOST_ROOM * self._meter.room()
        return made[0]

    def _try_to_record(self, inputs: Sequence[Tensor]) -> bool:
        before = [parameter.grad for parameter in self._parameters]
        device = inputs[0].device
        drawn = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        own = [tensor.clone() for tensor in inputs]
        try:
            for parameter in self._parameters:
                parameter.grad = None
            self._made, self._replay = self._record(lambda: self._run(*own))
            self._gradients = [(p, p.grad) for p in self._parameters if p.grad is not None]
            self._inputs = own
        except RuntimeError:  # of CUDA, where something in it cannot be recorded, or memory runs out
            self._is_possible = False
            if drawn is not None:
                torch.cuda.synchronize(device)
                torch.cuda.set_rng_state(drawn, device)
        finally:
            for parameter, gradient in zip(self._parameters, before, strict=True):
                parameter.grad = gradient
        return self._replay is not None

    def _add_gradients(self) -> None:
        given = [(p.grad, gradient) for p, gradient in self._gradients if p.grad is not None]
        for parameter, gradient in self._gradients:
            if parameter.grad is None:
                parameter.grad = gradient
        if given:
            sums, added = map(list, zip(*given, strict=True))
            cast(Any, torch)._foreach_add_(sums, added)


def _layout(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.stride()
