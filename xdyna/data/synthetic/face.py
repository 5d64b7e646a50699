"""The 68 face points on a head, as a function of expression and of the face's own shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

#: Height of the 68 points of a calm face, in vertical head radii.
FACE_HEIGHT = 1.42


@dataclass(frozen=True)
class FaceShape:
    """What tells one face from another; 1 is average.

    Attributes:
        jaw: breadth of the jaw.
        eyes: size of the eyes.
        apart: distance between the eyes.
        nose: breadth of the nose.
        lips: fullness of the lips.
    """

    jaw: float = 1.0
    eyes: float = 1.0
    apart: float = 1.0
    nose: float = 1.0
    lips: float = 1.0


def random_face(rng: np.random.Generator) -> FaceShape:
    """A face of its own."""
    jaw, eyes, apart, nose, lips = (float(rng.uniform(1 - s, 1 + s)) for s in (0.15, 0.12, 0.1, 0.3, 0.3))
    return FaceShape(jaw, eyes, apart, nose, lips)


def face_points(expression: FloatArray, shape: FaceShape) -> FloatArray:
    """The 68 points [F, 68, 3] in head radii (x right, y down, z to the camera) of expressions [F, 4]."""
    mouth, smile, brow, eye = (expression[:, k, None] for k in range(4))
    points = np.zeros((len(expression), 68, 3))
    _jaw(points, mouth, shape)
    _brows(points, brow, shape)
    points[:, 27:31, 1] = np.linspace(-0.10, 0.22, 4)
    points[:, 31:36, 0] = np.linspace(-0.17, 0.17, 5) * shape.nose
    points[:, 31:36, 1] = 0.28 + np.asarray([0.0, 0.03, 0.05, 0.03, 0.0])
    lid = np.asarray([0.0, -1.0, -1.0, 0.0, 0.75, 0.75])
    across = np.asarray([-1.0, -0.4, 0.4, 1.0, 0.4, -0.4]) * 0.215 * shape.eyes
    for start, sign in ((36, -1), (42, 1)):
        points[:, start : start + 6, 0] = sign * 0.39 * shape.apart + across
        points[:, start : start + 6, 1] = -0.09 + lid * (0.012 + 0.135 * eye) * shape.eyes
    _mouth(points, mouth, smile, shape)
    points[..., 2] = np.sqrt(np.clip(1.05 - points[..., 0] ** 2, 0, None))
    points[:, 27:36, 2] += 0.12
    return points


def _jaw(points: FloatArray, mouth: FloatArray, shape: FaceShape) -> None:
    turn = np.pi * np.arange(17) / 16
    low = np.sin(turn)
    points[:, :17, 0] = -0.95 * np.cos(turn) * (1 + (shape.jaw - 1) * low)
    points[:, :17, 1] = 0.02 + 0.95 * low ** (1.2 / shape.jaw) + 0.14 * np.maximum(mouth, 0) * low**4


def _brows(points: FloatArray, brow: FloatArray, shape: FaceShape) -> None:
    """Raised brows arch; lowered ones sink most at their inner ends, which looks angry."""
    inner = np.linspace(0, 1, 5)  # 0 at the temple, 1 above the nose
    arch = np.asarray([0.0, 0.06, 0.08, 0.06, 0.01])
    height = -0.38 - arch - (0.10 + 0.07 * inner * (brow < 0)) * brow
    across = np.linspace(0.68, 0.17, 5) * shape.apart
    points[:, 17:22, 0], points[:, 17:22, 1] = -across, height
    points[:, 22:27, 0], points[:, 22:27, 1] = across[::-1], height[:, ::-1]


def _mouth(points: FloatArray, mouth: FloatArray, smile: FloatArray, shape: FaceShape) -> None:
    half = 0.33 + 0.10 * smile - 0.07 * mouth
    opening = 0.015 + 0.30 * np.clip(mouth, 0, 1.2)
    corner = 0.55 - 0.10 * smile
    outer = np.asarray([-1, -0.6, -0.25, 0, 0.25, 0.6, 1, 0.6, 0.25, 0, -0.25, -0.6])
    height = np.asarray([0, -0.07, -0.09, -0.075, -0.09, -0.07, 0, 0.08, 0.10, 0.105, 0.10, 0.08]) * shape.lips
    drop = np.asarray([0, 0, 0, 0, 0, 0, 0, 0.75, 0.95, 1.0, 0.95, 0.75])
    bow = (1 - outer**2) * 0.10
    points[:, 48:60, 0] = half * outer
    points[:, 48:60, 1] = corner + smile * bow + height * 0.8 + opening * (drop - 0.15 * (drop == 0) * (1 - outer**2))
    inner = np.asarray([-0.85, -0.3, 0, 0.3, 0.85, 0.3, 0, -0.3])
    drop = np.asarray([0.1, 0, 0, 0, 0.1, 0.92, 0.97, 0.92])
    bow = (1 - inner**2) * 0.10
    points[:, 60:68, 0] = half * inner
    points[:, 60:68, 1] = corner + smile * bow + opening * (drop - 0.12 * (1 - inner**2) * (drop < 0.5))
