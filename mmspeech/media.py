"""Any container -> 16 kHz mono FLAC, and frames at 25 per second, through PyAV (its wheel brings FFmpeg).

The time 0 of a clip is its first video frame's: frame i of the 25 Hz grid is the frame that is shown i / 25 s later,
and sample n of the FLAC sounds n / 16000 s later, whatever the container's rates and offsets are. Frame i and samples
640 i ... 640 i + 639 belong together. Without a picture, time 0 is where the sound begins.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile

from mmspeech.containers import (
    decoded_frames,
    has_show_times,
    open_container,
    seconds,
    start_of_sound,
    video_stream,
)
from mmspeech.errors import BadItem, UserError
from mmspeech.files import replacing

RATE_HZ = 16_000
FRAMES_PER_S = 25
SAMPLES_PER_FRAME = RATE_HZ // FRAMES_PER_S
MIN_S = 0.2  # 5 video frames, the public AV-HuBERT's shortest clip
# A frame whose time stamp lies this little behind the grid counts as on it: containers round to milliseconds.
TOLERANCE_S = 0.0015
MAX_JITTER_S = 0.05  # sound whose time stamps leave more than this out was interrupted: the hole becomes silence
MAX_HOLE_S = 60.0
MAX_APART_S = 1.0  # by which a picture and a sound from two files may differ in length
SPARE_FRAMES = 2  # by which a header may be wrong about the number of its frames
# Containers whose header states how long the streams are; of others (MP3, MPEG) FFmpeg guesses it.
EXACT_HEADERS = ("mov,mp4", "flac")


@dataclass(frozen=True, kw_only=True)
class Video:
    """A file's picture: what cuts carry as `source`."""

    path: str
    video_start_s: float  # container time of the first video frame
    audio_start_s: float | None  # and of the first sample; None without sound
    num_frames: int  # in the file, at its own rate
    fps: float  # mean over the clip
    frame_width: int  # as shown, after rotation; not called `width`, for lhotse takes a dict with that key for an image
    frame_height: int
    rotation: int  # degrees counter-clockwise by which the stored picture is turned to show it
    duration_s: float  # from the first frame's time to the last one's end

    @property
    def num_grid_frames(self) -> int:
        """Number of frames that `read_frames` yields."""
        return _grid_frames(self.duration_s)

    def as_source(self) -> dict[str, object]:
        """The fields that cuts carry."""
        return {name: value for name, value in asdict(self).items() if name != "duration_s"}


@dataclass(frozen=True)
class Media:
    """What `to_flac` made: the sound's length, and the picture it belongs to (None: sound alone)."""

    num_samples: int
    video: Video | None


def to_flac(
    source: Path, target: Path, *, need_video: bool = False, fit_video: bool = True, sound: Path | None = None
) -> Media:
    """Write the sound of any file that FFmpeg reads as 16 kHz mono FLAC; one that is there already is kept.

    With a picture the sound is cut or filled with silence to exactly 640 samples per frame of the 25 Hz grid.
    Without `fit_video` the picture is not looked at, and the sound stays whole.

    Args:
        sound: the file with the sound, where `source` holds the picture alone: its time 0 is the first frame's.

    Raises BadItem: unreadable or cut off, no sound, shorter than 0.2 s, no picture where one is needed, or a picture
    and a sound that cannot be of one clip.
    """
    video = probe(source) if fit_video else None
    if need_video and video is None:
        raise BadItem(f"{source}: expected a video stream, found sound only; left out")
    if video is not None and sound is not None:
        picture_s, sound_s = video.num_grid_frames / FRAMES_PER_S, stated_sound_s(sound)
        if abs(picture_s - sound_s) > MAX_APART_S:
            raise BadItem(
                f"{sound}: lasts {sound_s:.2f} s, but its picture {source} {picture_s:.2f} s; copy both again"
            )
    if not target.exists():
        zero_s = video.video_start_s if video else None
        blocks = _sound(source, zero_s) if sound is None else _sound(sound, 0.0)
        write_flac(target, _fit(source, blocks, video.num_grid_frames * SAMPLES_PER_FRAME if video else None))
    return Media(soundfile.info(target).frames, video)


