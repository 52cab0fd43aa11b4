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

    An item that has all the streams named in `shares` keeps a subset as often as the table says. One that lacks some
    keeps what is left of a subset, as often as the table says given that something is left: a table over sound and
    lips leaves sound alone as it is, one over three streams drops from pairs too, and no item is ever left without a
    stream. Streams that the table does not name are always kept.

    Args:
        shares: subset, names joined by `+` -> probability; empty: everything is kept.
        update: given, one draw serves the whole batch (as in the public AV-HuBERT); else each item has its own.

    Returns:
        Stream -> (N,) bool.
    """
    have = {name: (lengths > 0).numpy() for name, lengths in batch.lengths.items()}
    have = {name: own & batch.present[name].numpy() if name in batch.present else own for name, own in have.items()}
    subsets = [frozenset(subset.split("+")) for subset in shares]
    named = sorted(frozenset().union(*subsets) & have.keys())
    if not named:
        return {name: torch.from_numpy(own.copy()) for name, own in have.items()}
    if update is None:
        items = zip(batch.passes, batch.ids, strict=True)
        keys = [seeds.stable_hash(seed, "modality", number, item) for number, item in items]
    else:
        keys = [seeds.stable_hash(seed, "modality", update)] * len(batch)
    own = np.stack([have[name] for name in named], axis=1)  # (N, M)
    kept = np.array([[name in subset for name in named] for subset in subsets])  # (S, M)
    leaves = (own.astype(int) @ kept.T.astype(int) > 0) * np.array(list(shares.values()))  # (N, S) shares, 0: nothing
    thresholds = np.cumsum(leaves, axis=1)
    total = thresholds[:, -1:]
    point = np.minimum(seeds.uniforms(keys, 1) * total, np.nextafter(total, 0.0))  # (N, 1), below the total
    drawn = (point >= thresholds).sum(axis=1)  # (N,)
    # Of some no subset leaves anything: lips alone, under a table that knows sound alone. They keep what they have.
    left = np.where(total > 0, own & kept[np.minimum(drawn, len(subsets) - 1)], own)  # (N, M)
    return {name: torch.from_numpy(left[:, named.index(name)] if name in named else have[name].copy()) for name in have}
