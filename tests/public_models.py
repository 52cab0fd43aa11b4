"""The public implementation's stored inputs, as ours take them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STREAMS = {"a": ("audio",), "v": ("video",), "av": ("audio", "video")}


def reference(shared: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """A checkpoint in the public layout, with its pickled classes, and what it should give."""
    folder = shared / "reference" / ("vatlm" if name == "tiny_vatlm" else "avhubert")
    return folder / f"{name}.pt", torch.load(folder / f"{name}_io.pt", weights_only=True)


def public_inputs(io: dict[str, Any], given: str = "av") -> dict[str, Tensor]:
    """audio (N, T, 104), video (N, T, 88, 88), both normalised; `given` says which."""
    streams = {
        "audio": io["inputs"]["audio"].transpose(1, 2),
        "video": io["inputs"]["video_q"].squeeze(1).float() / 32,
    }
    return {name: streams[name] for name in STREAMS[given]}


def public_lengths(io: dict[str, Any], case: str) -> Tensor:
    """(N,) frames; all of them where the case gives no padding mask."""
    lengths = io["inputs"]["lengths"]
    return lengths if case.endswith(".pad") else torch.full_like(lengths, io["inputs"]["audio"].shape[-1])
