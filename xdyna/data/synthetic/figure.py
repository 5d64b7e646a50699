"""The drawing of a person: cape, legs, clothes, head and arms from back to front."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.body import Figure
from xdyna.data.synthetic.character import SKIRTS, Character, shade
from xdyna.data.synthetic.head import back_hair, front_hair, head
from xdyna.data.synthetic.painter import Painter, Shape, ring
from xdyna.data.synthetic.soft import Soft

FloatArray = NDArray[np.float64]

TURNED = 0.55  # radians of yaw from which the farther arm is behind the trunk


def paint(character: Character, figure: Figure, soft: Soft, layers: int, *, small: bool = False) -> list[Shape]:
    """The person's shapes from back to front.

    Args:
        character: who is drawn.
        figure: the person at the frames' times.
        soft: hair, cape and hem at the same times.
        layers: tones per rounded part.
        small: the face has a few pixels only: leave out what would smear it.
    """
    painter = Painter(layers, small=small)
    if character.cape and soft.cape is not None:
        _cape_back(painter, character.cape, figure, soft.cape)
    back_hair(painter, character, figure, soft.hair)
    behind = {2: figure.yaw < -TURNED, 5: figure.yaw > TURNED}  # by the arm's first joint
    for first, hidden in behind.items():
        painter.shown = hidden
        _arm(painter, character, figure, first)
    _legs(painter, character, figure)
    _torso(painter, character, figure)
    if soft.hem is not None:
        _skirt(painter, character, figure, soft.hem)
    if character.cape:
        _cape_collar(painter, character.cape, figure)
    painter.limb(figure.joints[:, 1] + [0, 0.02], figure.head, (0.034, 0.032), shade(character.skin, -0.12))
    front_hair(painter, character, soft.hair)
    head(painter, character, figure)
    for first, hidden in behind.items():
        painter.shown = ~hidden
        _arm(painter, character, figure, first)
    return painter.finish()


def _legs(painter: Painter, character: Character, figure: Figure) -> None:
    """Both legs; the one that is farther from the camera first."""
    right_far = figure.yaw < 0
    for hip, sign, shown in ((11, 1, ~right_far), (8, -1, None), (11, 1, right_far)):
        painter.shown = shown
        _leg(painter, character, figure, hip, sign)
    painter.shown = None


def _leg(painter: Painter, character: Character, figure: Figure, hip: int, sign: int) -> None:
    girth = character.body.girth
    hip_xy, knee, ankle = (figure.joints[:, hip + k] for k in range(3))
    ahead = 0.022 * sign * np.cos(figure.yaw) + 0.045 * np.sin(figure.yaw)
    toe = ankle + np.stack([ahead, np.full(len(ankle), 0.024)], -1)
    bare = character.bottom_kind in SKIRTS
    for start, end, radius, cloth in (
        (knee, ankle, (0.032, 0.021), character.bottom_kind == "trousers"),
        (hip_xy, knee, (0.047, 0.034), not bare),
    ):
        painter.limb(start, end, (radius[0] * girth, radius[1] * girth), character.bottom if cloth else character.skin)
        if end is ankle:
            painter.limb(ankle + np.asarray([0, 0.008]), toe, (0.021, 0.019), character.shoes)


class _Chest:
    """Outline of the trunk, and places on it by height (0 hips .. 1 neck)."""

    def __init__(self, character: Character, figure: Figure) -> None:
        joints = figure.joints
        self.right, self.left, self.neck, self.hips = joints[:, 2], joints[:, 5], joints[:, 1], figure.hips
        self.across = (self.left - self.right) / 2
        self.up = self.neck - self.hips
        self.hip_across = (joints[:, 11] - joints[:, 8]) / 2
        deep = 0.036 * character.body.girth * (1 + 0.35 * np.sin(figure.yaw) ** 2)
        self.thick = np.stack([deep, np.zeros(len(deep))], -1)

    def outline(self, low: float) -> FloatArray:
        """The trunk from the shoulders down to a height: [F, 10, 2]."""
        across, up, neck = self.across, self.up, self.neck
        waist, base = self.hips + up * 0.38, self.hips + up * low
        waist_half, base_half = self.hip_across * 0.75 + self.thick * 1.15, self.hip_across + self.thick
        corners = [
            neck + across * -0.35 + up * 0.045, neck + across * -0.8 + up * 0.015,
            self.right - across * 0.12 - up * 0.06, waist - waist_half, base - base_half, base + base_half,
            waist + waist_half, self.left + across * 0.12 - up * 0.06,
            neck + across * 0.8 + up * 0.015, neck + across * 0.35 + up * 0.045,
        ]  # fmt: skip
        return np.stack(corners, 1)

    def half(self, height: float) -> FloatArray:
        """Half the breadth at a height: [F, 2]."""
        chest = 1.12 * self.across
        waist = self.hip_across * 0.75 + self.thick * 1.15
        base = self.hip_across + self.thick
        if height < 0.38:
            return np.asarray(base + (waist - base) * (height / 0.38))
        return np.asarray(waist + (chest - waist) * min(1.0, (height - 0.38) / 0.56))

    def bar(self, low: float, high: float) -> FloatArray:
        """The part of the trunk between two heights: [F, 4, 2]."""
        corners = []
        for height, sign in ((low, -1), (low, 1), (high, 1), (high, -1)):
            corners.append(self.hips + self.up * height + sign * self.half(height))
        return np.stack(corners, 1)


def _torso(painter: Painter, character: Character, figure: Figure) -> None:
    chest = _Chest(character, figure)
    painter.blob(chest.outline(-0.12), character.bottom, 0.03)
    painter.blob(chest.outline(0.06), character.top, 0.03)
    _pattern(painter, character, chest)
    collar = ring(7, 0, np.pi) * [0.036, 0.03]
    painter.polygon(chest.neck[:, None] + collar + chest.up[:, None] * 0.04, shade(character.skin, -0.2))


def _pattern(painter: Painter, character: Character, chest: _Chest) -> None:
    trim = character.trim
    bars = {"band": ((0.44, 0.64),), "stripes": ((0.14, 0.27), (0.42, 0.55), (0.70, 0.83))}
    for low, high in bars.get(character.pattern, ()):
        painter.polygon(chest.bar(low, high), trim)
    if character.pattern == "vest":
        wide, top, bottom = chest.across * 0.3, chest.neck - chest.up * 0.02, chest.hips + chest.up * 0.06
        painter.polygon(np.stack([top - wide, top + wide, bottom + wide * 0.7, bottom - wide * 0.7], 1), trim)
    elif character.pattern == "dots":
        spot = ring(8) * 0.019
        for height, places in ((0.78, (-0.55, 0.0, 0.55)), (0.52, (-0.4, 0.4)), (0.26, (-0.6, 0.0, 0.6))):
            for place in places:
                middle = chest.hips + chest.up * height + chest.half(height) * place
                painter.polygon(middle[:, None] + spot, trim)


def _skirt(painter: Painter, character: Character, figure: Figure, hem: FloatArray) -> None:
    """From the waist to the swinging hem, with a border of the trim's colour."""
    chest = _Chest(character, figure)
    waist, half = chest.hips + chest.up * 0.16, chest.half(0.16)
    wide = chest.hip_across * 1.15 + chest.thick * 1.25
    top = np.stack([chest.hips + wide, waist + half, waist - half, chest.hips - wide], 1)
    painter.blob(np.concatenate([hem, top], 1), character.bottom, 0.04)
    if character.pattern != "plain":
        inner = hem + 0.13 * (chest.hips[:, None] - hem)
        painter.polygon(np.concatenate([hem, inner[:, ::-1]], 1), character.trim)


