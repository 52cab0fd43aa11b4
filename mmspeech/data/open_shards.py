"""Shard files that stay open between reads; frames, units and mouth tracks are all read through here."""

import functools
import os

import numpy as np
from lhotse.cut import Cut

from mmspeech.errors import BadItem


class OpenShard:
    """An open file that closes when nobody holds it: a reader may still be at work when the cache lets go of it."""

    def __init__(self, path: str, remedy: str) -> None:
        """`remedy`: what to do about a file that is gone or cut short, for the message."""
        self.descriptor = -1
        self.path, self.remedy = path, remedy
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise BadItem(f"{path}: no such file; {remedy}") from None

    def read(self, position: int, size: int) -> bytes:
        """`size` bytes from `position` on. Raises BadItem if the file ends before."""
        # pread has no file position: threads and forked workers may share the descriptor.
        data = os.pread(self.descriptor, size, position)
        if len(data) != size:
            raise BadItem(f"{self.path}: ends before byte {position + size}; {self.remedy}")
        return data

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.lru_cache(maxsize=256)
def open_shard(path: str, remedy: str) -> OpenShard:
    """The shard at `path`, opened once per process."""
    return OpenShard(path, remedy)


def load_stored(cut: Cut, field: str) -> np.ndarray:
    """What is stored for a field of the cut. Raises BadItem, naming the cut, if the file is gone or cut short."""
    try:
        return cut.load_custom(field)
    except BadItem as error:
        raise BadItem(f"{cut.id}: {error}") from None


def forget_open_shards() -> None:
    """Close the shards that this process reads: needed when one of them was written anew."""
    open_shard.cache_clear()
