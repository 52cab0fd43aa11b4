"""How the faces of the embedded corpus are drawn: what stands still once per speaker, mouth and jaw in every frame."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from mmspeech.corpora.synth_face import INNER_X, JAW_DROP, JAW_TOP, OUTER_X, Color, Look, as_color, landmarks

CANVAS = 320  # pixels
UNIT = 44.0  # pixels of the canvas per face unit
ORIGIN = (160.0, 127.0)  # where the canvas has the origin
JAW_LEFT = 80  # pixels of the canvas left (and right) of all that the jaw moves

# Landmarks are too few for a round outline: splines through them, as matrices, give the polygons that are drawn.
_OUTER_CURVE = CubicSpline(OUTER_X, np.eye(7))(np.linspace(-1.0, 1.0, 17))  # (17, 7)
_INNER_CURVE = CubicSpline(INNER_X, np.eye(5))(np.linspace(-0.82, 0.82, 13))  # (13, 5)


class Painter:
    """Draws one speaker: a still face on a canvas, then mouth and jaw for each frame."""

    def __init__(self, look: Look) -> None:
        self.look = look
        neutral = landmarks(look, np.zeros((2, 6)), np.array([False, True]))
        self.still = [_paint_still(look, points) for points in neutral]  # eyes open, eyes closed
        self.top = round(ORIGIN[1] + UNIT * JAW_TOP)

    def paint(self, mouth: NDArray[np.float64], blinks: NDArray[np.bool_], points: NDArray[np.float64]) -> "Painting":
        """Prepare all frames of a clip at once; `frame(i)` of the result draws one."""
        return Painting(self, mouth, blinks, points)


class Painting:
    """The polygons of a clip's mouths, (T, points, 2) in 1/16 pixels of the part of the canvas below `JAW_TOP`."""

    def __init__(
        self, painter: Painter, mouth: NDArray[np.float64], blinks: NDArray[np.bool_], points: NDArray[np.float64]
    ) -> None:
        self.painter, self.blinks = painter, blinks
        self.drop = JAW_DROP * mouth[:, 0] / (painter.look.chin - JAW_TOP)
        upper = _OUTER_CURVE @ points[:, 48:55]  # (T, 17, 2)
        lower = _OUTER_CURVE @ points[:, [48, 59, 58, 57, 56, 55, 54]]
        inside_top = _INNER_CURVE @ points[:, 60:65]  # (T, 13, 2)
        inside_bottom = _INNER_CURVE @ points[:, [60, 67, 66, 65, 64]]
        teeth = inside_top.copy()
        teeth[:, :, 1] = np.minimum(inside_top[:, :, 1] + 0.13 * mouth[:, None, 4], inside_bottom[:, :, 1])
        tongue = inside_bottom.copy()
        tongue[:, :, 1] = np.maximum(inside_bottom[:, :, 1] - 0.16 * mouth[:, None, 5], teeth[:, :, 1])
        self.lips = self._polygon(upper, lower)
        self.upper_lip = self._polygon(upper, inside_top)
        self.inside = self._polygon(inside_top, inside_bottom)
        self.teeth = self._polygon(inside_top, teeth)
        self.tongue = self._polygon(tongue, inside_bottom)
        self.gloss = self._fixed((inside_bottom[:, 3:10] + lower[:, 5:12]) / 2)
        self.shade = self._fixed(lower[:, 4:13] + (0.0, 0.07))

    def frame(self, i: int) -> NDArray[np.uint8]:
        """Frame i on the canvas: (CANVAS, CANVAS, 3), blue, green, red."""
        look, top = self.painter.look, self.painter.top
        canvas = self.painter.still[int(self.blinks[i])].copy()
        below = canvas[top:]
        stretch = np.array([[1.0, 0.0, 0.0], [0.0, 1.0 + self.drop[i], 0.0]])
        still = self.painter.still[0][top:, JAW_LEFT:-JAW_LEFT]
        size = (CANVAS - 2 * JAW_LEFT, CANVAS - top)
        below[:, JAW_LEFT:-JAW_LEFT] = cv2.warpAffine(still, stretch, size, borderMode=cv2.BORDER_REPLICATE)
        _fill(below, self.lips[i], look.lips)
        _fill(below, self.upper_lip[i], as_color(0.86 * np.array(look.lips)))
        _fill(below, self.inside[i], as_color(0.22 * np.array(look.lips)))
        _fill(below, self.tongue[i], as_color(0.75 * np.array(look.lips)))
        _fill(below, self.teeth[i], (look.teeth * 0.94, look.teeth, look.teeth))
        cv2.polylines(below, [self.gloss[i]], False, as_color(1.12 * np.array(look.lips) + 6), 1, cv2.LINE_AA, 4)
        cv2.polylines(below, [self.shade[i]], False, as_color(0.9 * np.array(look.skin)), 2, cv2.LINE_AA, 4)
        left, right = round(ORIGIN[0] - 0.85 * UNIT), round(ORIGIN[0] + 0.85 * UNIT)
        around = below[: round(0.85 * UNIT), left:right]
        cv2.GaussianBlur(around, (3, 3), 0, dst=around)  # lips have no sharp edge
        return canvas

    def _polygon(self, there: NDArray[np.float64], back: NDArray[np.float64]) -> NDArray[np.int32]:
        return self._fixed(np.concatenate([there, back[:, ::-1]], axis=1))

    def _fixed(self, points: NDArray[np.float64]) -> NDArray[np.int32]:
        return np.rint(16 * (points * UNIT + ORIGIN - (0.0, self.painter.top))).astype(np.int32)


