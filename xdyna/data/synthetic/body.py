"""Proportions of a person and the step from pose parameters to joints, hands and face points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.motion import COLUMN, Motion

FloatArray = NDArray[np.float64]


#: Nose, right and left eye, right and left ear on the head, in head radii.
_HEAD_JOINTS = np.asarray(
    [[0, 0.22, 1.05], [-0.36, -0.08, 0.9], [0.36, -0.08, 0.9], [-1.0, 0.02, 0.0], [1.0, 0.02, 0.0]]
)


@dataclass(frozen=True)
class Body:
    """Lengths as fractions of the body's height (which is 1), and one factor for how broad the limbs are."""

    head_rx: float = 0.072
    head_ry: float = 0.095
    neck: float = 0.026
    torso: float = 0.285
    shoulder: float = 0.108
    hip: float = 0.055
    upper_arm: float = 0.155
    forearm: float = 0.135
    hand: float = 0.055
    leg: float = 0.225  # thigh; the shin is as long
    ankle: float = 0.04  # ankle above the ground
    girth: float = 1.0


@dataclass(frozen=True, eq=False)
class Figure:
    """A person over F frames in body heights: x to the right of the stage's middle, y down, the ground at y = 0.

    Attributes:
        joints: [F, 18, 2] in OpenPose order.
        hands: [F, 2, 21, 2] left hand, right hand; wrist first, thumb to little finger.
        face: [F, 68, 2].
        head: [F, 2] the head's centre.
        head_axes: [F, 2, 2] the head's unit vectors to the image's right and down.
        hips: [F, 2] the middle of the hips.
        yaw: [F] how far the body is turned, radians.
        head_yaw: [F] how far the head is turned, radians.
        expression: [F, 4] mouth opening, smile, brow height, eye opening.
    """

    joints: FloatArray
    hands: FloatArray
    face: FloatArray
    head: FloatArray
    head_axes: FloatArray
    hips: FloatArray
    yaw: FloatArray
    head_yaw: FloatArray
    expression: FloatArray


def random_body(rng: np.random.Generator) -> Body:
    """A body of plausible proportions."""

    def near(value: float, spread: float) -> float:
        return float(value * rng.uniform(1 - spread, 1 + spread))

    return Body(
        head_rx=near(0.073, 0.08),
        head_ry=near(0.095, 0.06),
        torso=near(0.285, 0.05),
        shoulder=near(0.108, 0.12),
        hip=near(0.055, 0.12),
        upper_arm=near(0.155, 0.06),
        forearm=near(0.135, 0.06),
        leg=near(0.225, 0.05),
        girth=near(1.08, 0.18),
    )


def place(body: Body, motion: Motion, times_s: FloatArray) -> Figure:
    """The person at the given times [F]."""
    pose = motion(times_s)

    def column(name: str) -> FloatArray:
        return np.asarray(pose[:, COLUMN[name]])

    yaw = column("yaw")
    hips = np.stack([column("sway_x"), -(body.ankle + 1.985 * body.leg - column("dip") + column("jump"))], -1)
    up = _direction(column("lean"))  # [F, 2], pointing up
    neck = hips + up * body.torso
    across = _turn(np.stack([np.ones_like(yaw), np.zeros_like(yaw)], -1), column("tilt") + 0.5 * column("lean"))
    joints = np.zeros((len(pose), 18, 2))
    joints[:, 1] = neck
    hands = np.zeros((len(pose), 2, 21, 2))
    for sign, side, first, leg_first in ((-1, "right", 2, 8), (1, "left", 5, 11)):
        width = np.cos(yaw)[:, None] * across * sign
        joints[:, first] = neck + width * body.shoulder + up * -0.012
        _arm(joints, hands, first, sign, column, side, body, 0.5 * column("lean"))
        joints[:, leg_first] = hips + width * body.hip
        _leg(joints, leg_first, sign, column, side, body)
    head_angle = column("head_tilt") + 0.5 * column("lean")
    down = -_direction(head_angle)
    head = neck - down * (body.neck + body.head_ry * 0.9)
    axes = np.stack([np.stack([down[:, 1], -down[:, 0]], -1), down], 1)
    head_yaw = np.clip(column("head_turn") + 0.7 * yaw, -0.9, 0.9)
    expression = np.stack([column("mouth_open"), column("smile"), column("brow"), motion.eye_open(times_s)], -1)
    figure = Figure(joints, hands, np.zeros((len(pose), 68, 2)), head, axes, hips, yaw, head_yaw, expression)
    figure.face[:] = on_head(figure, body, _face_template(expression))
    joints[:, [0, 14, 15, 16, 17]] = on_head(figure, body, np.broadcast_to(_HEAD_JOINTS, (len(pose), 5, 3)))
    return figure


