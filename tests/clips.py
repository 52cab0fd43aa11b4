"""Tiny real clips for tests: pictures and sound -> a container that FFmpeg reads."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLOCK = Fraction(1, 90_000)


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray] | None,
    audio: np.ndarray | None,
    fps: float = 25,
    rate: int = 16_000,
    rotation: int | None = None,
    *,
    times: Sequence[float] | None = None,
    video_start_s: float = 0.0,
    audio_start_s: float = 0.0,
    pix_fmt: str = "yuv420p",
    hole: tuple[float, float] | None = None,
    faststart: bool = False,
) -> Path:
    """Write a clip; its ending names the container. H.264 and AAC, or what the container wants. Returns the path.

    Args:
        frames: (H, W) grey or (H, W, 3) RGB uint8, even sizes; None: sound alone.
        audio: (S,) or (channels, S), float in [-1, 1]; None: no sound.
        rotation: degrees counter-clockwise by which players turn the picture.
        times: seconds of every frame after the first one's, instead of `fps`.
        hole: (at, length) in seconds: the sound's time stamps jump there.
        faststart: put the header of an mp4 before the data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        # All streams first: a container's header lists them.
        video = _video_stream(container, frames, fps, rotation, pix_fmt) if frames is not None else None
        sound = _audio_stream(container, audio, rate) if audio is not None else None
        if video is not None:
            stamps = times if times is not None else [index / fps for index in range(len(frames))]
            for time_s, picture in zip(stamps, frames, strict=True):
                rgb = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
                frame.pts, frame.time_base = round((video_start_s + time_s) / CLOCK), CLOCK
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if sound is not None:
            samples = (np.clip(np.atleast_2d(audio), -1, 1) * 32767).astype(np.int16)
            at_s, jump_s = hole or (len(samples[0]) / rate, 0.0)
            head, tail = np.split(samples, [round(at_s * rate)], axis=1)
            for part, start_s in ((head, audio_start_s), (tail, audio_start_s + at_s + jump_s)):
                if part.size:
                    container.mux(sound.encode(_audio_frame(part, rate, start_s)))
            container.mux(sound.encode(None))
    return path


def numbered_frames(count: int, size: int = 32) -> list[np.ndarray]:
    """Frames (size, size) whose brightness is their number, of up to 256: sixteens on the left, ones on the right."""
    halves = [(index // 16, index % 16) for index in range(count)]
    return [np.repeat(np.repeat(np.array([pair], np.uint8) * 16, size, 0), size // 2, 1) for pair in halves]


def read_number(frame: np.ndarray) -> int:
    """Which of `numbered_frames` a grey frame is."""
    middle = frame.shape[1] // 2
    left, right = (round(float(half.mean()) / 16) for half in (frame[:, : middle - 2], frame[:, middle + 2 :]))
    return 16 * left + right


def beep(duration_s: float, at_s: float, rate: int = 16_000, length_s: float = 0.05) -> np.ndarray:
    """Silence (S,) with a beep of 1 kHz that begins at `at_s`."""
    time = np.arange(round(duration_s * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * 1000 * (time - at_s)) * ((time >= at_s) & (time < at_s + length_s))


def _audio_frame(samples: np.ndarray, rate: int, start_s: float) -> av.AudioFrame:
    layout = "mono" if len(samples) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, round(start_s * rate), Fraction(1, rate)
    return frame


def _video_stream(container, frames, fps: float, rotation: int | None, pix_fmt: str) -> av.VideoStream:
    codec = {"webm": "libvpx"}.get(container.format.name, "libx264")
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = pix_fmt
    stream.codec_context.time_base = CLOCK if container.format.name != "avi" else 1 / stream.average_rate
    stream.codec_context.thread_count = 1
    if codec == "libx264":
        stream.options = {"crf": "4", "preset": "veryfast"}
    else:
        stream.bit_rate = 2_000_000
    if rotation:
        stream.set_display_rotation(rotation)
    return stream


def _audio_stream(container, audio: np.ndarray, rate: int) -> av.AudioStream:
    codec = {
        "avi": "pcm_s16le",
        "wav": "pcm_s16le",
        "flac": "flac",
        "ogg": "libopus",
        "webm": "libopus",
        "mp3": "libmp3lame",
    }
    channels = len(np.atleast_2d(audio))
    name = codec.get(container.format.name, "aac")
    return container.add_stream(name, rate=rate, layout="mono" if channels == 1 else "stereo")