def _paint_still(look: Look, points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A face without a mouth, drawn at twice the size and shrunk: smooth edges."""
    rng = np.random.default_rng(look.texture)
    size, unit = 2 * CANVAS, 2 * UNIT
    skin, hair = np.array(look.skin), np.array(look.hair)

    def at(where: NDArray[np.float64] | tuple) -> NDArray[np.int32]:
        return np.rint(np.asarray(where) * unit + 2 * np.array(ORIGIN)).astype(np.int32)

    def blob(
        x: float, y: float, width: float, height: float, color: NDArray[np.float64] | Color, soft: float = 0.0
    ) -> None:
        target = image.copy() if soft else image
        cv2.ellipse(
            target, tuple(map(int, at((x, y)))), (int(width * unit), int(height * unit)), 0, 0, 360, as_color(color), -1
        )
        if soft:
            image[:] = cv2.addWeighted(image, 1.0 - soft, target, soft, 0.0)

    shade = np.linspace(1.15, 0.8, size)[:, None, None] * np.linspace(0.9, 1.1, size)[None, :, None]
    image: NDArray[Any] = np.clip(shade * look.background, 0, 255).astype(np.uint8)
    blob(0.0, 4.6, 2.6, 1.7, rng.uniform(30, 200, 3))  # shoulders
    blob(0.0, 0.0, 1.68 * look.face_width, 1.95, hair)
    cv2.rectangle(image, at((-0.75, 1.6)).tolist(), at((0.75, 3.3)).tolist(), as_color(0.82 * skin), -1)  # neck
    for side in (-1.0, 1.0):
        blob(side * 1.55 * look.face_width, 0.45, 0.17, 0.36, 0.92 * skin)
    forehead = [(1.5 * np.cos(a) * look.face_width, -0.05 - 1.35 * np.sin(a)) for a in np.linspace(0, np.pi, 13)[1:-1]]
    outline = np.concatenate([points[:17], forehead])
    cv2.fillPoly(image, [at(outline)], as_color(skin), cv2.LINE_AA)
    for side in (-1.0, 1.0):
        blob(side * 0.85, 0.75, 0.38, 0.32, skin * (0.93, 0.93, 1.03), soft=0.6)  # cheeks
        blob(side * 0.62, 0.02, 0.5, 0.28, 0.84 * skin, soft=0.6)  # sockets
    blob(0.0, -0.8, 0.8, 0.3, 1.06 * skin, soft=0.6)
    blob(0.0, 0.45, 0.12, 0.5, 1.07 * skin, soft=0.7)
    image = cv2.GaussianBlur(image, (0, 0), 5.0)  # only shading so far: soft
    if look.beard:
        stubble = image.copy()
        ring = np.concatenate(
            [points[2:15], points[[14, 13]] * (0.8, 0.95), ((0.45, 1.2), (-0.45, 1.2)), points[[3, 2]] * (0.8, 0.95)]
        )
        cv2.fillPoly(stubble, [at(ring)], as_color(0.6 * hair + 0.15 * skin))
        mask = np.any(stubble != image, axis=2).astype(np.float32) * (
            0.75 + 0.25 * rng.random((size, size), np.float32)
        )
        mask = cv2.GaussianBlur(mask, (0, 0), 3.0)[:, :, None] * look.beard * 0.8
        image = (image * (1 - mask) + stubble * mask).astype(np.uint8)
    for first in (36, 42):
        eye = points[first : first + 6]
        closed = eye[1, 1] > eye[4, 1] - 0.04
        if closed:
            cv2.polylines(image, [at(eye[[0, 5, 4, 3]])], False, as_color(0.4 * skin), 3, cv2.LINE_AA)
        else:
            mask = np.zeros((size, size), np.uint8)
            cv2.fillPoly(mask, [at(eye)], (255,), cv2.LINE_AA)
            ball = np.full_like(image, 232)
            centre = tuple(map(int, at(eye.mean(0))))
            cv2.circle(ball, centre, int(0.12 * unit), as_color(look.iris), -1, cv2.LINE_AA)
            cv2.circle(ball, centre, int(0.055 * unit), (15, 15, 15), -1, cv2.LINE_AA)
            image = np.where(mask[:, :, None] > 127, ball, image)
            cv2.polylines(image, [at(eye[:4])], False, as_color(0.35 * skin), 4, cv2.LINE_AA)
    for first in (17, 22):
        cv2.polylines(image, [at(points[first : first + 5])], False, as_color(0.7 * hair + 0.1 * skin), 9, cv2.LINE_AA)
    nose = points[31:36]
    cv2.polylines(image, [at(nose)], False, as_color(0.72 * skin), 5, cv2.LINE_AA)
    for x in (0.5, -0.5):
        blob(nose[2, 0] + x * (nose[4, 0] - nose[0, 0]) * 0.55, nose[1, 1] - 0.03, 0.07, 0.04, 0.45 * skin)
        fold = ((x * 0.9, 0.98), (x * 1.25, 1.2), (x * 1.4, 1.45))
        cv2.polylines(image, [at(fold)], False, as_color(0.86 * skin), 4, cv2.LINE_AA)
    if look.glasses:
        for x in (-0.69, 0.69):
            cv2.ellipse(
                image,
                tuple(map(int, at((x, 0.03)))),
                (int(0.5 * unit), int(0.36 * unit)),
                0,
                0,
                360,
                (35, 35, 40),
                5,
                cv2.LINE_AA,
            )
        cv2.line(image, at((-0.2, 0.0)).tolist(), at((0.2, 0.0)).tolist(), (35, 35, 40), 5, cv2.LINE_AA)
    grain = cv2.GaussianBlur(rng.normal(0.0, 14.0, (size, size, 1)).astype(np.float32), (0, 0), 1.5)
    image = np.clip(image + grain.reshape(size, size, 1), 0, 255).astype(np.uint8)
    small: NDArray[Any] = cv2.resize(image, (CANVAS, CANVAS), interpolation=cv2.INTER_AREA)
    return small


def _fill(image: NDArray[np.uint8], polygon: NDArray[np.int32], color: Color) -> None:
    cv2.fillPoly(image, [polygon], color, cv2.LINE_AA, 4)
