"""Shard files that stay open between reads; frames, units and mouth tracks are all read through here."""

import functools
import os

from mmspeech.errors import BadItem, UserError


class OpenShard:
    """An open file that closes when nobody holds it: a reader may still be at work when the cache lets go of it."""

    def __init__(self, path: str, remedy: str) -> None:
        """`remedy`: what to do about a file that is gone or cut short, for the message."""
        self.descriptor = -1
        self.path, self.remedy = path, remedy
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"{path}: expected stored frames, but the file is gone; {remedy}") from None

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


def forget_open_shards() -> None:
    """Close the shards that this process reads: needed when one of them was written anew."""
    open_shard.cache_clear()
