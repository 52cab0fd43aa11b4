"""Modality dropout: which streams of which item are kept, drawn on the host."""

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from mmspeech import seeds
from mmspeech.batch import Batch
from mmspeech.errors import UserError


def check_shares(shares: Mapping[str, float], key: str) -> None:
    """Raise UserError unless the shares of a table like `{audio+video: 0.5, audio: 0.5}` add up to 1."""
    total = sum(shares.values())
    if shares and (not math.isclose(total, 1.0, abs_tol=1e-6) or min(shares.values()) < 0):
        raise UserError(f"{key}: the shares must be positive and add up to 1, not {total:g}; change one")


def check_named(shares: Mapping[str, float], modalities: Collection[str], key: str) -> None:
    """Raise UserError if the table names a stream that the encoder does not have: it would never be dropped."""
    named = {name for subset in shares for name in subset.split("+")}
    if unknown := sorted(named - set(modalities)):
        raise UserError(f"{key}: stream `{unknown[0]}`, but the encoder knows {', '.join(modalities)}; mend it")


def draw_presence(batch: Batch, shares: Mapping[str, float], seed: int, update: int | None = None) -> dict[str, Tensor]:
    """Draw the subset of streams that each item keeps (u-HuBERT Sec. 3.2).

    An item that has all the streams named in `shares` keeps the drawn subset; one that has fewer keeps all it has, so
    no item is ever left without a stream, and a table over audio and lips leaves audio-only clips alone.

    Args:
        shares: subset, names joined by `+` -> probability; empty: everything is kept.
        update: given, one draw serves the whole batch (as in the public AV-HuBERT); else each item has its own.

    Returns:
        Stream -> (N,) bool.
    """
    have = {name: (lengths > 0).numpy() for name, lengths in batch.lengths.items()}
    have = {name: own & batch.present[name].numpy() if name in batch.present else own for name, own in have.items()}
    subsets = [frozenset(subset.split("+")) for subset in shares]
    named = frozenset().union(*subsets)
    if not named or not named <= have.keys():
        return {name: torch.from_numpy(own.copy()) for name, own in have.items()}
    if update is None:
        items = zip(batch.passes, batch.ids, strict=True)
        keys = [seeds.stable_hash(seed, "modality", number, item) for number, item in items]
    else:
        keys = [seeds.stable_hash(seed, "modality", update)] * len(batch)
    thresholds = np.cumsum(list(shares.values()))
    drawn = np.minimum(np.searchsorted(thresholds, seeds.uniforms(keys, 1)[:, 0], side="right"), len(subsets) - 1)
    complete = np.logical_and.reduce([have[name] for name in named])  # (N,)
    kept = {}
    for name, own in have.items():
        in_subset = np.array([name in subset or name not in named for subset in subsets])
        kept[name] = torch.from_numpy(own & (~complete | in_subset[drawn]))
    return kept
