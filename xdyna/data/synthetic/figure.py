"""The drawing of a person: an ordered list of filled polygons, computed for all frames of a clip at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.body import Body, Figure, on_head
from xdyna.data.synthetic.character import Character, Colour, shade

FloatArray = NDArray[np.float64]

#: The light comes from the upper left: towards it, in the image.
LIGHT = np.asarray([-0.62, -0.78])
_HALF = np.linspace(-np.pi / 2, np.pi / 2, 7)


@dataclass(frozen=True, eq=False)
class Shape:
    """A filled polygon over F frames: points [F, N, 2] on the stage (body heights), one RGB colour."""

    points: FloatArray
    colour: Colour


class Painter:
    """Collects shapes from back to front.

    Args:
        layers: tones per rounded part (1 flat, more for a smoother roundness in large pictures).
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.shapes: list[Shape] = []

    def polygon(self, points: FloatArray, colour: Colour) -> None:
        """A flat polygon [F, N, 2]."""
        self.shapes.append(Shape(points, colour))

    def limb(self, start: FloatArray, end: FloatArray, radius: tuple[float, float], colour: Colour) -> None:
        """A tapered, rounded limb from start [F, 2] to end [F, 2], lit from `LIGHT`."""
        for size, tone in self._tones():
            shift = LIGHT * (1 - size) * 0.8
            self.polygon(
                _capsule(start + shift * radius[0], end + shift * radius[1], radius[0] * size, radius[1] * size),
                shade(colour, tone),
            )

    def blob(self, points: FloatArray, colour: Colour, depth: float) -> None:
        """A rounded polygon [F, N, 2]; `depth` is how far (body heights) its tones are shifted towards the light."""
        middle = points.mean(1, keepdims=True)
        for size, tone in self._tones():
            self.polygon(middle + (points - middle) * size + LIGHT * (1 - size) * depth, shade(colour, tone))

    def _tones(self) -> list[tuple[float, float]]:
        if self.layers == 1:
            return [(1.0, 0.0)]
        along = np.linspace(0, 1, self.layers)
        return [(float(1 - 0.72 * u), float(-0.26 + 0.36 * u)) for u in along]


def paint(character: Character, now: Figure, before: Figure, layers: int) -> list[Shape]:
    """The person's shapes from back to front.

    Args:
        character: who is drawn.
        now: the person at the frames' times.
        before: the same a moment earlier: loose hair and skirts trail behind the body.
        layers: tones per rounded part.
    """
    painter = Painter(layers)
    _back_hair(painter, character, now, before)
    _legs(painter, character, now)
    _torso(painter, character, now)
    if character.bottom_kind == "skirt":
        _skirt(painter, character, now, before)
    painter.limb(now.joints[:, 1] + [0, 0.02], now.head, (0.034, 0.032), shade(character.skin, -0.12))
    _head(painter, character, now)
    for first in (2, 5):
        _arm(painter, character, now, first)
    return painter.shapes


def _capsule(start: FloatArray, end: FloatArray, start_radius: float, end_radius: float) -> FloatArray:
    """Outline [F, 14, 2] of two discs and what lies between them."""
    axis = end - start
    axis = axis / np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), 1e-6)
    side = np.stack([-axis[:, 1], axis[:, 0]], -1)
    along, across = np.cos(_HALF)[:, None], np.sin(_HALF)[:, None]
    far = end[:, None] + end_radius * (axis[:, None] * along + side[:, None] * across)
    near = start[:, None] - start_radius * (axis[:, None] * along + side[:, None] * across)
    return np.concatenate([far, near], 1)


def _ring(count: int, start: float = 0.0, stop: float = 2 * np.pi) -> FloatArray:
    turn = np.linspace(start, stop, count)
    return np.stack([np.cos(turn), np.sin(turn)], -1)


def _local(figure: Figure, body: Body, points: FloatArray, depth: float = 0.0) -> FloatArray:
    """Points [N, 2] in head radii -> [F, N, 2] on the stage."""
    spots = np.concatenate([points, np.full((len(points), 1), depth)], -1)
    return on_head(figure, body, np.broadcast_to(spots, (len(figure.head), *spots.shape)))


def _legs(painter: Painter, character: Character, figure: Figure) -> None:
    girth = character.body.girth
    for hip, sign in ((8, -1), (11, 1)):
        hip_xy, knee, ankle = (figure.joints[:, hip + k] for k in range(3))
        toe = ankle + np.stack([sign * 0.022 + 0.02 * np.sin(figure.yaw), np.full(len(ankle), 0.024)], -1)
        thigh_colour = character.skin if character.bottom_kind == "skirt" else character.bottom
        shin_colour = character.bottom if character.bottom_kind == "trousers" else character.skin
        painter.limb(knee, ankle, (0.032 * girth, 0.021 * girth), shin_colour)
        painter.limb(ankle + np.asarray([0, 0.008]), toe, (0.021, 0.019), character.shoes)
        painter.limb(hip_xy, knee, (0.047 * girth, 0.034 * girth), thigh_colour)


