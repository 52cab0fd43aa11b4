"""Validation: every part of the loss and every figure as one mean over all batches of all ranks."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mmspeech import dist
from mmspeech.batch import Batch
from mmspeech.errors import UserError
from mmspeech.training import parallel
from mmspeech.training.step import add_logs, part_name


@dataclass
class Best:
    """The best validation so far."""

    select: str  # name of the figure: small losses are good, and large ones of all others
    value: float | None = None
    update: int | None = None

    def better(self, figures: dict[str, float], update: int) -> bool:
        """Note the figure if it is the best so far."""
        if not figures:
            raise UserError("validation: none of its items could be used; the reasons are above: mend them")
        if self.select not in figures:
            raise UserError(f"training.select: no validation figure `{self.select}`; there are {', '.join(figures)}")
        value = figures[self.select]
        small = self.select == "loss" or self.select.startswith("loss/")
        if not math.isfinite(value):  # a first one would never be beaten
            return False
        if self.value is not None and not (value < self.value if small else value > self.value):
            return False
        self.value, self.update = value, update
        return True


@torch.no_grad()
def validate(
    model: parallel.Dispatch,
    batches: Iterable[tuple[str, Batch]],
    *,
    update: int,
    device: torch.device,
    precision: Literal["fp32", "bf16"],
) -> dict[str, float]:
    """Figures by name: "loss" (weighted), "loss/PART", and each log of the objective as a ratio.

    The model is in evaluation mode meanwhile. Draws are those of update 0 at every validation, so that figures of
    different times compare (an objective in evaluation mode may put a later one in its place).

    Args:
        model: without DDP around it; FSDP2's sharded modules run in step on all ranks.
        batches: (name of the objective, batch) pairs of this rank.
    """
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    counts: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = {}
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    pairs = ((pair, True) for pair in batches) if not isinstance(model, FSDPModule) else parallel.in_step(batches)
    for (name, batch), counted in pairs:
        batch = model.named(name).draw(batch, 0).to(device)
        with parallel.autocast(device, precision):
            loss = model(name, batch, update)
        if not counted:
            continue
        parts = {part_name(model, name, part): value for part, value in loss.parts.items()}
        for part, count in batch.counts.items():
            counts[part_name(model, name, part)] += count
        weights |= {part: weight for part, (_, weight) in parts.items()}
        add_logs(sums, {f"loss/{part}": (total, 0.0) for part, (total, _) in parts.items()} | loss.logs, device)
    for module in was_training:
        module.training = True
    return means(sums, counts, weights)


def means(
    sums: dict[str, tuple[Tensor, Tensor]], counts: dict[str, float], weights: dict[str, float]
) -> dict[str, float]:
    """Ratios of sums over all ranks; the divisor of "loss/PART" is counts[PART], that of other names their own."""
    names = sorted(sums)
    pairs = torch.stack([torch.stack(sums[name]) for name in names]).tolist() if names else []  # one wait for all
    mine = {f"sum {name}": value for name, (value, _) in zip(names, pairs, strict=True)}
    mine |= {f"count {name}": count for name, (_, count) in zip(names, pairs, strict=True)}
    mine |= {f"count loss/{part}": count for part, count in counts.items()}
    for theirs in dist.gather_on_host(weights):  # a rank may have had no batch with a part
        weights = theirs | weights
    total = dist.sum_over_ranks_on_host(mine)
    everyone = [key.removeprefix("sum ") for key in total if key.startswith("sum ")]
    figures = {
        name: total[f"sum {name}"] / total[f"count {name}"]
        for name in sorted(everyone, key=lambda name: (name != "loss", name))
        if total[f"count {name}"] > 0
    }
    loss = sum(weight * figures[f"loss/{part}"] for part, weight in weights.items() if f"loss/{part}" in figures)
    return {"loss": loss, **figures} if weights else figures
