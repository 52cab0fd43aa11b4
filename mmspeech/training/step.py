"""One optimizer step over a group of batches: the same update on one rank and on sixty-four, whole or accumulated.

draw (host) -> divisors summed over ranks (host) -> forward, backward per batch -> exchange -> clip -> step
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from mmspeech import dist
from mmspeech.batch import Batch
from mmspeech.training import parallel

Group = Sequence[tuple[str, Batch]]  # (name of an objective, its batch): what one rank sees in one update


@dataclass
class Agreement:
    """What all ranks know of an update before its first forward pass, on the host."""

    counts: dict[str, float]  # part of the loss -> its divisor over all ranks and batches
    frames: float  # of all ranks
    most_batches: int  # of any rank
    stop: bool  # some rank was asked to end


@dataclass
class Outcome:
    """What to log of an update, as tensors on the device: the caller decides when to wait for them."""

    losses: Tensor  # (batches of this rank,) this rank's shares of the update's loss, weighted
    parts: dict[str, Tensor]  # part -> this rank's share of the part's mean
    logs: dict[str, tuple[Tensor, Tensor]]  # name -> (sum, count) of this rank
    grad_norm: Tensor  # ()
    skipped: Tensor  # () 1.0 if a gradient or a loss was not finite; the same on all ranks


def part_name(model: nn.Module, objective: str, part: str) -> str:
    """The part's name in logs and divisors; several objectives keep theirs apart."""
    return f"{objective}/{part}" if _is_several(model) else part


def agree(model: nn.Module, group: Group, *, stop: bool = False) -> Agreement:
    """Sum over all ranks what the step must know. A part that a rank does not name counts 0 there."""
    counts: dict[str, float] = defaultdict(float)
    working = [(name, batch) for name, batch in group if not batch.idle]
    for name, batch in working:
        for part, count in batch.counts.items():
            counts[part_name(model, name, part)] += float(count)
    frames = sum(int(batch.frames.sum()) for _, batch in working)
    total: dict[str, float] = defaultdict(float)
    everyone = dist.gather_on_host((dict(counts), frames, len(group), stop))
    for theirs, *_ in everyone:
        for part, count in theirs.items():
            total[part] += count
    return Agreement(
        counts=dict(total),
        frames=sum(their_frames for _, their_frames, _, _ in everyone),
        most_batches=max(length for _, _, length, _ in everyone),
        stop=any(their_stop for *_, their_stop in everyone),
    )


def train_step(
    model: nn.Module,
    group: Group,
    counts: dict[str, float],
    optimizer: Optimizer,
    *,
    update: int,
    clip_norm: float | None,
    precision: Literal["fp32", "bf16"] = "fp32",
    most_batches: int | None = None,
) -> Outcome:
    """Forward, backward and one optimizer step; nothing waits for the device.

    Args:
        model: what `parallel.wrap` gave; called as model(name, batch, update), returns a Loss of sums.
        group: drawn batches on the device, at least one.
        counts: the divisors of all ranks, from `agree`.
        update: number of updates finished before this one.
        most_batches: of any rank; sharded modules repeat the last batch, without weight, until all ranks have as many.
    """
    device = group[0][1].device
    batches = [(name, batch, 0.0 if batch.idle else 1.0) for name, batch in group]
    if most_batches is not None and isinstance(model, parallel.FSDPModule):
        batches += [(*group[-1], 0.0)] * (most_batches - len(group))
    losses: list[Tensor] = []
    # Also parts that only other ranks have, so that all ranks log the same names.
    parts = {part: torch.zeros((), device=device) for part, count in counts.items() if count > 0}
    logs: dict[str, tuple[Tensor, Tensor]] = {}
    for i, (name, batch, weight_of_batch) in enumerate(batches, start=1):
        with parallel.gradient_sync(model, enabled=i == len(batches)):
            parallel.agree_on_host_draws(model, update, i)
            with parallel.autocast(device, precision):
                loss = model(name, batch, update)
            # A part that nobody has in this update counts 0, and 0 / 0 would poison every gradient.
            shares = {
                part: total / max(counts.get(part_name(model, name, part), 0), 1)
                for part, (total, _) in loss.parts.items()
            }
            mean = sum(weight * shares[part] for part, (_, weight) in loss.parts.items()) * weight_of_batch
            # Times world size, because data parallelism averages gradients over ranks and these are shares of a mean.
            # 0 * mean makes every gradient nan where the loss is, so that all ranks come to know it.
            (mean * (dist.world_size() + 0.0 * mean.detach())).backward()
        if i <= len(group):
            losses.append(mean.detach())
        if weight_of_batch:
            for part, share in shares.items():
                if (part := part_name(model, name, part)) in parts:
                    parts[part] += share.detach()
            add_logs(logs, loss.logs, device)
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = get_total_norm(grads)
    if clip_norm is not None:
        clip_grads_with_norm_([p for p in model.parameters() if p.grad is not None], clip_norm, norm)
    norm = parallel.full(norm)
    skipped = (~torch.isfinite(norm)).float()
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # fused optimizers then skip the step on the device
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Outcome(torch.stack(losses), parts, logs, norm, skipped)


def add_logs(
    total: dict[str, tuple[Tensor, Tensor]], more: dict[str, tuple[Tensor, Tensor | float]], device: torch.device
) -> None:
    """Add (sum, count) pairs by name, on the device."""
    zero = torch.zeros((), device=device, dtype=torch.float64)
    for name, (value, count) in more.items():
        value_so_far, count_so_far = total.get(name, (zero, zero))
        total[name] = (value_so_far + value.detach(), count_so_far + count)


def refuse_split(model: parallel.Dispatch, names: Iterable[str]) -> str | None:
    """The name of an objective whose loss couples items and that has more than one batch here, if there is one."""
    names = list(names)
    split = (name for name in names if getattr(model.named(name), "couples_items", False) and names.count(name) > 1)
    return next(split, None)


def _is_several(model: nn.Module) -> bool:
    dispatch = getattr(model, "module", model)  # DDP's
    return isinstance(dispatch.objective, nn.ModuleDict)
