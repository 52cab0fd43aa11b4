"""The global random generators of a process (dropout): seeded, saved, put back."""

import random
from typing import Any, cast

import numpy as np
import torch

from mmspeech import dist, seeds


def seed_all(seed: int, update: int) -> None:
    """Seed every global generator; each rank its own numbers."""
    number = seeds.stable_hash(seed, "global", update, dist.rank())
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def get() -> dict[str, object]:
    """The state of every global random generator of this process, as tensors and plain values."""
    name, words, position, has_gauss, gauss = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(words.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def put_back(state: dict[str, Any]) -> None:
    """The inverse of `get`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, words, *rest = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
