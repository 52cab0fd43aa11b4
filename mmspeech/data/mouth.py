"""Face landmarks -> mouth track: every frame turned, scaled and cut so that the lips stand still in 96x96 pixels.

As in the public AV-HuBERT preparation: missing landmarks are interpolated; a similarity transform takes five points
of the face (nose and eye corners), averaged over 12 frames, to a mean face of 256x256 pixels; the crop is centred on
the mean of the mouth's 20 points of that very frame.
"""

import math
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from mmspeech.data.video import SIZE
from mmspeech.errors import BadItem

WINDOW = 12  # frames whose mean landmarks give one transform
FACE_SIZE = 256  # pixels of the aligned frame that the crop is taken from
ANCHORS = (33, 36, 39, 42, 45)  # base of the nose, outer and inner corners of the eyes
MOUTH, INNER_LIPS = slice(48, 68), slice(60, 68)
# The anchors in the aligned frame: Procrustes mean of six speakers of GRID (FaceMesh, median over a clip), made
# symmetric and upright, scaled so that the mouth is 50 pixels wide, its centre at (128, 190).
MEAN_FACE = np.array([[128.0, 164.7], [82.3, 114.6], [110.2, 116.2], [145.8, 116.2], [173.7, 114.6]])
# Container, landmarks and audio may disagree by the odd frame at the end; what is missing repeats the last frame.
SPARE_FRAMES = 2


def interpolate(points: np.ndarray) -> np.ndarray:
    """Fill frames without a face linearly from their neighbours, at the ends with the nearest; (T, 68, 2) both ways.

    Raises BadItem if no frame has a face.
    """
    found = np.isfinite(points).all(axis=(1, 2))
    if not found.any():
        raise BadItem("expected a face in the video, found none; the clip is left out")
    if found.all():
        return points
    times = np.arange(len(points))
    flat = points.reshape(len(points), -1)
    filled = [np.interp(times, times[found], column[found]) for column in flat.T]
    return np.stack(filled, axis=1).reshape(points.shape).astype(points.dtype)


def align(points: np.ndarray) -> np.ndarray:
    """The transform of every frame to the mean face: (T, 68, 2) without gaps -> (T, 2, 3), x' = A x + b.

    Frame t uses the mean landmarks of frames t .. t + 11; the last 11 reuse the last such transform.
    """
    window = min(WINDOW, len(points))
    sums = np.cumsum(np.concatenate([np.zeros_like(points[:1], np.float64), points]), axis=0)
    means = (sums[window:] - sums[:-window]) / window  # (T - window + 1, 68, 2)
    transforms = similarity(means[:, ANCHORS], MEAN_FACE)
    return np.concatenate([transforms, np.repeat(transforms[-1:], window - 1, axis=0)])


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation, scaling and shift of points (T, P, 2) to (P, 2); returns (T, 2, 3).

    With points as complex numbers it is z' = k z + c, and k is a one-dimensional regression.
    """
    z, goal = source @ np.array([1, 1j]), target @ np.array([1, 1j])  # (T, P), (P,)
    z_mean, goal_mean = z.mean(axis=1, keepdims=True), goal.mean()
    spread = (np.abs(z - z_mean) ** 2).sum(axis=1)
    k = (np.conj(z - z_mean) * (goal - goal_mean)).sum(axis=1) / np.maximum(spread, 1e-9)
    c = goal_mean - k * z_mean[:, 0]
    rows = np.stack([k.real, -k.imag, c.real, k.imag, k.real, c.imag], axis=1)
    return rows.reshape(-1, 2, 3)


def apply(transforms: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (T, P, 2) after each frame's transform (T, 2, 3)."""
    return np.einsum("tij,tpj->tpi", transforms[:, :, :2], points) + transforms[:, None, :, 2]


def corners(transforms: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Left and top of every frame's crop in the aligned frame, clamped to it: (T, 2) int64."""
    centres = apply(transforms, points[:, MOUTH]).mean(axis=1)
    return np.clip(np.rint(centres).astype(np.int64) - SIZE // 2, 0, FACE_SIZE - SIZE)


def crop_mouths(frames: Iterable[np.ndarray], points: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the T crops (96, 96) uint8 of a video, one frame in memory at a time.

    Args:
        frames: (H, W) uint8 grey, T of them or at most two fewer.
        points: (T, 68, 2) landmarks without gaps.

    Raises:
        BadItem: the video ends earlier, or the landmarks have no extent, or more than the picture.
    """
    transforms = align(points)
    shifted = transforms.copy()
    # Warped straight to the crop: the pixels of warping to 256x256 and cutting, at a seventh of the work.
    shifted[:, :, 2] -= corners(transforms, points)
    # Bilinear sampling skips pixels of faces much larger than the mean face; those frames are shrunk first.
    with np.errstate(divide="ignore"):
        pixels = float((1 / np.sqrt(np.linalg.det(transforms[:, :, :2]))).mean())  # of the video in one of the crop
    if not math.isfinite(pixels):
        raise BadItem("expected landmarks of a face, found eyes and nose in one point; mend the file of landmarks")
    shrink = max(1, int(pixels))
    shifted[:, :, 2] += shifted[:, :, :2].sum(axis=2) * (shrink - 1) / 2  # the centre of each block of pixels
    shifted[:, :, :2] *= shrink
    count, crop = 0, None
    for frame, transform in zip(frames, shifted, strict=False):
        if shrink > min(frame.shape):
            height, width = frame.shape
            raise BadItem(
                f"expected landmarks in a picture of {width}x{height} pixels, found a face {shrink} times as large as "
                "its crop; mend the file of landmarks"
            )
        if shrink > 1:
            height, width = (extent // shrink for extent in frame.shape)
            whole_blocks = frame[: height * shrink, : width * shrink]
            frame = cv2.resize(whole_blocks, (width, height), interpolation=cv2.INTER_AREA)
        crop = cv2.warpAffine(frame, transform, (SIZE, SIZE), flags=cv2.INTER_LINEAR)
        yield crop
        count += 1
    if crop is None or count < len(points) - SPARE_FRAMES:
        raise BadItem(f"expected {len(points)} video frames, found {count}; the file may be cut off")
    for _ in range(count, len(points)):
        yield crop


def fit_length(points: np.ndarray, num_frames: int) -> np.ndarray:
    """Landmarks (T', 68, 2) of exactly `num_frames` frames; BadItem if more than two are missing or spare."""
    if abs(len(points) - num_frames) > SPARE_FRAMES or not len(points):
        raise BadItem(f"expected landmarks of {num_frames} frames (25 per second), found {len(points)}")
    missing = max(0, num_frames - len(points))
    return np.concatenate([points[:num_frames], np.repeat(points[-1:], missing, axis=0)])


def lip_distances(points: np.ndarray, lips: np.ndarray | None = None) -> np.ndarray:
    """How far the lips lie from the crop's centre in every frame: (T,) pixels of the crop.

    Args:
        points: (T, 68, 2) landmarks that the crop is made with.
        lips: (T, 2) where the lips are in the video, if known from elsewhere; else the mean of the inner lips.
    """
    transforms = align(points)
    lips = points[:, INNER_LIPS].mean(axis=1) if lips is None else lips
    centres = corners(transforms, points) + (SIZE - 1) / 2
    return np.linalg.norm(apply(transforms, lips[:, None])[:, 0] - centres, axis=1)
