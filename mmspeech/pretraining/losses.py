"""Losses that two systems share."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK_LOGITS = 2**24  # at most so many at a time (64 MiB in float32); a published batch has about 2**21


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
        The loss of each frame (P,) and whether the likeliest unit was right (P,) bool. Memory is P * K, never times D,
        and above BLOCK_LOGITS it stops growing: blocks of frames, whose logits are computed again for the gradient.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # else the product would be taken in bf16
        hidden, codebook = F.normalize(hidden.float(), dim=-1), F.normalize(codebook.float(), dim=-1)
        rows = max(1, BLOCK_LOGITS // len(codebook))
        if len(hidden) <= rows:
            return _unit_loss(hidden, codebook, units, temperature)
        blocks = [
            checkpoint(_unit_loss, some, codebook, theirs, temperature, use_reentrant=False, preserve_rng_state=False)
            for some, theirs in zip(hidden.split(rows), units.split(rows), strict=True)
        ]
    losses, right = zip(*blocks, strict=True)
    return torch.cat(losses), torch.cat(right)


def _unit_loss(hidden: Tensor, codebook: Tensor, units: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = hidden @ codebook.T / temperature  # (P, K)
    return F.cross_entropy(logits, units, reduction="none"), logits.detach().argmax(-1) == units