def write_flac(path: Path, blocks: Iterable[np.ndarray]) -> None:
    """Write blocks (samples,), int16 or float in [-1, 1], as 16 kHz mono FLAC, whole or not at all.

    Raises UserError if there is no room for it.
    """
    with replacing(path) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", RATE_HZ, 1, "PCM_16", format="FLAC") as file:
                for block in blocks:
                    file.write(block)
        except soundfile.LibsndfileError as error:
            raise UserError(f"{path}: could not be written ({error}); make room and run again") from error


def probe(path: Path) -> Video | None:
    """What a file says of its picture, from the packets' time stamps and one decoded frame; None for sound alone.

    Raises BadItem if the file is missing, unreadable or cut off.
    """
    with open_container(path) as container:
        stream = video_stream(container)
        if stream is None:
            return None
        fallback_s = 1 / float(stream.average_rate or FRAMES_PER_S)
        times, ends, packets = [], [], 0
        for packet in container.demux(stream):
            packets += packet.size > 0
            if packet.pts is not None and not packet.is_discard:
                times.append(seconds(packet.pts, packet.time_base))
                ends.append(times[-1] + (seconds(packet.duration, packet.time_base) or fallback_s))
        if packets < stream.frames - SPARE_FRAMES:
            raise BadItem(f"{path}: expected {stream.frames} video frames, found {packets}: cut off; copy it again")
        audio_start_s, shown_at = start_of_sound(container), has_show_times(container)
    with open_container(path) as container:
        decoded = decoded_frames(container)
        first, start_s, end_s = next(decoded, (None, 0.0, 0.0))
        if first is None:
            raise BadItem(f"{path}: expected video frames, found none; left out")
        if not shown_at or len(times) < max(1, packets - SPARE_FRAMES):  # MPEG may leave time stamps out
            ends = [end_s, *(end_s for _, _, end_s in decoded)]
        rotation = first.rotation % 360
    duration_s = max(ends) - start_s
    if duration_s <= 0:
        raise BadItem(f"{path}: the picture's time stamps go back; mend the file or leave it out")
    turned = _quarter_turns(rotation) % 2 == 1
    return Video(
        path=str(path.absolute()),
        video_start_s=start_s,
        audio_start_s=audio_start_s,
        num_frames=len(ends),
        fps=round(len(ends) / duration_s, 4),
        frame_width=first.height if turned else first.width,
        frame_height=first.width if turned else first.height,
        rotation=rotation,
        duration_s=duration_s,
    )


def stated_sound_s(path: Path) -> float:
    """How long a file says its sound is, in seconds. Raises BadItem if it has none."""
    with open_container(path) as container:
        if not container.streams.audio:
            raise BadItem(f"{path}: expected an audio stream, found none; left out")
        stream = container.streams.audio[0]
        return seconds(stream.duration, stream.time_base)


def read_frames(path: Path, *, grey: bool) -> Iterator[np.ndarray]:
    """The video at 25 frames per second, upright: (H, W) uint8 grey, or (H, W, 3) uint8 RGB.

    Grey is the stored brightness, its 16-235 stretched to 0-255: three times faster than by way of colour.

    Raises BadItem if the file is missing, has no picture, or does not decode to its end.
    """
    convert = _grey if grey else _colour
    with open_container(path) as container:
        if video_stream(container) is None:
            raise BadItem(f"{path}: expected a video stream, found none; left out")
        for frame, repeats in _on_grid(decoded_frames(container)):
            if repeats:
                image = np.rot90(convert(frame), _quarter_turns(frame.rotation))
                yield from (image.copy() for _ in range(repeats))


def _on_grid(decoded: Iterable[tuple[av.VideoFrame, float, float]]) -> Iterator[tuple[av.VideoFrame, int]]:
    """Each frame with the number of grid points (multiples of 1/25 s) at which it is the one shown."""
    done, shown, start_s, end_s = 0, None, 0.0, 0.0
    for frame, time_s, frame_end_s in decoded:
        if shown is None:
            start_s = time_s
        else:
            # Grid points before the next frame's time belong to the frame before it.
            until = int(np.ceil((time_s - start_s - TOLERANCE_S) * FRAMES_PER_S))
            yield shown, max(0, until - done)
            done = max(done, until)
        shown, end_s = frame, max(end_s, frame_end_s)
    if shown is not None:
        yield shown, max(0, _grid_frames(end_s - start_s) - done)


