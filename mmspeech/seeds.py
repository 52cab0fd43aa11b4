"""Random numbers that depend on what they are for, never on who draws them.

Each draw is keyed by (seed, purpose, pass, item): the number of workers, ranks or restarts changes nothing, and one
purpose never moves the numbers of another.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stable_hash(*key: object) -> int:
    """63 bits of the key's text; the same in every process and version of Python (unlike `hash`)."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def item_keys(seed: int, purpose: str, passes: Sequence[int], ids: Sequence[str]) -> list[int]:
    """One key per item of a batch: what is drawn for it depends on nothing else in the batch."""
    return [stable_hash(seed, purpose, number, item) for number, item in zip(passes, ids, strict=True)]


def numpy_rng(*key: object) -> np.random.Generator:
    """A numpy generator for the key."""
    return np.random.default_rng(stable_hash(*key))


def torch_rng(*key: object) -> "torch.Generator":
    """A CPU torch generator for the key."""
    import torch  # here: scoring draws from numpy alone, and torch takes longer to load than scoring takes

    return torch.Generator().manual_seed(stable_hash(*key))


def uniforms(keys: Sequence[int], count: int) -> np.ndarray:
    """(N, count) numbers in [0, 1): row i depends on keys[i] alone, all rows are made at once (SplitMix64)."""
    with np.errstate(over="ignore"):
        step = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = np.asarray(keys, dtype=np.uint64)[:, None] + step[None, :]  # (N, count)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2**53
