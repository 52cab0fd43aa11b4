"""ResNet-18 for grey frames, with a stem that looks at five of them: the lip reader's front-end.

Frames come packed, (F, ...), real ones only: padding costs nothing and batch norm never counts it.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["prelu", "relu"]


def activate(name: Activation, channels: int) -> nn.Module:
    """PReLU with a slope per channel, as in the published models; or ReLU, in half of the front-end's time on CPUs."""
    return nn.PReLU(channels) if name == "prelu" else nn.ReLU(inplace=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, with an activation after each."""

    def __init__(self, in_channels: int, channels: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = activate(activation, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = activate(activation, channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(F, C, H, W) -> (F, C', H', W')."""
        y = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(y)) + self.shortcut(x))


class LipResNet(nn.Module):
    """Stem over five frames, four stages, mean over space."""

    def __init__(
        self,
        stem: int = 64,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: int = 2,
        activation: Activation = "prelu",
    ) -> None:
        super().__init__()
        # The 5x7x7 convolution of the published model, with its five frames as channels of a 2-D one: the same
        # numbers, but frames can be packed before it, and 2-D kernels are faster on CPUs.
        self.stem = nn.Conv2d(5, stem, 7, 2, 3, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.stem_relu = activate(activation, stem)
        inputs = [stem, *widths[:-1]]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        BasicBlock(before if i == 0 else width, width, 2 if i == 0 and stage > 0 else 1, activation)
                        for i in range(blocks)
                    )
                )
                for stage, (before, width) in enumerate(zip(inputs, widths, strict=True))
            )
        )
        self.dim = widths[-1]
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, frames: Tensor) -> Tensor:
        """(F, 5, H, W) frames with their two neighbours on each side -> (F, widths[-1])."""
        # Channels last: measured twice as fast on CPUs for small widths, and what tensor cores want.
        frames = frames.contiguous(memory_format=torch.channels_last)
        x = self.stem_relu(self.stem_norm(self.stem(frames)))
        x = F.max_pool2d(x, 3, 2, 1)
        return self.stages(x).mean(dim=(2, 3))
