"""Proportions of a person and the step from pose parameters to joints, hands and face points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.face import FaceShape, face_points, random_face
from xdyna.data.synthetic.motion import COLUMN, Motion

FloatArray = NDArray[np.float64]


#: Nose, right and left eye, right and left ear on the head, in head radii.
_HEAD_JOINTS = np.asarray(
    [[0, 0.22, 1.05], [-0.36, -0.08, 0.9], [0.36, -0.08, 0.9], [-1.0, 0.02, 0.0], [1.0, 0.02, 0.0]]
)


@dataclass(frozen=True)
class Body:
    """Lengths as fractions of the body's height (about 1), one factor for how broad the limbs are, and the face."""

    head_rx: float = 0.080
    head_ry: float = 0.102
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
    face: FaceShape = field(default_factory=FaceShape)

    @property
    def hip_height(self) -> float:
        """Of the hips above the ground, legs straight."""
        return self.ankle + 1.985 * self.leg

    @property
    def head_height(self) -> float:
        """Of the head's middle above the ground, standing."""
        return self.hip_height + self.torso + self.neck + 0.9 * self.head_ry


@dataclass(frozen=True, eq=False)
class Trunk:
    """Where a person's trunk, head and legs are over F frames, in body heights.

    x counts to the right from the stage's middle, y down; the ground is at y = 0.

    Attributes:
        joints: [F, 18, 2] in OpenPose order; of a bare trunk only neck, shoulders, hips, knees and ankles.
        head: [F, 2] the head's centre.
        head_axes: [F, 2, 2] the head's unit vectors to the image's right and down.
        hips: [F, 2] the middle of the hips.
        yaw: [F] how far the body is turned, radians; positive to the image's right.
        head_yaw: [F] how far the head is turned, radians.
    """

    joints: FloatArray
    head: FloatArray
    head_axes: FloatArray
    hips: FloatArray
    yaw: FloatArray
    head_yaw: FloatArray


@dataclass(frozen=True, eq=False)
class Figure(Trunk):
    """The whole person; all 18 joints are filled.

    Attributes:
        hands: [F, 2, 21, 2] left hand, right hand; wrist first, thumb to little finger.
        face: [F, 68, 2].
        expression: [F, 4] mouth opening, smile, brow height, eye opening.
    """

    hands: FloatArray
    face: FloatArray
    expression: FloatArray


def random_body(rng: np.random.Generator, variety: float = 1.0) -> Body:
    """A body; `variety` 1 keeps to plausible proportions, 2 reaches cartoons' (small with a big head, all legs ..)."""

    def near(value: float, spread: float) -> float:
        return float(value * rng.uniform(1 - spread * variety, 1 + spread * variety))

    return Body(
        head_rx=near(0.081, 0.08),
        head_ry=near(0.102, 0.07),
        torso=near(0.285, 0.08),
        shoulder=near(0.108, 0.12),
        hip=near(0.055, 0.12),
        upper_arm=near(0.155, 0.08),
        forearm=near(0.135, 0.08),
        leg=near(0.225, 0.08),
        girth=near(1.08, 0.18),
        face=random_face(rng),
    )


def stand(body: Body, motion: Motion, times_s: FloatArray) -> Trunk:
    """Trunk, head and legs at the given times [F]."""
    pose = motion(times_s)
    column = _columns(pose)
    yaw = column("yaw")
    hips = np.stack([column("sway_x"), column("dip") - column("jump") - body.hip_height], -1)
    up = _direction(column("lean"))  # [F, 2], pointing up
    neck = hips + up * body.torso
    across = _turn(np.stack([np.ones_like(yaw), np.zeros_like(yaw)], -1), column("tilt") + 0.5 * column("lean"))
    joints = np.zeros((len(pose), 18, 2))
    joints[:, 1] = neck
    for sign, side, first, leg_first in ((-1, "right", 2, 8), (1, "left", 5, 11)):
        width = np.cos(yaw)[:, None] * across * sign
        joints[:, first] = neck + width * body.shoulder + up * -0.012
        joints[:, leg_first] = hips + width * body.hip
        _leg(joints, leg_first, sign, column, side, body)
    down = -_direction(column("head_tilt") + 0.5 * column("lean"))
    head = neck - down * (body.neck + body.head_ry * 0.9)
    axes = np.stack([np.stack([down[:, 1], -down[:, 0]], -1), down], 1)
    head_yaw = np.clip(column("head_turn") + 0.7 * yaw, -0.65, 0.65)
    return Trunk(joints, head, axes, hips, yaw, head_yaw)


def place(body: Body, motion: Motion, times_s: FloatArray) -> Figure:
    """The person at the given times [F]."""
    trunk = stand(body, motion, times_s)
    column = _columns(motion(times_s))
    joints, count = trunk.joints, len(trunk.joints)
    hands = np.zeros((count, 2, 21, 2))
    for sign, side, first in ((-1, "right", 2), (1, "left", 5)):
        _arm(joints, hands, first, sign, column, side, body, 0.5 * column("lean"))
    expression = motion.expression(times_s)
    face = on_head(trunk, body, face_points(expression, body.face))
    joints[:, [0, 14, 15, 16, 17]] = on_head(trunk, body, np.broadcast_to(_HEAD_JOINTS, (count, 5, 3)))
    return Figure(**vars(trunk), hands=hands, face=face, expression=expression)


def _columns(pose: FloatArray) -> Callable[[str], FloatArray]:
    """Access to the columns of a pose [F, P] by name."""
    return lambda name: np.asarray(pose[:, COLUMN[name]])


def on_head(trunk: Trunk, body: Body, local: FloatArray) -> FloatArray:
    """Points given on the head, [F, N, 3] in head radii (x right, y down, z to the camera), as [F, N, 2] on the stage.

    Turning the head moves near points sideways and squeezes the far cheek, as a ball's surface does.
    """
    yaw = trunk.head_yaw[:, None]
    across = local[..., 0] * np.cos(yaw) + local[..., 2] * np.sin(yaw) * 0.75
    offset = np.stack([across * body.head_rx, local[..., 1] * body.head_ry], -1)
    return np.asarray(trunk.head[:, None] + np.einsum("fnk,fkd->fnd", offset, trunk.head_axes))


def flat_on_head(trunk: Trunk, body: Body, points: FloatArray, depth: float = 0.0) -> FloatArray:
    """Points [N, 2] in head radii, all as far towards the camera, as [F, N, 2] on the stage."""
    spots = np.concatenate([points, np.full((len(points), 1), depth)], -1)
    return on_head(trunk, body, np.broadcast_to(spots, (len(trunk.head), *spots.shape)))


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