def on_head(figure: Figure, body: Body, local: FloatArray) -> FloatArray:
    """Points given on the head, [F, N, 3] in head radii (x right, y down, z to the camera), as [F, N, 2] on the stage.

    Turning the head moves near points sideways and squeezes the far cheek, as a ball's surface does.
    """
    yaw = figure.head_yaw[:, None]
    across = local[..., 0] * np.cos(yaw) + local[..., 2] * np.sin(yaw) * 0.75
    offset = np.stack([across * body.head_rx, local[..., 1] * body.head_ry], -1)
    return np.asarray(figure.head[:, None] + np.einsum("fnk,fkd->fnd", offset, figure.head_axes))


def _direction(angle: FloatArray) -> FloatArray:
    """Unit vectors [F, 2] that lean by `angle` from straight up."""
    return np.stack([np.sin(angle), -np.cos(angle)], -1)


def _turn(vectors: FloatArray, angle: FloatArray) -> FloatArray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([vectors[:, 0] * cos - vectors[:, 1] * sin, vectors[:, 0] * sin + vectors[:, 1] * cos], -1)


def _arm(
    joints: FloatArray,
    hands: FloatArray,
    first: int,
    sign: int,
    column: Callable[[str], FloatArray],
    side: str,
    body: Body,
    lean: FloatArray,
) -> None:
    """Fill elbow, wrist and hand of one arm."""
    angle = column(f"{side}_arm_a") - sign * lean
    bent = angle + column(f"{side}_arm_b")
    upper = np.stack([sign * np.sin(angle), np.cos(angle)], -1)
    lower = np.stack([sign * np.sin(bent), np.cos(bent)], -1)
    joints[:, first + 1] = joints[:, first] + upper * body.upper_arm
    wrist = joints[:, first + 1] + lower * (body.forearm * column(f"{side}_arm_z"))[:, None]
    joints[:, first + 2] = wrist
    spread = np.asarray([0.75, 0.28, 0.05, -0.18, -0.42]) * -sign
    reach = np.asarray([0.75, 1.0, 1.05, 1.0, 0.85]) * body.hand
    hand = hands[:, 1 if sign < 0 else 0]
    hand[:, 0] = wrist
    for finger in range(5):
        along = _turn(lower, np.full(len(lower), spread[finger]))
        for joint, part in enumerate((0.45, 0.65, 0.83, 1.0)):
            hand[:, 1 + 4 * finger + joint] = wrist + along * (reach[finger] * part)


def _leg(joints: FloatArray, first: int, sign: int, column: Callable[[str], FloatArray], side: str, body: Body) -> None:
    """Fill knee and ankle of one leg: the foot is placed, the knee follows (bent outwards, as seen from the front)."""
    hip = joints[:, first]
    rise = column("jump") + column(f"{side}_foot_lift") + body.ankle
    ankle = np.stack([0.3 * column("sway_x") + sign * (body.hip + column(f"{side}_foot_x")), -rise], -1)
    gap = ankle - hip
    length = np.linalg.norm(gap, axis=-1, keepdims=True)
    reach = np.minimum(length, 1.99 * body.leg)
    gap = gap / np.maximum(length, 1e-6)
    ankle = hip + gap * reach
    outwards = np.stack([gap[:, 1], -gap[:, 0]], -1) * sign
    bulge = np.sqrt(np.maximum(body.leg**2 - (reach / 2) ** 2, 0)) * 0.5
    joints[:, first + 1] = (hip + ankle) / 2 + outwards * bulge
    joints[:, first + 2] = ankle


