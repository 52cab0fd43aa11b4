"""Containers as FFmpeg sees them: opened with one-line errors, streams that matter, time stamps in seconds."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from mmspeech.errors import BadItem

FALLBACK_FPS = 25  # of a stream that states no rate


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a file for reading; whatever FFmpeg dislikes in the block becomes one line of BadItem."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:  # tags in Latin-1 are no reason to stop
            yield container
    except FileNotFoundError:
        raise BadItem(f"{path}: no such file; left out") from None
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise BadItem(f"{path}: not a media file, or cut off ({reason}); copy it again or leave it out") from error


def video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first stream of pictures that move; the cover of an MP3 file is none."""
    moving = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not moving:
        return None
    moving[0].codec_context.thread_count = 1  # there is one process per core already
    return moving[0]


def start_of_sound(container: av.container.InputContainer) -> float | None:
    if not container.streams.audio:
        return None
    stream = container.streams.audio[0]
    return seconds(stream.start_time, stream.time_base)


def decoded_frames(container: av.container.InputContainer) -> Iterator[tuple[av.VideoFrame, float, float]]:
    """Every video frame in the order of showing, with its time and end in seconds of the container."""
    stream = video_stream(container)
    if stream is None:
        return
    fallback_s = 1 / float(stream.average_rate or FALLBACK_FPS)
    time_s, delay = -fallback_s, None
    for frame in container.decode(stream):
        if has_show_times(container):
            stamp = frame.pts
        else:
            # Times of decoding grow as steadily as times of showing, later by what the decoder holds back.
            delay = (frame.dts or 0) - (stream.start_time or 0) if delay is None else delay
            stamp = None if frame.dts is None else frame.dts - delay
        time_s = time_s + fallback_s if stamp is None else seconds(stamp, frame.time_base)
        yield frame, time_s, time_s + (seconds(frame.duration, frame.time_base) or fallback_s)


def has_show_times(container: av.container.InputContainer) -> bool:
    """AVI writes no time at which a frame is shown; FFmpeg guesses one, wrongly where frames are reordered."""
    return container.format.name != "avi"


def seconds(stamp: int | None, time_base: Fraction | None) -> float:
    return float((stamp or 0) * (time_base or 0))
