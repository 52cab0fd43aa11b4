"""Modality dropout: which streams of which item are kept, drawn on the host."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

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


def check_named(shares: Mapping[str, object], modalities: Collection[str], key: str) -> None:
    """Raise UserError if the table names a stream that the encoder does not have: it would never be dropped."""
    named = {name for subset in shares for name in subset.split("+")}
    if unknown := sorted(named - set(modalities)):
        raise UserError(f"{key}: stream `{unknown[0]}`, but the encoder knows {', '.join(modalities)}; mend it")


@dataclass(frozen=True, kw_only=True)
class ModalitySchedule:
    """Which streams an item keeps, by probabilities that change with the updates (AV-data2vec, Sec. 3.2).

    Each goes linearly from its first value to its second over `anneal_updates` and stays there. What is drawn when not
    all streams are kept is conditional, so the shares of single streams change quadratically.
    """

    all: tuple[float, float]  # p_AV: of keeping all streams
    otherwise: dict[str, tuple[float, float]]  # p_{V|not AV}, p_{A|not AV}: subset, given that not all are kept
    anneal_updates: int = 150_000

    def __post_init__(self) -> None:
        if not 0 <= min(self.all) <= max(self.all) <= 1:
            raise UserError(f"all: {list(self.all)}; expected probabilities from 0 to 1")
        if self.anneal_updates < 1:
            raise UserError(f"anneal_updates: {self.anneal_updates}; expected 1 or more")
        if not self.otherwise:
            raise UserError("otherwise: names no stream; say what is kept when not all are, {audio: [1, 1]}")
        for end in (0, 1):
            check_shares({subset: ends[end] for subset, ends in self.otherwise.items()}, "otherwise")

    def shares(self, update: int, everything: str) -> dict[str, float]:
        """Subset -> probability after so many finished updates; `everything`: all streams, as in `audio+video`."""
        together = self._at(self.all, update)
        found = {everything: together}
        for name, share in self.conditional(update).items():
            name = everything if set(name.split("+")) == set(everything.split("+")) else name
            found[name] = found.get(name, 0.0) + (1 - together) * share
        return found

    def ever_kept(self, everything: str) -> set[str]:
        """Streams that some item keeps at some time."""
        # Shares are products of lines: one that is 0 at both ends may yet be more between them.
        times = (0, self.anneal_updates // 2, self.anneal_updates)
        kept = [subset for update in times for subset, share in self.shares(update, everything).items() if share > 0]
        return {name for subset in kept for name in subset.split("+")}

    def conditional(self, update: int) -> dict[str, float]:
        """Subset -> its probability, given that not all streams are kept."""
        return {name: self._at(ends, update) for name, ends in self.otherwise.items()}

    def _at(self, ends: tuple[float, float], update: int) -> float:
        return ends[0] + min(update / self.anneal_updates, 1.0) * (ends[1] - ends[0])


def draw_presence(
    batch: Batch, shares: Mapping[str, float], seed: int, update: int | None = None, purpose: str = "modality"
) -> dict[str, Tensor]:
    """Draw the subset of streams that each item keeps (u-HuBERT Sec. 3.2).

    An item that has all the streams named in `shares` keeps a subset as often as the table says. One that lacks some
    keeps what is left of a subset, as often as the table says given that something is left: a table over sound and
    lips leaves sound alone as it is, one over three streams drops from pairs too, and no item is ever left without a
    stream. Streams that the table does not name are always kept.

    Args:
        shares: subset, names joined by `+` -> probability; empty: everything is kept.
        update: given, one draw serves the whole batch (as in the public AV-HuBERT); else each item has its own.
        purpose: draws of another purpose are independent.

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
        keys = seeds.item_keys(seed, purpose, batch.passes, batch.ids)
    else:
        keys = [seeds.stable_hash(seed, purpose, update)] * len(batch)
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
