"""One video or sound file, without a corpus: what the streams of a model are of it, whole or over any span.

    file -> 16 kHz FLAC and mouth track, in a temporary folder -> cuts of spans -> `read_item`, as in training

So a file of any length takes little memory: a span is read when it is asked for.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from lhotse import MonoCut, Recording
from lhotse.array import TemporalArray

from mmspeech import media
from mmspeech.batch import Batch
from mmspeech.console import say
from mmspeech.containers import open_container, start_of_sound, video_stream
from mmspeech.data import landmarks, mouth, mouth_shards, video
from mmspeech.data.reading import FRAMES_PER_S, Item, Reading, collate, read_item
from mmspeech.errors import BadItem, UserError

FACE_SHARE = 0.5  # of a span's frames; where fewer show a face, the track mostly shows where none is
SPEECH_RANGE_DB = 30.0  # below the loud frames of a file; what is fainter counts as a pause
SHOT_S = 10.0  # the largest face is chosen anew so often: recordings that nobody prepared have many shots
LONG_S = 60.0  # from here on it is said that a face is being looked for: it takes a minute in ten


@dataclass(frozen=True)
class OneFile:
    """A file that is open for reading; frames are numbered from its first one, 25 per second."""

    path: Path
    streams: Mapping[str, Mapping[str, Any]]  # of those asked for, the ones it has: name -> how it is read
    missing: Mapping[str, str]  # the others: name -> why
    num_frames: int
    duration_s: float
    start_s: float  # what a player's clock shows at the first frame
    recording: Recording | None
    mouth: TemporalArray | None
    face: np.ndarray  # (T,) bool: where a face was found
    num_faces: int  # how many there are; the largest is followed
    speaking: np.ndarray  # (T,) bool: where the sound is no pause; without sound everywhere

    def notices(self) -> list[str]:
        """What its reader should know, a line each."""
        taken = " and ".join(self.streams)
        lines = [f"{self.path}: {reason}; read from {taken} alone" for reason in dict.fromkeys(self.missing.values())]
        if self.num_faces > 1:
            lines.append(f"{self.path}: shows up to {self.num_faces} faces; the largest is read")
        return lines

    def shows_lips(self, start: int, stop: int) -> bool:
        """Whether enough of the frames [start, stop) show a face for lips to be read there."""
        return self.mouth is not None and self.face[start:stop].mean() >= FACE_SHARE

    def read(self, start: int = 0, stop: int | None = None) -> Item | None:
        """The streams over the frames [start, stop), lips only where they are shown; None where that leaves nothing.

        Raises BadItem if the sound or the track cannot be read.
        """
        stop = self.num_frames if stop is None else stop
        custom = {"mouth": self.mouth} if self.shows_lips(start, stop) else None
        if custom is None and self.recording is None:
            return None
        start_s, end_s = start / FRAMES_PER_S, min(stop / FRAMES_PER_S, self.duration_s)
        cut = MonoCut(self.path.name, start_s, end_s - start_s, 0, recording=self.recording, custom=custom)
        return read_item(cut, Reading(streams=self.streams))


def read_file(path: Path | str, streams: Mapping[str, Mapping[str, Any]], landmark_files: Path | None = None) -> Batch:
    """The streams of a whole file as a batch of one, what `encode` of a model takes.

    Streams that the file does not have are left out, with a line.

    Args:
        path: any video or sound file that FFmpeg reads.
        streams: name -> how it is read: `inputs` of an encoder, or some of them.
        landmark_files: folder of landmarks, as for `mmspeech extract mouth`, instead of the detector.

    Raises BadItem if it cannot be read, or has none of the streams.
    """
    with open_file(Path(path), streams, landmark_files) as file:
        for line in file.notices():
            say(line)
        item = file.read()
    if item is None:
        raise BadItem(f"{path}: has no sound, and fewer than half of its frames show a face; give another file")
    return collate([item], list(file.streams), [0])


@contextlib.contextmanager
def open_file(
    path: Path, streams: Mapping[str, Mapping[str, Any]], landmark_files: Path | None = None
) -> Iterator[OneFile]:
    """Make a file ready for reading; what that takes is gone when the block ends. Arguments as for `read_file`."""
    if not path.is_file():
        raise BadItem(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give a video or sound file")
    with open_container(path) as container:
        clock_s = (container.start_time or 0) / av.time_base
        sound_s, has_picture = start_of_sound(container), video_stream(container) is not None
    readers = {settings["reader"] for settings in streams.values()}
    reasons = dict.fromkeys(("array", "phones"), "a field of cuts is no part of a file")
    if sound_s is None:
        reasons["logmel"] = "has no sound"
    with tempfile.TemporaryDirectory(prefix="mmspeech-") as temporary:
        folder = Path(temporary)
        picture: Any = None
        track, face, num_faces = None, np.zeros(0, bool), 0
        if "mouth" in readers and not has_picture:
            reasons["mouth"] = "has no picture"
        elif "mouth" in readers:
            picture = media.probe(path)
            try:
                track, face, num_faces = _lips(path, picture.num_grid_frames, folder / "mouth.jpgs", landmark_files)
                if track is None:
                    reasons["mouth"] = "no face was found in its picture"
            except UserError as error:  # there is no detector: sound may do without
                reasons["mouth"] = str(error)
        found = {stream: settings for stream, settings in streams.items() if settings["reader"] not in reasons}
        missing = {name: reasons[settings["reader"]] for name, settings in streams.items() if name not in found}
        if not found:
            reason = ", and ".join(dict.fromkeys(missing.values()))
            raise BadItem(f"{path}: {reason}; nothing there to read as {' or '.join(streams)}")
        recording: Any = None
        if "logmel" in readers - reasons.keys():
            media.to_flac(path, folder / "sound.flac", fit_video=track is not None)
            recording = Recording.from_file(folder / "sound.flac", recording_id=path.name)
        if track is not None:
            num_frames, first_s = track.shape[0], picture.video_start_s
            duration_s = num_frames / FRAMES_PER_S
        else:
            num_frames, first_s = math.ceil(recording.num_samples / media.SAMPLES_PER_FRAME), sound_s
            duration_s = recording.duration
        if duration_s < media.MIN_S:
            raise BadItem(f"{path}: expected at least {media.MIN_S} s, found {duration_s:.2f} s; give a longer file")
        yield OneFile(
            path=path,
            streams=found,
            missing=missing,
            num_frames=num_frames,
            duration_s=duration_s,
            start_s=max(0.0, first_s - clock_s),
            recording=recording,
            mouth=track,
            face=face,
            num_faces=num_faces,
            speaking=np.ones(num_frames, bool) if recording is None else _speaking(folder / "sound.flac", num_frames),
        )


def _lips(
    path: Path, num_frames: int, shard: Path, landmark_files: Path | None
) -> tuple[TemporalArray | None, np.ndarray, int]:
    """The mouth track of a file, written to `shard` (None without any face), where faces are (T,) bool, how many.

    Raises UserError if MediaPipe is needed and missing.
    """
    if landmark_files is None:
        landmarks.check_detector()
        if num_frames > LONG_S * FRAMES_PER_S:
            say(f"{path}: looking for a face in {num_frames} frames")
    clip = mouth_shards.Clip(path.name, str(path.absolute()), num_frames)
    try:
        found = mouth_shards.find_face(clip, landmark_files, piece=round(SHOT_S * FRAMES_PER_S))
        points = mouth.fit_length(found.points, num_frames)
        face = np.isfinite(points).all(axis=(1, 2))
        if not face.any():
            return None, face, found.num_faces
        crops = mouth.crop_mouths(media.read_frames(path, grey=True), mouth.interpolate(points))
        with open(shard, "wb") as file:
            key = video.append_track(file, video.encode(crops))
    except BadItem as error:
        reason = str(error)
        raise BadItem(reason if reason.startswith(str(path)) else f"{path}: {reason}") from error
    return video.track_manifest(shard, key), face, found.num_faces


def _speaking(flac: Path, num_frames: int) -> np.ndarray:
    """(T,) bool: frames less than 30 dB fainter than the loudest twentieth of a file."""
    size = media.SAMPLES_PER_FRAME
    blocks = soundfile.blocks(flac, 250 * size, dtype="float32", fill_value=0.0)
    power = np.concatenate([np.square(block.reshape(-1, size)).mean(axis=1) for block in blocks])[:num_frames]
    return power >= np.quantile(power, 0.95) / 10 ** (SPEECH_RANGE_DB / 10)
