"""Sequences of different length laid one behind the other, so that no product is spent on padding.

    items (N, S) padded -> rows (R, D): gap, item 0, gap, item 1, ..., gap

The gaps are as wide as a convolution reaches, so that one convolution over all rows sees zeros beyond each item's ends.
Only attention goes back to the padded form: `rows` leads there, `places` leads back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where everything lies; made on the host, used on the device."""

    lengths: Tensor  # (N,) int64 on the host
    rows: Tensor  # (N, S) int64: the row of each element; padding: row 0, which lies in a gap
    places: Tensor  # (R,) int64: the place of each row in the flattened (N, S); gaps: 0
    positions: Tensor  # (R,) int64: the row's number within its item; gaps: 0
    gaps: Tensor  # (R, 1) bool: True where no element lies
    real: Tensor  # (F,) int64: the rows that hold an element, item after item
    attend: Tensor  # (N, 1, 1, S) bool: True for keys that may be seen; at least one each: of none comes nan

    @classmethod
    def of(cls, lengths: Tensor, reach: int, device: torch.device) -> "Packing":
        """Lay out items of `lengths` (N,) int64 on the host, with gaps of `reach` rows, at least one."""
        gap, size = max(reach, 1), int(lengths.max())
        steps = torch.arange(size)
        valid = steps < lengths[:, None]  # (N, S)
        starts = gap + torch.cumsum(lengths + gap, 0) - (lengths + gap)
        rows = (starts[:, None] + steps) * valid
        real = rows[valid]  # (F,)
        total = gap + int((lengths + gap).sum())
        places, positions = torch.zeros(2, total, dtype=torch.int64)
        places[real] = valid.flatten().nonzero().squeeze(1)
        positions[real] = steps.expand(len(lengths), -1)[valid]
        gaps = torch.ones(total, 1, dtype=torch.bool)
        gaps[real] = False
        attend = (steps < lengths.clamp(min=1)[:, None])[:, None, None]
        moved = (one.to(device, non_blocking=True) for one in (rows, places, positions, gaps, real, attend))
        return cls(lengths, *moved)

    def pad(self, x: Tensor) -> Tensor:
        """(R, ...) -> (N, S, ...); padding holds what lies in row 0."""
        return x.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)

    def pack(self, x: Tensor) -> Tensor:
        """(N, S, ...) -> (R, ...); gaps hold anything."""
        return x.flatten(0, 1).index_select(0, self.places)
