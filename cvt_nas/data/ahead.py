"""Batches that a GPU makes beside the step on the batch before."""

import functools
import itertools
from collections.abc import Iterator

import torch

from cvt_nas.data.images import Batch


def made_beside_steps(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, which a GPU makes on a stream of its own; on a CPU, `batches` itself.

    Whoever asks for a batch has launched the step on the one before, and most of that is still to be computed. What
    makes the batch is launched then, and runs beside the step. The host does all in the same order as without a second
    stream, so it draws the same, and it waits for nothing.

    Two batches are in memory at a time. The second has its place from the first step on, so that whoever measures the
    memory of that step counts it.

    Args:
        batches: Each is made on `device` when it is asked for.

    Yields:
        Batches that may be used until the next one is asked for.
    """
    return batches if device.type == "cpu" else _on_a_stream_of_their_own(batches, device)


def _on_a_stream_of_their_own(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    beside = _stream_beside(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    place_of_second = list[torch.Tensor]()
    for number in itertools.count():
        steps = torch.cuda.current_stream(device)
        launched = steps.record_event()  # the step on the last batch, and all before
        place_of_second.clear()
        with torch.cuda.stream(beside):
            batch = next(batches, None)
            if batch is None:
                return
            if number == 0:
                place_of_second.extend(torch.empty_like(tensor) for tensor in batch)
        steps.wait_stream(beside)
        # The caller now lets go of the last batch, whose memory the next one takes once the step on it is done. With
        # `record_stream`, memory is free once the host learns that: a host that replays steps is many of them ahead,
        # and as many batches would be kept.
        beside.wait_event(launched)
        yield batch


@functools.cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs, since torch gives memory that was used on a stream to that stream alone."""
    return torch.cuda.Stream(device)
