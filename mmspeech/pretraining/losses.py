"""Losses that two systems share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_unit_loss(
    hidden: Tensor, codebook: Tensor, units: Tensor, *, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of cosine logits against hidden units.

    p(k | frame) = softmax_k(cos(hidden, codebook_k) / temperature): HuBERT Eq. 3, shared by u-HuBERT and VATLM.

    Args:
        hidden: (P, D) projected encoder output of the P frames that are predicted.
        codebook: (K, D) learned embedding of each unit.
        units: (P,) int64 in [0, K).

    Returns:
        The loss of each frame (P,) and whether the likeliest unit was right (P,) bool. Memory is P * K, never times D.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # else the product would be taken in bf16
        logits = F.normalize(hidden.float(), dim=-1) @ F.normalize(codebook.float(), dim=-1).T / temperature  # (P, K)
        losses = F.cross_entropy(logits, units, reduction="none")
    return losses, logits.detach().argmax(-1) == units
