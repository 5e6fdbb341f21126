"""Several processes on one machine that learn together: each takes its share of every batch, gradients are averaged.

On CPUs two processes of one thread each do 1.4 times the work of one process of two threads: a small network's layers
are too short to be shared out one by one.
"""

# PyTorch gives its results as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from mdrt.errors import Cancelled, Error, InvalidArgumentError
from weights_tools.training.stage import Context
from weights_tools.training.stages import SHARED, run_stage

# A worker that waits longer for the others is told that they are gone; writing a checkpoint takes seconds.
_PATIENCE = timedelta(minutes=10)


def count() -> int:
    """How many processes learn together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0; the first one writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(batch_size: int) -> int:
    """How many samples of a batch are this process's.

    Raises:
        InvalidArgumentError: the batch cannot be shared equally.
    """
    if batch_size % count():
        raise InvalidArgumentError(f"{count()} processes cannot share a batch of {batch_size} equally")
    return batch_size // count()


def sum_over(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors, in place, by their sums over all processes.

    Raises:
        Cancelled: another process ended.
    """
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    try:
        distributed.all_reduce(flat)
    except RuntimeError as error:
        raise Cancelled(f"another process of this training has ended: {error}") from error
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces the gradients by their means over all processes."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sum_over(gradients)
    if count() > 1:
        torch._foreach_div_(gradients, count())


def descend(module: nn.Module, optimizers: Iterable[torch.optim.Optimizer], loss: Tensor, clip_norm: float) -> None:
    """One update of a network."""
    module.zero_grad()
    loss.backward()
    average_gradients(module.parameters())
    torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    for optimizer in optimizers:
        optimizer.step()


def agree(figures: Mapping[str, Tensor | float], is_ending: bool) -> tuple[Mapping[str, Tensor | float], bool]:
    """The mean of each figure over all processes, and whether any of them wants to end."""
    if count() == 1:
        return figures, is_ending
    values = torch.tensor([*map(float, figures.values()), float(is_ending)], dtype=torch.float64)
    sum_over([values])
    *means, ending = (values / count()).tolist()
    return dict(zip(figures, means, strict=True)), ending > 0


@contextmanager
def together(processes: int, context: Context) -> Iterator[None]:
    """Starts the other processes of a stage and joins them; this one is the first.

    Raises:
        InvalidArgumentError: there are none, or an accelerator is to be shared, or a stage without batches.
    """
    if context.stage not in SHARED:
        raise InvalidArgumentError(f"the stage {context.stage} takes one process; others: {', '.join(SHARED)}")
    if processes < 1 or context.device != "cpu":
        raise InvalidArgumentError(
            f"{processes} processes cannot learn on {context.device}; more than one needs the cpu"
        )
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder, "meeting")
        start = multiprocessing.get_context("spawn")
        others = [
            start.Process(target=_other, args=(meeting, number, processes, replace(context, say=_silent)), daemon=True)
            for number in range(1, processes)
        ]
        for other in others:
            other.start()
        _meet(meeting, 0, processes)
        try:
            yield
        finally:
            distributed.destroy_process_group()
            for other in others:
                other.join()


def _meet(meeting: Path, number: int, processes: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=number, world_size=processes, timeout=_PATIENCE
    )


def _other(meeting: Path, number: int, processes: int, context: Context) -> None:
    _meet(meeting, number, processes)
    with suppress(Error):  # which the first process meets too, and tells
        run_stage(context)


def _silent(text: str) -> None:
    del text
