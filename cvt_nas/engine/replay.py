"""Forward and backward passes as CUDA graphs: recorded once and then launched as a whole. Small networks gain most.

A replay runs the recorded kernels on the same memory with the next random draws. So its results equal those of the
pass itself, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cvt_nas.engine.memory import Meter, Undo

Pass = Callable[..., tuple[Tensor, ...]]
Recorder = Callable[[Callable[[], tuple[Tensor, ...]]], tuple[tuple[Tensor, ...], Callable[[], None]]]
_WARM_UPS = 2  # libraries load what they need, and the first step allocates
_TOLERANCE = 0.01  # relative to the norm of all results of a pass
_MOST_ROOM = 0.5  # share of the memory for a pass: a graph keeps it, and evaluation needs memory, too


def recorder_of(device: torch.device) -> Recorder | None:
    """A recorder on `device`, whose recordings share memory; None if the device cannot record.

    Replay recordings in the order in which they were made.
    """
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # other threads may copy batches meanwhile
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            made = run()
        return made, graph.replay

    return record


class ReplayedPass:
    """A pass that is recorded after two runs, and then replayed.

    The third time, it both runs and is replayed, and the results must agree. It runs without a replay if they differ,
    if it cannot be recorded, if it takes more than half of the memory, or if a batch has another shape than the first
    one.

    Args:
        run: The pass. It takes the tensors of a batch and adds gradients to those of `model`. The host must not read
            values of the device.
        meter: Measures the device's memory; None if there is always enough.
    """

    def __init__(self, run: Pass, model: nn.Module, record: Recorder, *, meter: Meter | None) -> None:
        self._run, self._record, self._meter = run, record, meter
        self._parameters, self._buffers = list(model.parameters()), list(model.buffers())
        self._num_runs = 0
        self._is_possible = True
        self._inputs: list[Tensor] = []
        self._made: tuple[Tensor, ...] = ()
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the result of `run`, which is valid until the next call."""
        if not self._is_possible:
            return self._run(*inputs)
        if self._num_runs < _WARM_UPS:
            self._num_runs += 1
            return self._warm_up(*inputs)
        if self._replay is None:
            return self._run_and_record(*inputs)
        if any(_layout(new) != _layout(own) for new, own in zip(inputs, self._inputs, strict=True)):
            return self._run(*inputs)
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new)
        self._replay()
        self._add(self._gradients)
        return self._made

    def _warm_up(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._meter is None:
            return self._run(*inputs)
        made: list[tuple[Tensor, ...]] = []
        peak = self._meter.peak_of(lambda: made.append(self._run(*inputs)))
        self._is_possible = peak <= _MOST_ROOM * self._meter.room()
        return made[0]

    def _run_and_record(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        before = self._take_gradients()
        undo = Undo(self._buffers, inputs[0].device)
        undo.remember()
        self._inputs = [tensor.clone() for tensor in inputs]
        try:
            self._made, self._replay = self._record(lambda: self._run(*self._inputs))
            self._gradients = self._take_gradients()
            self._replay()
        except RuntimeError:  # CUDA cannot record the pass, or memory ran out
            self._take_gradients()
        replayed = [*self._made, *self._gradients.values(), *(buffer.clone() for buffer in self._buffers)]
        undo()
        try:
            made = self._run(*inputs)
        except RuntimeError:  # memory ran out beside the recording
            self._give_up()
            raise
        gradients = self._take_gradients()
        if (
            self._replay is None
            or list(map(id, gradients)) != list(map(id, self._gradients))
            or not _agree(replayed, [*made, *gradients.values(), *self._buffers])
        ):
            self._give_up()
        self._add(before)
        self._add(gradients)
        return made

    def _give_up(self) -> None:
        """Frees the recording and its memory."""
        self._is_possible = False
        self._made, self._gradients, self._replay, self._inputs = (), {}, None, []

    def _take_gradients(self) -> dict[nn.Parameter, Tensor]:
        """Takes the gradients away from the parameters, and returns them."""
        found = {parameter: parameter.grad for parameter in self._parameters if parameter.grad is not None}
        for parameter in self._parameters:
            parameter.grad = None
        return found

    @torch.no_grad()
    def _add(self, gradients: Mapping[nn.Parameter, Tensor]) -> None:
        """Adds gradients to those of the parameters."""
        sums = [parameter.grad for parameter in gradients if parameter.grad is not None]
        added = [gradient for parameter, gradient in gradients.items() if parameter.grad is not None]
        for parameter, gradient in gradients.items():
            if parameter.grad is None:
                parameter.grad = gradient
        if sums:
            cast(Any, torch)._foreach_add_(sums, added)


def _layout(tensor: Tensor) -> object:
    return tensor.shape, tensor.dtype, tensor.stride()


def _finite(tensor: Tensor) -> Tensor:
    """Converts to double precision, with zeros for values that are not finite, such as after too large a loss scale."""
    return tensor.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether all tensors agree, except for another order of sums, which attention on a GPU may take."""
    pairs = [tuple(map(_finite, pair)) for pair in zip(found, expected, strict=True)]
    difference = sum((one - other).square().sum() for one, other in pairs)
    return bool(difference <= _TOLERANCE**2 * sum(other.square().sum() for _, other in pairs))
