"""How the embedded corpus films its faces: head motion, light, blur, sensor noise, and an mp4 with H.264 and AAC."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from mmspeech.corpora.synth_lips import FRAMES_PER_S
from mmspeech.corpora.synth_paint import ORIGIN, UNIT, Painting
from mmspeech.corpora.synth_speech import RATE_HZ

SIZE = 224  # of a frame, as in LRS3


@dataclass(frozen=True, kw_only=True)
class Camera:
    """How one clip is filmed."""

    light_angle: float  # radians; where the light comes from
    light_slope: float  # brightness at the lit edge minus that at the other, as a share
    exposure: float
    flicker: float
    noise: float  # standard deviation, grey levels
    blur: float  # pixels, standard deviation
    crf: int  # H.264's constant rate factor: larger is coarser


def draw_camera(difficulty: float, rng: np.random.Generator) -> Camera:
    """A clip's camera; difficulty scales everything that makes lips hard to see."""
    return Camera(
        light_angle=rng.uniform(0.0, 2.0 * np.pi),
        light_slope=difficulty * rng.uniform(0.0, 0.8),
        exposure=1.0 + difficulty * rng.uniform(-0.4, 0.3),
        flicker=0.03 * difficulty,
        noise=difficulty * rng.uniform(2.0, 14.0),
        blur=difficulty * rng.uniform(0.0, 2.0),
        crf=22 + round(difficulty * rng.uniform(4.0, 16.0)),
    )


def head_motion(num_frames: int, difficulty: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """From face units to pixels of the frame: (T, 2, 3) affine maps that drift slowly.

    Turning the head sideways is approximated by a narrower face; nodding is left out.
    """
    here = rng.uniform(-1.0, 1.0, size=5) * difficulty
    drift = difficulty * _drift(num_frames, 5, rng)  # (T, 5)
    x, y, angle, scale, turn = here[:, None] * ((12,), (10,), (0.18,), (0.2,), (0.25,)) + drift.T * (
        (2.0,),
        (2.0,),
        (0.03,),
        (0.02,),
        (0.05,),
    )
    unit = 40.0 * (1.0 + scale)
    narrow = 1.0 - np.abs(turn) * 0.6
    cos, sin = np.cos(angle), np.sin(angle)
    maps = np.empty((num_frames, 2, 3))
    maps[:, 0, 0], maps[:, 0, 1] = unit * cos * narrow, -unit * sin
    maps[:, 1, 0], maps[:, 1, 1] = unit * sin * narrow, unit * cos
    # The point that stays in the middle of the frame is a little above the nose's tip.
    middle = np.array([0.0, 0.75])
    maps[:, :, 2] = SIZE / 2 - maps[:, :, :2] @ middle
    maps[:, 0, 2] += x
    maps[:, 1, 2] += y
    return maps


def to_pixels(points: NDArray[np.float64], maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points in face units (T, P, 2) -> pixels of the frame (T, P, 2)."""
    return points @ maps[:, :, :2].transpose(0, 2, 1) + maps[:, None, :, 2]


def draw_blinks(num_frames: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(T,) bool: about one blink in four seconds, three frames each."""
    starts = rng.uniform(size=num_frames) < 1 / (4 * FRAMES_PER_S)
    return np.convolve(starts, np.ones(3), mode="full")[:num_frames] > 0


def film(
    painting: Painting, maps: NDArray[np.float64], camera: Camera, rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """The frames of a clip as YUV 4:2:0 planes below each other, (SIZE * 3 / 2, SIZE) uint8 each."""
    num_frames = len(maps)
    # From the canvas to face units, then to the frame.
    to_units = np.array([[1 / UNIT, 0.0, -ORIGIN[0] / UNIT], [0.0, 1 / UNIT, -ORIGIN[1] / UNIT], [0.0, 0.0, 1.0]])
    from_canvas = maps @ to_units  # (T, 2, 3)
    y, x = np.mgrid[-0.5 : 0.5 : SIZE * 1j, -0.5 : 0.5 : SIZE * 1j]
    slope = camera.light_slope * (np.cos(camera.light_angle) * x + np.sin(camera.light_angle) * y)
    light = (camera.exposure * (1.0 + slope)).astype(np.float32)
    brightness = 1.0 + camera.flicker * _drift(num_frames, 1, rng)[:, 0]
    # One large picture of noise, looked at through a window that jumps: as good as new noise, and much cheaper.
    noise = np.rint(camera.noise * rng.standard_normal((SIZE + 96, SIZE + 96), np.float32)).astype(np.int16)
    corners = rng.integers(0, 96, size=(num_frames, 2))
    for i in range(num_frames):
        frame = cv2.warpAffine(
            painting.frame(i), from_canvas[i], (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        planes: NDArray[Any] = cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420)  # (SIZE * 3 / 2, SIZE)
        luma = planes[:SIZE]
        if camera.blur > 0.3:
            cv2.GaussianBlur(luma, (5, 5), camera.blur, dst=luma)
        cv2.multiply(luma, light, dst=luma, scale=float(brightness[i]), dtype=cv2.CV_8U)
        top, left = corners[i]
        cv2.add(luma, noise[top : top + SIZE, left : left + SIZE], dst=luma, dtype=cv2.CV_8U)
        yield planes


def write_mp4(path: Path, frames: Iterable[NDArray[np.uint8]], samples: NDArray[np.float32], crf: int) -> None:
    """Write H.264 at 25 frames per second and AAC at 16 kHz mono; both start at time 0.

    Args:
        path: of the mp4.
        frames: YUV 4:2:0 planes, as `film` yields.
        samples: (S,) in [-1, 1].
        crf: H.264's constant rate factor.
    """
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAMES_PER_S)
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.options = {"preset": "ultrafast", "crf": str(crf), "threads": "1", "g": "50"}
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        audio.bit_rate = 64000
        audio.options = {"aac_coder": "fast"}
        for planes in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(video.encode())
        # The encoder takes 1,024 samples at a time; what the first ones are delayed by, the mp4's edit list takes back.
        for start in range(0, len(samples), 1024):
            block = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
            container.mux(audio.encode(block))
        container.mux(audio.encode())


def _drift(num_frames: int, num: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(T, num) slow noise of unit variance: an autoregression that forgets in about two seconds, smoothed once more."""
    keep = 0.98
    steps = rng.standard_normal((num_frames + 50, num)) * np.sqrt(1 - keep**2)
    steps[0] = rng.standard_normal(num)
    slow = lfilter([1.0], [1.0, -keep], steps, axis=0)
    return lfilter(np.ones(5) / 5, [1.0], slow, axis=0)[50:]