def _torso(painter: Painter, character: Character, figure: Figure) -> None:
    body, joints = character.body, figure.joints
    right, left, neck = joints[:, 2], joints[:, 5], joints[:, 1]
    hip_right, hip_left = joints[:, 8], joints[:, 11]
    across = (left - right) / 2
    up = neck - figure.hips
    hip_across = (hip_left - hip_right) / 2
    girth = body.girth
    thick = np.stack([np.full(len(up), 0.036 * girth), np.zeros(len(up))], -1)

    def outline(low: float) -> FloatArray:
        """The torso from the shoulders down to `low` (0 hips .. 1 neck)."""
        waist = figure.hips + up * 0.38
        base = figure.hips + up * low
        corners = [
            neck + across * -0.35 + up * 0.045, neck + across * -0.8 + up * 0.015, right - across * 0.12 - up * 0.06,
            waist - hip_across * 0.75 - thick * 1.15, base - hip_across - thick, base + hip_across + thick,
            waist + hip_across * 0.75 + thick * 1.15, left + across * 0.12 - up * 0.06,
            neck + across * 0.8 + up * 0.015, neck + across * 0.35 + up * 0.045,
        ]  # fmt: skip
        return np.stack(corners, 1)

    painter.blob(outline(-0.12), character.bottom, 0.03)
    painter.blob(outline(0.06), character.top, 0.03)
    middle = neck * 0.5 + figure.hips * 0.5
    if character.pattern == "band":
        low, high = middle - up * 0.06, middle + up * 0.12
        wide = across * 0.72 + thick * 0.35
        painter.polygon(np.stack([low - wide, low + wide, high + wide, high - wide], 1), character.trim)
    elif character.pattern == "vest":
        wide, top, low = across * 0.3, neck - up * 0.02, figure.hips + up * 0.06
        painter.polygon(np.stack([top - wide, top + wide, low + wide * 0.7, low - wide * 0.7], 1), character.trim)
    collar = _ring(7, 0, np.pi) * [0.036, 0.03]
    painter.polygon(neck[:, None] + collar[None] + up[:, None] * 0.04, character.skin)


def _skirt(painter: Painter, character: Character, now: Figure, before: Figure) -> None:
    """From the waist to above the knees; the hem follows the knees of a moment ago."""
    hips = now.hips
    up = now.joints[:, 1] - hips
    half = (now.joints[:, 11] - now.joints[:, 8]) / 2
    thick = np.stack([np.full(len(hips), 0.036 * character.body.girth), np.zeros(len(hips))], -1)
    waist = hips + up * 0.16
    drift = 0.55 * (before.hips - now.hips)
    right = now.joints[:, 8] * 0.25 + now.joints[:, 9] * 0.75 + [-0.05, 0.0] + drift
    left = now.joints[:, 11] * 0.25 + now.joints[:, 12] * 0.75 + [0.05, 0.0] + drift
    bottom = (right + left) / 2 + [0, 0.012]
    points = [waist - half * 0.8 - thick, waist + half * 0.8 + thick, hips + half * 1.15 + thick * 1.2, left, bottom,
              right, hips - half * 1.15 - thick * 1.2]  # fmt: skip
    painter.blob(np.stack(points, 1), character.bottom, 0.04)


def _arm(painter: Painter, character: Character, figure: Figure, first: int) -> None:
    girth = character.body.girth
    shoulder, elbow, wrist = (figure.joints[:, first + k] for k in range(3))
    hand = figure.hands[:, 1 if first == 2 else 0]
    palm = hand[:, 9] * 0.5 + hand[:, 0] * 0.5
    painter.limb(wrist, palm, (0.018, 0.021), character.skin)
    if painter.layers > 2:
        for finger in range(5):
            painter.limb(palm, hand[:, 4 + 4 * finger], (0.009, 0.0065), character.skin)
    lower = character.top if character.sleeve == "long" else character.skin
    painter.limb(elbow, wrist, (0.026 * girth, 0.019 * girth), lower)
    upper = character.skin if character.sleeve == "none" else character.top
    painter.limb(shoulder, elbow, (0.035 * girth, 0.027 * girth), upper)


