"""Where a face is: 68 landmarks in every frame of a video, from MediaPipe's FaceMesh or from files.

The 68 points are those of the iBUG scheme that dlib made common: 0-16 jaw, 17-26 brows, 27-35 nose, 36-47 eyes,
48-59 outer lips, 60-67 inner lips, each part from the left of the picture to the right.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmspeech.errors import BadItem, UserError

# FaceMesh's vertex for each of the 68 points. Corners, bridge and chin are vertices by name; the points between two
# of them are the vertices of FaceMesh's own contours (face oval, brows, eyes, nose, lips) that lie nearest to equal
# shares of the arc, measured on the average of six speakers of GRID.
MESH_TO_68 = (
    *(127, 234, 93, 132, 172, 136, 150, 176, 152, 377, 378, 365, 397, 361, 323, 454, 356),  # jaw
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # brows
    *(168, 197, 5, 1, 98, 97, 2, 326, 327),  # nose: bridge, base
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
    *(61, 39, 37, 0, 267, 269, 291, 321, 314, 17, 84, 91),  # outer lips
    *(78, 81, 13, 311, 308, 402, 14, 178),  # inner lips
)
MAX_FACES = 4
PROBE_EVERY = 25  # frames between two looks for further faces
SAME_FACE = 0.3  # overlap (intersection over union) from which two boxes are one face
MIN_FACE = 1.0  # pixels; points that lie closer together are no face: many detectors write zeros where none is


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of one face in a video."""

    points: np.ndarray  # (T, 68, 2) float32, pixels; nan where the face was not found
    num_faces: int = 1  # how many faces the video shows, as far as is known; `points` are those of the largest


def read_landmarks(folder: Path, video: str) -> Landmarks:
    """Landmarks from FOLDER/SPLIT/SPEAKER/CLIP.npy, named like the last parts of the video's path (or fewer of them).

    Frames whose points are not all finite, or fall together (zeros), are frames without a face: nan.
    Raises BadItem if there is no such file, or it does not hold (T, 68, 2) numbers.
    """
    parts = Path(video).with_suffix(".npy").parts[-3:]
    candidates = [folder.joinpath(*parts[first:]) for first in range(len(parts))]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise BadItem(f"{candidates[0]}: no landmarks for {video}; add the file, or detect them (no --landmarks)")
    try:
        points = np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise BadItem(f"{path}: expected an array of landmarks ({error}); write it again") from None
    if points.ndim != 3 or points.shape[1:] != (68, 2) or points.dtype.kind not in "fiu":
        raise BadItem(
            f"{path}: expected numbers of shape (T, 68, 2), found {points.dtype} {points.shape}; mend the file"
        )
    points = without_false_faces(points)
    return Landmarks(points, num_faces=int(np.isfinite(points).any()))


def without_false_faces(points: np.ndarray) -> np.ndarray:
    """Landmarks (T, 68, 2) as float32, nan in frames whose points are not all finite or spread over under a pixel."""
    with np.errstate(over="ignore"):  # beyond float32 they become inf, which is no face either
        points = points.astype(np.float32)
    finite = np.isfinite(points).all(axis=(1, 2))
    spread = np.ptp(np.where(finite[:, None, None], points, 0), axis=1).max(axis=1)  # (T,)
    points[spread < MIN_FACE] = np.nan
    return points


def detect_landmarks(video: Callable[[], Iterable[np.ndarray]], piece: int | None = None) -> Landmarks:
    """Find a face in every frame of a video; of several faces, the one that is largest on the average.

    Args:
        video: gives the frames, (H, W, 3) uint8 RGB, from the start each time it is called. FaceMesh follows one
            face twice as fast as it looks for several, so single frames are searched first.
        piece: number of frames after which the largest face is chosen anew, for recordings of many shots; by default
            one is followed to the end.

    Raises:
        UserError: MediaPipe is not installed.
    """
    with _quiet():
        probed = [_faces(_mesh(True, MAX_FACES), frame) for t, frame in enumerate(video()) if t % PROBE_EVERY == 0]
        alone = all(len(faces) <= 1 for faces in probed)
        mesh = _mesh(False, 1 if alone else MAX_FACES)
        mesh.reset()
        faces = [_faces(mesh, frame) for frame in video()]
    size = piece or max(1, len(faces))
    found = [largest_face(faces[start : start + size]) for start in range(0, max(1, len(faces)), size)]
    return Landmarks(np.concatenate([part.points for part in found]), max(part.num_faces for part in found))


def largest_face(faces: list[list[np.ndarray]]) -> Landmarks:
    """Link the faces of successive frames by overlap and keep the track with the largest mean box.

    The mean runs over all frames, a missing face counting as zero: a poster that flashes by does not win.

    Args:
        faces: for each frame the faces found in it, (68, 2) each.
    """
    tracks: list[dict[int, np.ndarray]] = []  # frame -> face
    for t, found in enumerate(faces):
        open_tracks = [track for track in tracks]
        # The largest face chooses first; each track takes one face of a frame.
        for face in sorted(found, key=_area, reverse=True):
            overlaps = [_overlap(face, track[max(track)]) for track in open_tracks]
            if overlaps and max(overlaps) >= SAME_FACE:
                open_tracks.pop(int(np.argmax(overlaps)))[t] = face
            else:
                tracks.append({t: face})
    points = np.full((len(faces), 68, 2), np.nan, np.float32)
    if tracks:
        for t, face in max(tracks, key=lambda track: sum(map(_area, track.values()))).items():
            points[t] = face
    return Landmarks(points, num_faces=max(map(len, faces), default=0))


def check_detector() -> None:
    """Raise UserError if MediaPipe is missing, before any work is begun."""
    try:
        import mediapipe

        mediapipe.solutions.face_mesh  # noqa: B018  later releases import well but ship no such model
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"mediapipe: expected the release with FaceMesh to find faces, found none ({error}); run "
            "`bin/setup synth video` on Python 3.11 or 3.12, or give landmark files with --landmarks DIR"
        ) from None


def _faces(mesh: Any, frame: np.ndarray) -> list[np.ndarray]:
    """The faces that FaceMesh sees in an RGB frame: a list of (68, 2) float32 in pixels."""
    height, width = frame.shape[:2]
    found = mesh.process(np.ascontiguousarray(frame)).multi_face_landmarks or []
    picked = [[face.landmark[vertex] for vertex in MESH_TO_68] for face in found]
    return [np.array([(point.x * width, point.y * height) for point in face], np.float32) for face in picked]


@functools.cache
def _mesh(still: bool, max_faces: int) -> Any:
    check_detector()
    import mediapipe

    return mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=still, max_num_faces=max_faces)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MediaPipe's C++ part writes warnings for every clip to descriptor 2, past all settings: not to our users."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _box(face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return face.min(axis=0), face.max(axis=0)


def _area(face: np.ndarray) -> float:
    return float(np.prod(np.ptp(face, axis=0)))


def _overlap(face: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of the boxes of two faces."""
    (low, high), (other_low, other_high) = _box(face), _box(other)
    shared = float(np.prod(np.clip(np.minimum(high, other_high) - np.maximum(low, other_low), 0, None)))
    return shared / max(_area(face) + _area(other) - shared, 1e-9)