def _grid_frames(duration_s: float) -> int:
    return max(1, round(duration_s * FRAMES_PER_S))


def _quarter_turns(rotation: int) -> int:
    """np.rot90's number of turns, counter-clockwise, for an angle that phones write into the file."""
    return round(rotation / 90) % 4


def _grey(frame: av.VideoFrame) -> np.ndarray:
    """(H, W) uint8. The Y plane is read as it lies in memory: no conversion, no copy of the colours."""
    name = frame.format.name
    if name not in ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray"):
        frame = frame.reformat(format="yuv444p", dst_color_range="MPEG")
    plane = frame.planes[0]
    grey = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    full_range = frame.color_range == av.video.reformatter.ColorRange.JPEG or name == "gray" or name.startswith("yuvj")
    return grey if full_range else cv2.LUT(grey, _stretch())


@functools.cache
def _stretch() -> np.ndarray:
    return np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def _colour(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")


def _sound(path: Path, zero_s: float | None) -> Iterator[np.ndarray]:
    """Blocks (samples,) int16 at 16 kHz from container time `zero_s` on (None: from the first sample on)."""
    with open_container(path) as container:
        if not container.streams.audio:
            raise BadItem(f"{path}: expected an audio stream, found none; left out")
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        stated_s = seconds(stream.duration, stream.time_base)
        resampler, start_s, heard_s, skip = None, None, 0.0, 0
        for frame in container.decode(stream):
            time_s = frame.time if frame.time is not None else (start_s or 0.0) + heard_s
            if start_s is None:
                start_s = time_s
                skip = 0 if zero_s is None else round((zero_s - start_s) * RATE_HZ)
                yield np.zeros(max(0, -skip), np.int16)
            hole_s = time_s - start_s - heard_s
            if hole_s > MAX_HOLE_S:
                raise BadItem(f"{path}: time stamps of the sound jump by {hole_s:.0f} s; mend the file or leave it out")
            blocks = []
            if hole_s > MAX_JITTER_S:
                blocks = [*_resampled(resampler, None), np.zeros(round(hole_s * RATE_HZ), np.int16)]
                resampler, heard_s = None, heard_s + hole_s
            if resampler is None:
                resampler = av.AudioResampler("s16", "mono", RATE_HZ)
            heard_s += frame.samples / frame.sample_rate
            for block in [*blocks, *_resampled(resampler, frame, path)]:
                yield block[max(0, skip) :]
                skip = max(0, skip - len(block))
        if start_s is None:
            raise BadItem(f"{path}: expected sound, found an audio stream without samples; left out")
        if container.format.name.startswith(EXACT_HEADERS) and heard_s < 0.9 * stated_s - 0.5:
            raise BadItem(f"{path}: expected {stated_s:.1f} s of sound, found {heard_s:.1f} s: cut off; copy it again")
        for block in _resampled(resampler, None):
            yield block[max(0, skip) :]


def _resampled(resampler: av.AudioResampler | None, frame: av.AudioFrame | None, path: Path | None = None) -> list:
    """What the resampler gives out for a frame, or for the end (None): blocks (samples,) int16."""
    if resampler is None:
        return []
    try:
        return [out.to_ndarray()[0] for out in resampler.resample(frame)]
    except ValueError as error:
        raise BadItem(f"{path}: the sound changes its rate or channels midway; convert the file first") from error


def _fit(source: Path, blocks: Iterable[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """Blocks of exactly `limit` samples together: cut at the end, or followed by silence. BadItem if too short."""
    done = 0
    for block in blocks:
        block = block if limit is None else block[: limit - done]
        yield block
        done += len(block)
        if done == limit:
            break
    if limit is not None:
        yield np.zeros(limit - done, np.int16)
        done = limit
    if done < MIN_S * RATE_HZ:
        raise BadItem(f"{source}: expected at least {MIN_S} s, found {done / RATE_HZ:.2f} s; left out")
