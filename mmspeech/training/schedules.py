"""Learning rate schedules: one function each, from the number of finished updates to a factor of the peak rate.

The first step is taken with the factor of 0 finished updates, as in the public code: a warm-up from 0 begins at 0.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmspeech.training.trainer import TrainingConfig


def polynomial(update: int, *, warmup: int, updates: int) -> float:
    """Linear from 0 to 1 over `warmup` updates, then linear (power 1) to 0 at `updates`: AV-HuBERT pre-training."""
    if update < warmup:
        return update / warmup
    return max(0.0, (updates - update) / max(updates - warmup, 1))


def tri_stage(update: int, *, warmup: int, hold: int, decay: int, init_scale: float, final_scale: float) -> float:
    """Linear from `init_scale` to 1, hold, exponential decay to `final_scale`, which stays: AV-HuBERT fine-tuning."""
    if update < warmup:
        return init_scale + (1 - init_scale) * update / warmup
    if update < warmup + hold:
        return 1.0
    if update < warmup + hold + decay:
        return final_scale ** ((update - warmup - hold) / decay)
    return final_scale


def cosine(update: int, *, warmup: int, updates: int) -> float:
    """Linear from 0 to 1 over `warmup` updates, then half a cosine to 0 at `updates`."""
    if update < warmup:
        return update / warmup
    done = min(1.0, (update - warmup) / max(updates - warmup, 1))
    return 0.5 * (1 + math.cos(math.pi * done))


def constant(update: int, *, warmup: int) -> float:
    """Linear from 0 to 1 over `warmup` updates, then 1."""
    return min(1.0, update / warmup) if warmup else 1.0


SCHEDULES: dict[str, Callable[[int, "TrainingConfig"], float]] = {
    "polynomial": lambda update, c: polynomial(update, warmup=c.warmup_updates, updates=c.updates),
    "tri_stage": lambda update, c: tri_stage(
        update,
        warmup=c.warmup_updates,
        hold=c.hold_updates,
        decay=c.updates - c.warmup_updates - c.hold_updates if c.decay_updates is None else c.decay_updates,
        init_scale=c.init_lr_scale,
        final_scale=c.final_lr_scale,
    ),
    "cosine": lambda update, c: cosine(update, warmup=c.warmup_updates, updates=c.updates),
    "constant": lambda update, c: constant(update, warmup=c.warmup_updates),
}
