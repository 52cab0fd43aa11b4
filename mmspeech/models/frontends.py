"""One front-end per kind of stream: (n, T, ...) as the reader gives it -> (n, T, D) features at 25 Hz.

A new modality costs a class here (often none: `linear` takes any vectors), one line in FRONTENDS, a reader in
`data/`, and lines of YAML. `item_shape` and `item_dtype` say what a frame is as the reader gives it, `item_limit`
how many whole numbers there are, from 0.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmspeech import config as configs
from mmspeech.batch import STACK, valid_frames
from mmspeech.blocks.resnet import Activation, LipResNet
from mmspeech.errors import UserError

LIP_MEAN, LIP_STD = 0.421, 0.165  # of grey mouth regions in [0, 1], as the published models expect


class LinearFrontend(nn.Module):
    """Vectors -> features by one linear layer: audio (104 log-mel values), or any stream of C channels."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.item_shape, self.item_dtype = (size,), torch.float32
        self.project = nn.Linear(size, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(n, T, size) -> (n, T, D); `lengths` (n,) is not looked at."""
        return self.project(x)


class LipFrontend(nn.Module):
    """Grey mouth regions -> features: a stem over five frames and ResNet-18 (AV-HuBERT's video encoder)."""

    def __init__(
        self,
        dim: int,
        crop: int = 88,
        stem: int = 64,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: int = 2,
        activation: Activation = "prelu",
    ) -> None:
        super().__init__()
        self.item_shape, self.item_dtype, self.item_limit = (crop, crop), torch.uint8, 256
        self.resnet = LipResNet(stem, widths, blocks, activation)
        self.project = nn.Linear(self.resnet.dim, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Encode clips.

        Args:
            x: (n, T, H, W) grey: uint8 as read, or float, already normalised. What stands in padding is ignored.
            lengths: (n,) int64 on the host.

        Returns:
            (n, T, D), zero in padding.
        """
        n, t, h, w = x.shape
        valid = torch.arange(t)[None, :] < lengths[:, None]  # (n, T), on the host: the number of frames is known
        places = valid.flatten().nonzero().squeeze(1).to(x.device, non_blocking=True)  # (F,)
        if x.dtype == torch.uint8:
            x = (x.to(self.project.weight.dtype) / 255 - LIP_MEAN) / LIP_STD
        # Zero is what the convolution's own padding holds, so padding changes nothing.
        x = x.masked_fill(~valid.to(x.device, non_blocking=True)[:, :, None, None], 0.0)
        x = nn.functional.pad(x, (0, 0, 0, 0, 2, 2))  # (n, T + 4, H, W)
        x = x.unfold(1, 5, 1).permute(0, 1, 4, 2, 3)  # (n, T, 5, H, W): each frame with two neighbours on each side
        packed = x.reshape(n * t, 5, h, w) if places.numel() == n * t else x.flatten(0, 1)[places]  # (F, 5, H, W)
        features = self.project(self.resnet(packed))  # (F, D)
        return features.new_zeros(n * t, features.shape[1]).index_copy(0, places, features).view(n, t, -1)


class PhoneFrontend(nn.Module):
    """Phone ids at 100 Hz, four per frame -> features: an embedding, two convolutions of stride 2 (public VATLM)."""

    def __init__(self, dim: int, size: int) -> None:
        """`size`: ids; also that of padding has a trained row."""
        super().__init__()
        self.item_shape, self.item_dtype, self.item_limit = (STACK,), torch.uint8, size
        self.embedding = nn.Embedding(size, dim)
        self.conv1 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(n, T, 4) whole numbers -> (n, T, D), zero behind `lengths` (n,), where a text ends before the sound."""
        embedded = self.embedding(x.long().flatten(1)).transpose(1, 2)  # (n, D, 4T)
        y = self.conv2(torch.relu(self.conv1(embedded))).transpose(1, 2)  # (n, T, D)
        return y.masked_fill(~valid_frames(lengths.to(y.device, non_blocking=True), y.shape[1])[:, :, None], 0.0)


class NoFrontend(nn.Module):
    """One that was removed: its stream counts as absent, zeros hold its place in the fusion (VATLM Sec. IV-C)."""

    item_shape, item_dtype = (1,), torch.float32

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(n, T, 1) -> (n, T, D) zeros."""
        return x.new_zeros(*x.shape[:2], self.dim)


FRONTENDS = {"linear": LinearFrontend, "lips": LipFrontend, "phones": PhoneFrontend, "none": NoFrontend}


def build_frontend(stream: str, dim: int, options: Mapping[str, object]) -> nn.Module:
    """The front-end that `options` describe: `{frontend: lips, crop: 88, ...}`.

    Raises UserError for an unknown front-end, or an option that it lacks or does not have.
    """
    given = dict(options)
    name = given.pop("frontend", None)
    if not isinstance(name, str) or name not in FRONTENDS:
        raise UserError(f"model.streams.{stream}.frontend is {name!r}; expected one of {', '.join(FRONTENDS)}")
    return FRONTENDS[name](dim, **configs.arguments(FRONTENDS[name], given, f"model.streams.{stream}", name, ["dim"]))
