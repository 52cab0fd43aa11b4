"""Positions for sequences of any length."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionalConv(nn.Module):
    """Relative positions by a wide grouped convolution over time, to be added to its input.

    Weight norm has one gain per tap of the kernel, the norm running over output and input channels, as in wav2vec 2.0
    and the models built on it. An even kernel leaves one frame too many at the end, which is dropped.
    """

    def __init__(self, dim: int, kernel: int = 128, groups: int = 16) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.direction = nn.Parameter(torch.empty(dim, dim // groups, kernel))
        self.gain = nn.Parameter(torch.empty(1, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.direction, std=math.sqrt(4 / (kernel * dim)))
        with torch.no_grad():
            self.gain.copy_(self.direction.norm(dim=(0, 1), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D). Padded frames must be zero; those of the output are the convolution's tail."""
        weight = torch._weight_norm(self.direction, self.gain, 2)
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=self.kernel // 2, groups=self.groups)  # (N, D, T')
        return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)


def sinusoids(first: int, size: int, dim: int, device: torch.device) -> Tensor:
    """(size, dim) float32: [sin | cos] of positions first, first + 1, ... with the public model's frequencies.

    Its first token has position 2, and the frequencies reach 1/10000 exactly: D/2 - 1 steps, not D/2.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=device) * (-math.log(10000) / max(half - 1, 1)))
    angles = torch.arange(first, first + size, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
