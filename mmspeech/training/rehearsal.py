"""The longest batches, tried before training: memory runs out in the first minute or never."""

import contextlib
import re
import resource
import sys
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from mmspeech.batch import Batch
from mmspeech.errors import UserError
from mmspeech.training import parallel, random_states


def rehearse(
    model: parallel.Dispatch,
    name: str,
    batch: Batch,
    optimizer: Optimizer,
    *,
    update: int,
    device: torch.device,
    precision: Literal["fp32", "bf16"],
) -> str:
    """Forward and backward on one batch, with all its streams, which leaves no trace; returns a line with the peak.

    Every rank calls it; ranks need not have batches of the same size.

    Args:
        update: one in which all is trained that ever is: frozen parts take less.
        model: without DDP around it, so that nothing is exchanged (FSDP2 exchanges: every rank takes part).

    Raises UserError when memory runs out.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    size = f"{len(batch)} items, {int(batch.frames.sum())} frames of {'+'.join(batch.streams)}"
    try:
        with _untouched(model):
            # Adam's two moments come with the first step: their room must be free too.
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p not in optimizer.state]
            moments = [torch.empty_like(parallel.local(p)) for p in parameters for _ in range(2)]
            parallel.agree_on_host_draws(model, "rehearsal")
            drawn = model.named(name).draw(batch, update)
            drawn.present = {stream: lengths > 0 for stream, lengths in drawn.lengths.items()}  # dropout takes none
            drawn = drawn.to(device)
            with parallel.autocast(device, precision):
                loss = model(name, drawn, update)
            sum(total for total, _ in loss.parts.values()).backward()
            del moments, drawn, loss
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not re.search("out of memory|can.t allocate memory|^$", str(error).lower()):
            raise
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"the longest batch ({size}) does not fit into memory ({reason}); lower data.max_batch_s or data.max_s"
        ) from error
    line = f"longest batch ({size}): peak memory {peak_gib(device):.2f} GiB"
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return line


def peak_gib(device: torch.device) -> float:
    """The most memory that the device has held so far; on the CPU, this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put back buffers (batch-norm statistics) and random states, and drop gradients, however the block ends."""
    states = random_states.get()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        random_states.put_back(states)
