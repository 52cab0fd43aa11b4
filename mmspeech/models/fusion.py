"""Several streams of frames -> one."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class Fusion(nn.Module):
    """Join the modalities of each frame into one vector; absent and dropped ones count as zero vectors.

    `concat` lays the M vectors side by side and projects them to D (u-HuBERT Sec. 4.1, VATLM Sec. III-B);
    `sum` adds them (AV-data2vec Eq. 1, which has no norm; ours stays, as in the public code's `add`).
    """

    def __init__(self, modalities: Sequence[str], dim: int, how: Literal["concat", "sum"]) -> None:
        super().__init__()
        self.modalities, self.how = tuple(modalities), how
        width = dim * len(self.modalities) if how == "concat" else dim
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, dim) if how == "concat" else nn.Identity()

    def forward(self, feats: dict[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse what the front-ends produced.

        Args:
            feats: modality -> (N, T, D).
            present: (N, M) bool, columns in the order of `self.modalities`.

        Returns:
            The fused frames (N, T, D), and what stood before the norm: (N, T, M * D) or (N, T, D).
        """
        x = torch.stack([feats[m] for m in self.modalities], dim=2)  # (N, T, M, D)
        # Filled rather than multiplied: 0 * nan is nan, and a dropped stream must not reach the encoder.
        x = x.masked_fill(~present[:, None, :, None], 0.0)
        x = x.flatten(2) if self.how == "concat" else x.sum(dim=2)
        return self.project(self.norm(x)), x