def _back_hair(painter: Painter, character: Character, now: Figure, before: Figure) -> None:
    body = character.body
    if character.hair_style == "long":
        top = _local(now, body, _ring(9, np.pi, 2 * np.pi) * [1.18, 1.12] + [0, -0.1])
        trail = 0.9 * (before.head - now.head)[:, None]
        ends = _local(
            now, body, np.asarray([[1.25, 0.9], [1.1, 1.9], [0.4, 2.1], [-0.4, 2.1], [-1.1, 1.9], [-1.25, 0.9]])
        )
        weight = np.asarray([0.4, 1, 1, 1, 1, 0.4])[:, None]
        painter.polygon(np.concatenate([top, ends + trail * weight], 1), shade(character.hair, -0.2))
    elif character.hair_style == "bun":
        knot = _local(now, body, _ring(11) * [0.5, 0.42] + [0, -1.25], depth=-0.3)
        painter.blob(knot, character.hair, 0.02)


def _head(painter: Painter, character: Character, figure: Figure) -> None:
    body, face = character.body, figure.face
    for sign in (-1, 1):
        ear = _local(figure, body, _ring(8) * [0.14, 0.2] + [sign * 0.98, 0.02])
        painter.polygon(ear, shade(character.skin, -0.18))
    skull = _local(figure, body, _ring(16, np.pi * 0.98, 2.02 * np.pi) * [0.97, 1.0])
    jaw = face[:, 16::-1]
    painter.blob(np.concatenate([skull, jaw], 1), character.skin, 0.022)
    _hair(painter, character, figure)
    _features(painter, character, figure)


def _hair(painter: Painter, character: Character, figure: Figure) -> None:
    """Hair (or a cap) over the skull, leaving the forehead free."""
    arc = _ring(13, np.pi * 1.0, 2 * np.pi) * [1.06, 1.13]
    if character.hair_style == "cap":
        points = np.concatenate([arc * [1.02, 1.05] + [0, -0.12], [[1.0, -0.38], [0, -0.44], [-1.0, -0.38]]])
        painter.blob(_local(figure, character.body, points, depth=0.1), character.trim, 0.02)
        brim = np.asarray([[-0.8, -0.50], [0.8, -0.50], [0.95, -0.34], [0, -0.26], [-0.95, -0.34]])
        painter.polygon(_local(figure, character.body, brim, depth=0.75), shade(character.trim, -0.3))
        return
    fringe = [
        [1.04, 0.15],
        [0.93, -0.25],
        [0.72, -0.56],
        [0.3, -0.72],
        [-0.25, -0.68],
        [-0.72, -0.52],
        [-0.93, -0.25],
        [-1.04, 0.15],
    ]
    painter.blob(_local(figure, character.body, np.concatenate([arc, fringe]), depth=0.05), character.hair, 0.02)


def _features(painter: Painter, character: Character, figure: Figure) -> None:
    body, face = character.body, figure.face
    down = figure.head_axes[:, None, 1] * body.head_ry
    dark = shade(character.hair if character.hair_style != "cap" else (60, 44, 36), -0.3)
    for start in (36, 42):
        _eye(painter, character, figure, face[:, start : start + 6])
    for start in (17, 22):
        brow = face[:, start : start + 5]
        painter.polygon(np.concatenate([brow + 0.045 * down, brow[:, ::-1] - 0.065 * down], 1), dark)
    painter.polygon(face[:, [27, 35, 34, 33]], shade(character.skin, -0.14))
    painter.polygon(face[:, [31, 33, 35]] + 0.02 * down, shade(character.skin, -0.36))
    painter.polygon(face[:, 48:60], character.lips)
    painter.polygon(face[:, 60:68], (84, 18, 28))
    upper, lower = face[:, 60:65], face[:, [60, 67, 66, 65, 64]]
    painter.polygon(np.concatenate([upper, (0.68 * upper + 0.32 * lower)[:, ::-1]], 1), (248, 246, 240))


def _eye(painter: Painter, character: Character, figure: Figure, lids: FloatArray) -> None:
    """White, iris with pupil, and a dark upper lid, of lids [F, 6, 2]."""
    body = character.body
    painter.polygon(lids, (250, 250, 248))
    middle = lids.mean(1, keepdims=True)
    axes = figure.head_axes[:, None]
    half = np.linalg.norm(lids[:, 1] - lids[:, 5], axis=-1)[:, None, None] / 2
    width = 0.115 * body.head_rx * body.face.eyes
    for size, colour in ((1.0, character.eyes), (0.55, (16, 12, 12))):
        ring = _ring(9)[None] * size
        tall = np.minimum(half, size * 0.15 * body.head_ry)  # a wide open eye shows white above and below
        across, down = ring[..., :1] * width, ring[..., 1:] / size * tall
        painter.polygon(middle + across * axes[:, :, 0] + down * axes[:, :, 1], colour)
    upper = lids[:, [0, 1, 2, 3]]
    line = figure.head_axes[:, None, 1] * (0.065 * body.head_ry)
    painter.polygon(np.concatenate([upper + 0.3 * line, upper[:, ::-1] - line], 1), (40, 26, 26))
