"""Losses that two systems share."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmspeech.batch import valid_frames
from mmspeech.errors import UserError

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


def losses_at(
    places: Mapping[str, Tensor],
    frames: Tensor,
    units: Tensor,
    project: nn.Module,
    codebook: Tensor,
    temperature: float,
) -> dict[str, tuple[Tensor, Tensor]]:
    """`masked_unit_loss` of several parts at once: one product for all frames that are predicted, none for the others.

    Args:
        places: part -> (P,) int64 places in the flattened (N, T).
        frames: (N, T, D) encoder output.
        units: (N, T) int64.
        project: D -> width of the codebook.
        codebook: (K, D') learned embedding of each unit.

    Returns:
        Part -> the loss of each of its frames (P,), and whether the likeliest unit was right (P,) bool.
    """
    together = torch.cat(list(places.values()))
    hidden = project(frames.flatten(0, 1).index_select(0, together))
    losses, right = masked_unit_loss(
        hidden, codebook, units.flatten().index_select(0, together), temperature=temperature
    )
    counts = [len(one) for one in places.values()]
    return dict(zip(places, zip(losses.split(counts), right.split(counts), strict=True), strict=True))


def feature_power(features: Tensor, lengths: Tensor) -> Tensor:
    """The feature penalty: the sum over real frames of mean squares of (N, T, C); `lengths` (N,) on the device."""
    power = features.float().square().mean(-1)  # (N, T)
    return power.masked_fill(~valid_frames(lengths, power.shape[1]), 0.0).sum()


def check_units(units: Tensor, num_units: int) -> None:
    """Raise UserError if a unit of (N, T) int64, on the host, is none of the codebook's."""
    if (highest := int(units.max())) >= num_units:
        raise UserError(
            f"objective.num_units: {num_units}, but the cuts have a unit {highest}; set it to the size of the codebook "
            "that they were labelled with"
        )
