"""Mouth tracks on cuts: how they are stored, read (whole or any span) and cropped for a model.

A track is (T, 96, 96) uint8 grey at 25 Hz. On disk a frame is one JPEG (quality 90), so that a random span costs two
reads and the decoding of its own frames. A shard holds many tracks back to back and ends with a summary:

    per track: (T + 1) uint32 offsets into its data, then T JPEGs     storage key: "position:T"
    at the end: the summary as JSON, its size as uint64               what happened to every recording of the shard
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut
from lhotse.features.io import FeaturesReader, FeaturesWriter, register_reader, register_writer

from mmspeech import media
from mmspeech.data.open_shards import forget_open_shards, load_stored, open_shard
from mmspeech.errors import BadItem, UserError

SIZE = 96  # pixels of a stored frame, as in the public AV-HuBERT preparation
STORAGE = "mouth_jpeg"
REMEDY = "run `mmspeech extract mouth` again"  # where a shard is gone or cut short
JPEG_QUALITY = 90  # 2 KB a frame, mean error under 2 grey levels; reads at 25,000 frames/s and core


def read_mouth(cut: Cut) -> np.ndarray:
    """The mouth track of a cut (T, 96, 96) uint8, T = round(25 * duration); only the frames of the cut are read.

    Raises BadItem if the cut has no track, its file is gone, or its frames do not decode.
    """
    if not cut.has_custom("mouth"):
        raise BadItem(f"{cut.id}: expected a mouth track on the cut, found none; run `mmspeech extract mouth` first")
    return load_stored(cut, "mouth")


def augment(
    frames: np.ndarray, rng: np.random.Generator, crop: int = 88, size: int = SIZE, train: bool = True
) -> np.ndarray:
    """Crop a clip, and flip it in training; returns (T, crop, crop) uint8, contiguous.

    In training one random offset and one flip (probability 0.5) hold for all frames of the clip; in evaluation the
    crop is central and an odd remainder is cut below, as in the public AV-HuBERT.

    Args:
        frames: (T, H, W) uint8.
        rng: generator of this clip's draws; not used in evaluation.
        size: frames are first scaled down to size x size if that is not the stored 96 (small models on CPUs).
    """
    if size != SIZE:
        scaled = [cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in frames]
        frames = np.stack(scaled) if scaled else np.empty((0, size, size), np.uint8)
    height, width = frames.shape[1:]
    if min(height, width) < crop:
        raise UserError(f"mouth frames of {height}x{width} pixels: too small for a crop of {crop}; lower the crop")
    if not train:
        return crop_and_flip(frames, (height - crop) // 2, (width - crop) // 2, crop, flip=False)
    top, left = (int(rng.integers(extent - crop + 1)) for extent in (height, width))
    return crop_and_flip(frames, top, left, crop, flip=bool(rng.random() < 0.5))


def crop_and_flip(frames: np.ndarray, top: int, left: int, crop: int, flip: bool) -> np.ndarray:
    """(T, H, W) -> (T, crop, crop), mirrored left to right if `flip`."""
    frames = frames[:, top : top + crop, left : left + crop]
    return np.ascontiguousarray(frames[:, :, ::-1] if flip else frames)


def encode(frames: Iterable[np.ndarray]) -> list[bytes]:
    """Grey frames (96, 96) uint8 -> one JPEG each."""
    return [cv2.imencode(".jpg", frame, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes() for frame in frames]


def append_track(shard: IO[bytes], jpegs: list[bytes]) -> str:
    """Write a track at the end of an open shard; returns its storage key."""
    position = shard.tell()
    offsets = np.zeros(len(jpegs) + 1, "<u4")
    np.cumsum([len(jpeg) for jpeg in jpegs], out=offsets[1:])
    shard.write(offsets.tobytes())
    shard.writelines(jpegs)
    return f"{position}:{len(jpegs)}"


def end_shard(shard: IO[bytes], summary: Any) -> None:
    """Close the shard's contents with a JSON value: the shard then tells by itself what is in it."""
    text = json.dumps(summary).encode()
    shard.write(text + len(text).to_bytes(8, "little"))