def _cape_back(painter: Painter, colour: tuple[int, int, int], figure: Figure, edges: FloatArray) -> None:
    """The cloth behind the body, wider below."""
    flare = np.linspace(0, 1, edges.shape[2])[:, None] * [0.075, 0.0]
    left, right = edges[:, 0] - flare, edges[:, 1] + flare
    neck = figure.joints[:, 1:2] + [0, -0.015]
    painter.blob(np.concatenate([neck, right, left[:, ::-1]], 1), shade(colour, -0.1), 0.03)


def _cape_collar(painter: Painter, colour: tuple[int, int, int], figure: Figure) -> None:
    """Where the cape lies on the shoulders, and its knot."""
    neck = figure.joints[:, 1]
    for shoulder in (figure.joints[:, 2], figure.joints[:, 5]):
        wedge = np.asarray([[0, 0.035], [0, -0.02], [0, -0.03], [0, 0]]) + np.stack([neck, neck, shoulder, shoulder], 1)
        painter.polygon(wedge, colour)
    painter.polygon(neck[:, None] + [0, 0.03] + ring(8) * 0.016, shade(colour, -0.35))


def _arm(painter: Painter, character: Character, figure: Figure, first: int) -> None:
    girth = character.body.girth
    shoulder, elbow, wrist = (figure.joints[:, first + k] for k in range(3))
    hand = figure.hands[:, 1 if first == 2 else 0]
    palm = hand[:, 9] * 0.5 + hand[:, 0] * 0.5
    painter.limb(wrist, palm, (0.018, 0.021), character.skin)
    if painter.layers > 2:
        for finger in range(5):
            painter.limb(palm, hand[:, 4 + 4 * finger], (0.009, 0.0065), character.skin)
    for start, end, radius, cloth in (
        (elbow, wrist, (0.026, 0.019), character.sleeve == "long"),
        (shoulder, elbow, (0.035, 0.027), character.sleeve != "none"),
    ):
        painter.limb(start, end, (radius[0] * girth, radius[1] * girth), character.top if cloth else character.skin)
    painter.shown = None