def _face_template(expression: FloatArray) -> FloatArray:
    """The 68 points on the head, [F, 68, 3] in head radii."""
    mouth, smile, brow, eye = (expression[:, k, None] for k in range(4))
    count = len(expression)
    points = np.zeros((count, 68, 3))
    turn = np.pi * np.arange(17) / 16
    points[:, :17, 0] = -0.95 * np.cos(turn)
    points[:, :17, 1] = 0.02 + 0.95 * np.sin(turn) ** 1.2 + 0.1 * np.maximum(mouth, 0) * np.sin(turn) ** 4
    arch = np.asarray([0.0, 0.06, 0.08, 0.06, 0.01])
    for start, sign in ((17, -1), (22, 1)):
        across = np.linspace(0.66, 0.16, 5) if sign < 0 else np.linspace(0.16, 0.66, 5)
        points[:, start : start + 5, 0] = sign * across
        points[:, start : start + 5, 1] = -0.30 - (arch if sign < 0 else arch[::-1]) - 0.10 * brow
    points[:, 27:31, 1] = np.linspace(-0.10, 0.22, 4)
    points[:, 31:36, 0] = np.linspace(-0.16, 0.16, 5)
    points[:, 31:36, 1] = 0.30 + np.asarray([0.0, 0.03, 0.05, 0.03, 0.0])
    lid = np.asarray([0.0, -1.0, -1.0, 0.0, 0.8, 0.8])
    for start, centre in ((36, -0.36), (42, 0.36)):
        points[:, start : start + 6, 0] = centre + np.asarray([-0.17, -0.06, 0.06, 0.17, 0.06, -0.06])
        points[:, start : start + 6, 1] = -0.08 + lid * (0.02 + 0.085 * eye)
    _mouth(points, mouth, smile)
    points[..., 2] = np.sqrt(np.clip(1.05 - points[..., 0] ** 2, 0, None))
    points[:, 27:36, 2] += 0.12
    return points


def _mouth(points: FloatArray, mouth: FloatArray, smile: FloatArray) -> None:
    half = 0.27 + 0.07 * smile - 0.04 * mouth
    opening = 0.02 + 0.20 * np.clip(mouth, 0, 1.2)
    corner = 0.55 - 0.06 * smile
    outer = np.asarray([-1, -0.6, -0.25, 0, 0.25, 0.6, 1, 0.6, 0.25, 0, -0.25, -0.6])
    height = np.asarray([0, -0.07, -0.09, -0.075, -0.09, -0.07, 0, 0.08, 0.10, 0.105, 0.10, 0.08])
    drop = np.asarray([0, 0, 0, 0, 0, 0, 0, 0.75, 0.95, 1.0, 0.95, 0.75])
    sag = (1 - outer**2) * 0.06
    points[:, 48:60, 0] = half * outer
    points[:, 48:60, 1] = corner + smile * sag + height * 0.8 + opening * (drop - 0.15 * (drop == 0) * (1 - outer**2))
    inner = np.asarray([-0.85, -0.3, 0, 0.3, 0.85, 0.3, 0, -0.3])
    drop = np.asarray([0.1, 0, 0, 0, 0.1, 0.92, 0.97, 0.92])
    points[:, 60:68, 0] = half * inner
    points[:, 60:68, 1] = (
        corner + smile * (1 - inner**2) * 0.06 + opening * (drop - 0.12 * (1 - inner**2) * (drop < 0.5))
    )
