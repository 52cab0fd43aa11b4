"""Optimizers and their parameter groups: `adam` as in the public AV-HuBERT code, and `adamw` as is usual today."""

import math
from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import AdamW, Optimizer


def adam(parameters: Sequence[nn.Parameter], weight_decay: float, eps: float) -> list[dict[str, object]]:
    """Adam with decoupled decay of *all* parameters, biases and norms too; eps beside the uncorrected second moment.

    The public step is lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps). torch divides sqrt(v) by
    sqrt(1 - b2^t) before it adds its eps: the same step, if torch is given eps / sqrt(1 - b2^t) (see `set_rates`).
    """
    return [{"params": list(parameters), "weight_decay": weight_decay, "public_eps": eps}]


def adamw(parameters: Sequence[nn.Parameter], weight_decay: float, eps: float) -> list[dict[str, object]]:
    """AdamW as torch has it: vectors and scalars (biases, norms) are not decayed."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "eps": eps},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "eps": eps},
    ]


OPTIMIZERS: dict[str, Callable[[Sequence[nn.Parameter], float, float], list[dict[str, object]]]] = {
    "adam": adam,
    "adamw": adamw,
}


def build(
    module: nn.Module, kind: str, *, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-6, weight_decay: float
) -> Optimizer:
    """An optimizer of the parameters that take gradients now; those frozen later stay in it, untouched meanwhile.

    It is fused on every device, and so can skip a step without the host (`found_inf`).
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [group for group in OPTIMIZERS[kind](parameters, weight_decay, eps) if group["params"]]
    return AdamW(groups, lr=0.0, betas=betas, fused=True)


def set_rates(optimizer: Optimizer, lr: float, update: int) -> None:
    """Set the learning rate of the step that follows `update` finished ones.

    For `adam` this also sets torch's eps to public_eps / sqrt(1 - b2^t). t counts the updates of the run: a parameter
    that thawed later has a smaller t of its own, a difference of eps alone that fades within 1 / (1 - b2) updates.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "public_eps" in group:
            group["eps"] = group["public_eps"] / math.sqrt(1 - group["betas"][1] ** (update + 1))
