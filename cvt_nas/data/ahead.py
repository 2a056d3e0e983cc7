"""Preparation of the next batch on a GPU while the current step runs."""

import functools
import itertools
from collections.abc import Iterator

import torch

from cvt_nas.data.images import Batch


def made_beside_steps(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the same batches, prepared on a CUDA stream of their own. On a CPU, returns `batches` itself.

    When the caller asks for a batch, it has launched the step on the previous one, and the GPU is still busy with it.
    The kernels that prepare the new batch are launched at that point and run beside the step. The host works in the
    same order as with one stream, so random draws are the same, and it never waits.

    Two batches are in memory at a time. Space for the second one is reserved before the first step, so that memory
    measurements of that step include it.

    Args:
        batches: Each batch is prepared on `device` when it is asked for.

    Yields:
        Batches. Each one may be used until the next one is asked for.
    """
    return batches if device.type == "cpu" else _on_a_stream_of_their_own(batches, device)


def _on_a_stream_of_their_own(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    beside = _stream_beside(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    place_of_second = list[torch.Tensor]()
    for number in itertools.count():
        steps = torch.cuda.current_stream(device)
        launched = steps.record_event()  # the step on the last batch and all earlier work
        place_of_second.clear()
        with torch.cuda.stream(beside):
            batch = next(batches, None)
            if batch is None:
                return
            if number == 0:
                place_of_second.extend(torch.empty_like(tensor) for tensor in batch)
        steps.wait_stream(beside)
        # The caller now releases the last batch. The next batch reuses its memory once the step on it is done.
        # `record_stream` would free the memory only once the host learns of that. A host that replays steps is many
        # steps ahead, so many batches would stay in memory.
        beside.wait_event(launched)
        yield batch


@functools.cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """The stream is shared by all epochs, since torch reuses the memory of a stream only on that stream."""
    return torch.cuda.Stream(device)
