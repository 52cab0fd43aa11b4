"""The faces of the embedded corpus: speakers' looks, and 68 landmarks in the order of iBUG-68.

Geometry is in face units: half the distance between the outer corners of the eyes is 1, the origin lies midway between
them, y points down.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

JAW_TOP = 1.32  # what lies below moves with the jaw
JAW_DROP = 0.26  # how far the chin falls when the mouth is fully open
CHIN = 2.34

# One half of a frontal face, as seen on the left of the picture; the other half mirrors it. Proportions of adults.
_JAW = (
    (-1.52, 0.05),
    (-1.50, 0.45),
    (-1.44, 0.84),
    (-1.33, 1.22),
    (-1.12, 1.58),
    (-0.86, 1.88),
    (-0.57, 2.12),
    (-0.29, 2.28),
)
_BROW = ((-1.30, -0.38), (-1.12, -0.55), (-0.86, -0.62), (-0.58, -0.58), (-0.30, -0.48))
_EYE = ((-1.0, 0.0), (-0.80, -0.11), (-0.56, -0.11), (-0.38, 0.03), (-0.57, 0.10), (-0.81, 0.10))
_NOSE = ((0.0, -0.02), (0.0, 0.25), (0.0, 0.52), (0.0, 0.78))
_NOSTRILS = ((-0.33, 0.95), (-0.17, 1.0), (0.0, 1.04), (0.17, 1.0), (0.33, 0.95))
_JAW_FOLLOWS = np.array([0, 0, 0.05, 0.15, 0.4, 0.7, 0.9, 1, 1, 1, 0.9, 0.7, 0.4, 0.15, 0.05, 0, 0])

OUTER_X = np.array([-1.0, -0.62, -0.25, 0.0, 0.25, 0.62, 1.0])  # landmarks 48-54, and back 54-59, 48
INNER_X = np.array([-0.82, -0.30, 0.0, 0.30, 0.82])  # landmarks 60-64, and back 64-67, 60
_UPPER = np.array([0.0, 0.62, 1.0, 0.86, 1.0, 0.62, 0.0])  # outline of the lips: Cupid's bow
_LOWER = np.array([0.0, 0.60, 0.95, 1.0, 0.95, 0.60, 0.0])
_INNER = np.array([0.0, 0.93, 1.0, 0.93, 0.0])
Color = tuple[float, float, float]  # blue, green, red


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one speaker looks; lengths in face units or as factors of the mean face."""

    face_width: float
    chin: float
    nose_width: float
    eye_height: float
    brow_height: float
    mouth_width: float
    mouth_y: float
    upper_lip: float
    lower_lip: float
    skin: Color
    lips: Color
    hair: Color
    iris: Color
    background: Color
    teeth: float  # brightness
    beard: float  # 0 none - 1 dense
    glasses: bool
    texture: int  # seed of freckles and stubble


def draw_look(difficulty: float, rng: np.random.Generator) -> Look:
    """A speaker's look. Difficulty brings lip colours closer to the skin and mouths further from the mean."""
    spread = 0.4 + 0.8 * difficulty
    pale, dark = np.array([170.0, 195.0, 235.0]), np.array([52.0, 78.0, 122.0])
    skin = pale + (dark - pale) * rng.beta(1.2, 1.5) + rng.normal(0.0, 6.0, 3)
    contrast = rng.uniform(0.55 - 0.35 * difficulty, 0.75 - 0.3 * difficulty)
    lips = skin * (1.0 - contrast) + contrast * np.array([70.0, 55.0, 150.0])
    hair = np.array([[30, 30, 35], [40, 60, 90], [60, 110, 150], [110, 180, 215], [170, 170, 170]])[rng.integers(5)]
    return Look(
        face_width=1.0 + 0.05 * spread * rng.uniform(-1, 1),
        chin=CHIN + 0.12 * spread * rng.uniform(-1, 1),
        nose_width=1.0 + 0.2 * spread * rng.uniform(-1, 1),
        eye_height=1.0 + 0.25 * spread * rng.uniform(-1, 1),
        brow_height=0.08 * spread * rng.uniform(-1, 1),
        mouth_width=0.56 * (1.0 + 0.14 * spread * rng.uniform(-1, 1)),
        mouth_y=1.50 + 0.05 * spread * rng.uniform(-1, 1),
        upper_lip=0.125 * (1.0 + 0.35 * spread * rng.uniform(-1, 1)),
        lower_lip=0.165 * (1.0 + 0.3 * spread * rng.uniform(-1, 1)),
        skin=as_color(skin),
        lips=as_color(lips),
        hair=as_color(hair),
        iris=as_color(np.array([[60, 50, 40], [50, 70, 90], [120, 100, 70], [140, 120, 90]])[rng.integers(4)]),
        background=as_color(rng.uniform(40, 200, 3)),
        teeth=rng.uniform(165, 235),
        beard=float(rng.uniform(0.3, 1.0)) if rng.uniform() < 0.3 else 0.0,
        glasses=bool(rng.uniform() < 0.15),
        texture=int(rng.integers(2**31)),
    )


