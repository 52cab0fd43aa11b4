"""Random numbers that depend on what they are for, never on who draws them.

Each draw is keyed by (seed, purpose, pass, item): the number of workers, ranks or restarts changes nothing, and one
purpose never moves the numbers of another.
"""

import hashlib

import numpy as np
import torch


def stable_hash(*key: object) -> int:
    """63 bits of the key's text; the same in every process and version of Python (unlike `hash`)."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(*key: object) -> np.random.Generator:
    """A numpy generator for the key."""
    return np.random.default_rng(stable_hash(*key))


def torch_rng(*key: object) -> torch.Generator:
    """A CPU torch generator for the key."""
    return torch.Generator().manual_seed(stable_hash(*key))
