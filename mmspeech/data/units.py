"""Frames and units of cuts on disk: arrays at 25 Hz in shards, read whole or any span, streamed in bounded memory.

A shard is raw little-endian numbers, one array behind the other; the storage key "offset:frames:dims:dtype" (dims 0: no
second axis) says where one is and what. Frames are the custom field `features` (T, C), units are
`units_<name>` (T,) int32.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from lhotse.array import TemporalArray
from lhotse.cut import Cut
from lhotse.features.io import FeaturesReader, FeaturesWriter, register_reader, register_writer

from mmspeech.data.audio import FRAMES_PER_S, num_frames
from mmspeech.data.cutfiles import open_cuts
from mmspeech.data.open_shards import forget_open_shards, load_stored, open_shard
from mmspeech.errors import BadItem, UserError
from mmspeech.files import replacing
from mmspeech.seeds import numpy_rng

STORAGE = "raw_shards"
REMEDY = "run the stage that writes it again"  # where a shard is gone or cut short
FEATURES = "features"  # in `cut.custom`; the attribute of that name is lhotse's own and stays empty
MAY_MISS = 2  # frames that features and units may be short of a cut: windows are not centred, durations are rounded


def read_units(cut: Cut, name: str) -> np.ndarray:
    """The units of a cut (T,) int32, where T is its number of 25 Hz frames or up to two fewer.

    Raises BadItem if the cut has no such units or their number does not fit.
    """
    field = f"units_{name}"
    if not cut.has_custom(field):
        raise BadItem(f"{cut.id}: expected `{field}`, found none; run `mmspeech cluster label --name {name}`")
    return _read_fitting(cut, field, f"units `{name}`", "run `mmspeech cluster label` again")


def made_from(cut: Cut, name: str) -> list[str]:
    """The streams that the units of a cut were made from, e.g. [audio, video]; none where that is not known."""
    known = (cut.custom or {}).get(made_from_field(f"units_{name}"), "")
    return known.split("+") if known else []


def made_from_field(field: str) -> str:
    """Beside frames or units a cut carries the names of the streams that they were made from, joined by `+`."""
    return f"{field}_from"


def read_features(cut: Cut, field: str = FEATURES) -> np.ndarray:
    """The frames of a cut (T, C) as stored. Raises BadItem if there are none or their number does not fit."""
    if not cut.has_custom(field):
        raise BadItem(f"{cut.id}: expected stored frames `{field}`, found none; run `mmspeech extract features`")
    return _read_fitting(cut, field, "stored frames", "run `mmspeech extract features` again")


def _read_fitting(cut: Cut, field: str, what: str, advice: str) -> np.ndarray:
    expected, values = num_frames(cut), load_stored(cut, field)
    if len(values) < expected - MAY_MISS:  # more are no fault: a cut may be a part of what was stored
        raise BadItem(
            f"{cut.id}: has {len(values)} {what}, but its {cut.duration:.2f} s need {expected} "
            f"({FRAMES_PER_S} per second, {MAY_MISS} may be missing); {advice}"
        )
    return values


def stream_frames(
    cut_paths: Path | Sequence[Path],
    field: str = FEATURES,
    batch_frames: int = 10_000,
    share: float = 1.0,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """The frames of all cuts in order, float32 (n, C) with n = batch_frames (the last has fewer), in bounded memory.

    Args:
        share: of the utterances to take; which ones depends on the seed and their ids alone.
    """
    waiting: list[np.ndarray] = []
    count = 0
    for cut in open_cuts(cut_paths):
        if share < 1.0 and numpy_rng(seed, "share", cut.id).random() >= share:
            continue
        frames = read_features(cut, field).astype(np.float32)
        if not np.isfinite(frames).all():
            raise UserError(f"{cut.id}: expected finite stored frames, found others; extract them again")
        waiting.append(frames)
        count += len(frames)
        while count >= batch_frames:
            joined = np.concatenate(waiting)
            yield joined[:batch_frames]
            waiting, count = [joined[batch_frames:]], count - batch_frames
    if count:
        yield np.concatenate(waiting)


# The two registrations are lhotse's way to add a storage; they run when this file is imported.
@register_writer
class RawShardsWriter(FeaturesWriter):
    """Writes one shard, which appears, complete, under its name when the `with` block ends well.

    with RawShardsWriter(folder / "shard-00000.bin") as shard:
        cut = cut.with_custom("features", shard.store(cut, values))
    """

    name = STORAGE

    def __init__(self, storage_path: str | Path, *args: object, **kwargs: object) -> None:
        self._path = Path(storage_path)

    @property
    def storage_path(self) -> str:
        return os.path.abspath(self._path)

    def __enter__(self) -> "RawShardsWriter":
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(open(self._stack.enter_context(replacing(self._path)), "wb"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        forget_open_shards()

    def write(self, key: str, value: np.ndarray) -> str:
        """Append an array (T,) or (T, C); returns its storage key (`key` only names it in messages)."""
        if value.ndim not in (1, 2):
            raise BadItem(f"{key}: expected an array (T,) or (T, C), found {value.shape}; shards hold no others")
        value = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        offset = self._file.tell()
        self._file.write(value.tobytes())
        dims = value.shape[1] if value.ndim == 2 else 0
        return f"{offset}:{len(value)}:{dims}:{value.dtype.str}"

    def store(self, cut: Cut, value: np.ndarray) -> TemporalArray:
        """Append the frames of a cut; returns what the cut carries."""
        return self.store_array(cut.id, value, frame_shift=1 / FRAMES_PER_S, temporal_dim=0, start=cut.start)


@register_reader
class RawShardsReader(FeaturesReader):
    """Reads an array, or a span of its frames, from a shard."""

    name = STORAGE

    def __init__(self, storage_path: str, *args: object, **kwargs: object) -> None:
        self.storage_path = str(storage_path)

    def read(self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None) -> np.ndarray:
        """Frames [left, right) of the array at `key`: (T,) or (T, C)."""
        offset, frames, dims, dtype = key.split(":")
        left = min(left_offset_frames, int(frames))
        right = int(frames) if right_offset_frames is None else min(right_offset_frames, int(frames))
        item = np.dtype(dtype)
        row = item.itemsize * max(int(dims), 1)
        data = open_shard(self.storage_path, REMEDY).read(int(offset) + left * row, max(right - left, 0) * row)
        values = np.frombuffer(bytearray(data), item)  # a bytearray, because what is read may be written to
        return values.reshape(-1, int(dims)) if int(dims) else values