def landmarks(look: Look, mouth: NDArray[np.float64], blinks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Where the 68 points lie, in face units; returns (T, 68, 2).

    Args:
        look: of the speaker.
        mouth: (T, 6), see `synth_lips.SHAPE`.
        blinks: (T,) whether the eyes are closed.
    """
    opening, width, rounding, tuck, _, _ = mouth.T
    jaw = np.array([*_JAW, (0.0, CHIN), *_mirrored(_JAW)]) * (look.face_width, look.chin / CHIN)
    brows = np.array([*_BROW, *_mirrored(_BROW)]) - (0.0, look.brow_height)
    nose = np.array((*_NOSE, *_NOSTRILS)) * (look.nose_width, 1.0)
    eye = np.array(_EYE) * (1.0, look.eye_height)
    eye_right = (eye * (-1.0, 1.0))[[3, 2, 1, 0, 5, 4]]
    points = np.empty((len(mouth), 68, 2))
    points[:, :48] = np.concatenate([jaw, brows, nose, eye, eye_right])
    points[:, :17, 1] += JAW_DROP * opening[:, None] * _JAW_FOLLOWS
    points[:, [37, 38, 43, 44], 1] = np.where(
        blinks[:, None], points[:, [41, 40, 47, 46], 1] - 0.02, points[:, [37, 38, 43, 44], 1]
    )

    half = look.mouth_width * (1.0 + 0.16 * width - 0.12 * rounding)
    pressed = 0.72 + 0.28 * np.clip(opening / 0.12, 0.0, 1.0)  # closed lips are thinner
    upper = look.upper_lip * pressed * (1.0 + 0.35 * rounding - 0.12 * width)
    lower = look.lower_lip * pressed * (1.0 + 0.35 * rounding - 0.12 * width) * (1.0 - 0.55 * tuck)
    corner = 0.05 * opening - 0.04 * width  # (T,) below the line where closed lips meet
    top = -0.07 * opening - 0.03 * tuck
    bottom = 0.33 * opening - 0.04 * tuck
    bottom = np.maximum(bottom, top)

    def line(profile: NDArray[np.float64], middle: NDArray[np.float64]) -> NDArray[np.float64]:
        return corner[:, None] + profile * (middle - corner)[:, None]

    x_outer, x_inner = half[:, None] * OUTER_X, half[:, None] * INNER_X
    outlines = (
        (slice(48, 55), x_outer, line(_UPPER, top - upper)),
        (slice(60, 65), x_inner, line(_INNER, top)),
        (slice(55, 60), x_outer[:, 5:0:-1], line(_LOWER, bottom + lower)[:, 5:0:-1]),
        (slice(65, 68), x_inner[:, 3:0:-1], line(_INNER, bottom)[:, 3:0:-1]),
    )
    for where, x, y in outlines:
        points[:, where, 0], points[:, where, 1] = x, y + look.mouth_y
    return points


def as_color(values: NDArray[np.float64] | Color) -> Color:
    """Three brightnesses within the range of a picture."""
    blue, green, red = np.clip(values, 0, 255).tolist()
    return blue, green, red


def _mirrored(half: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    return [(-x, y) for x, y in reversed(half)]