def shard_summary(path: Path) -> Any:
    """What `end_shard` wrote, read from the end of the file without touching the tracks."""
    with open(path, "rb") as shard:
        shard.seek(-8, os.SEEK_END)
        size = int.from_bytes(shard.read(8), "little")
        shard.seek(-8 - size, os.SEEK_END)
        return json.loads(shard.read(size))


def track_manifest(path: Path, key: str) -> TemporalArray:
    """What a cut carries as `mouth`: the whole recording's track; lhotse picks the cut's part by start and duration."""
    num_frames = int(key.split(":")[1])
    array = Array(STORAGE, os.path.abspath(path), key, [num_frames, SIZE, SIZE])
    return TemporalArray(array, temporal_dim=0, frame_shift=1 / media.FRAMES_PER_S, start=0.0)


# The two registrations are lhotse's way to add a storage; they run when this file is imported.
@register_reader
class MouthReader(FeaturesReader):
    """Reads a track, or a span of it, from a shard."""

    name = STORAGE

    def __init__(self, storage_path: str, *args: object, **kwargs: object) -> None:
        self.storage_path = str(storage_path)

    def read(self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None) -> np.ndarray:
        """Frames [left, right) of the track at `key`, (T, 96, 96) uint8."""
        position, num_frames = map(int, key.split(":"))
        wanted = (num_frames if right_offset_frames is None else right_offset_frames) - left_offset_frames
        # lhotse rounds start and duration apart: a span may end, or a very short one begin, one frame too late.
        left = min(left_offset_frames, num_frames - 1)
        right = min(left + wanted, num_frames)
        shard = open_shard(self.storage_path, REMEDY)
        table = shard.read(position + 4 * left, 4 * (right - left + 1))
        offsets = np.frombuffer(table, "<u4").astype(np.int64)
        begin = position + 4 * (num_frames + 1) + int(offsets[0])
        data = np.frombuffer(shard.read(begin, int(offsets[-1] - offsets[0])), np.uint8)
        frames = np.empty((right - left, SIZE, SIZE), np.uint8)
        for index, (start, stop) in enumerate(zip(offsets[:-1] - offsets[0], offsets[1:] - offsets[0], strict=True)):
            frame = cv2.imdecode(data[start:stop], cv2.IMREAD_GRAYSCALE)
            if frame is None:
                raise BadItem(
                    f"{self.storage_path}: frame {left + index} of track {key} does not decode; extract again"
                )
            frames[index] = frame
        if len(frames) == wanted - 1:
            frames = np.concatenate([frames, frames[-1:]])
        return frames


@register_writer
class MouthWriter(FeaturesWriter):
    """Appends whole tracks to one shard, for tools that copy cuts; `extract mouth` writes shards frame by frame."""

    name = STORAGE

    def __init__(self, storage_path: str | Path, mode: str = "wb", *args: object, **kwargs: object) -> None:
        Path(storage_path).parent.mkdir(parents=True, exist_ok=True)
        self._path = Path(storage_path)
        self._file: IO[bytes] = open(storage_path, mode)

    @property
    def storage_path(self) -> str:
        return os.path.abspath(self._path)

    def write(self, key: str, value: np.ndarray) -> str:
        """Append a track (T, 96, 96) uint8; returns its storage key (`key` only names it in messages)."""
        if value.dtype != np.uint8 or value.shape[1:] != (SIZE, SIZE):
            raise BadItem(f"{key}: expected frames (T, {SIZE}, {SIZE}) uint8, found {value.shape} {value.dtype}")
        storage_key = append_track(self._file, encode(value))
        self._file.flush()
        return storage_key

    def __exit__(self, *error: object) -> None:
        self._file.close()
        forget_open_shards()
