"""The drawing of a head: skull, hair, hats and the face's features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.body import Figure, flat_on_head
from xdyna.data.synthetic.character import Character, shade
from xdyna.data.synthetic.painter import Painter, ring

FloatArray = NDArray[np.float64]

#: Half widths of swinging hair from root to tip, body heights.
_LOCK = np.asarray([0.026, 0.034, 0.038, 0.038, 0.034, 0.024, 0.010])
_TAIL = np.asarray([0.020, 0.036, 0.045, 0.046, 0.040, 0.028, 0.010])


def back_hair(painter: Painter, character: Character, figure: Figure, strands: FloatArray | None) -> None:
    """What hangs behind the head; `strands` [F, D, N, 2] as in `Soft.hair`."""
    if character.hair_style == "bun" and character.hat == "none":
        knot = flat_on_head(figure, character.body, ring(11) * [0.5, 0.42] + [0, -1.25], depth=-0.3)
        painter.blob(knot, character.hair, 0.02)
    elif character.hair_style == "long" and strands is not None:
        top = flat_on_head(figure, character.body, ring(9, np.pi, 2 * np.pi) * [1.1, 1.1])
        inner = strands + 0.25 * (strands.mean(1, keepdims=True) - strands)
        back = np.concatenate([top, inner[:, 1, 1:], inner[:, 0, :0:-1]], 1)
        painter.polygon(back, shade(character.hair, -0.4))
    elif character.hair_style == "ponytail" and strands is not None:
        painter.ribbon(strands[:, 0], _TAIL, character.hair)


def front_hair(painter: Painter, character: Character, strands: FloatArray | None) -> None:
    """What falls over the shoulders, behind the face; `strands` [F, D, N, 2] as in `Soft.hair`."""
    if character.hair_style not in ("long", "pigtails") or strands is None:
        return
    for strand in range(strands.shape[1]):
        painter.ribbon(strands[:, strand], _LOCK if character.hair_style == "long" else _TAIL, character.hair)
        if character.hair_style == "pigtails":
            painter.polygon(strands[:, strand, :1] + ring(8) * 0.024, character.trim)


def head(painter: Painter, character: Character, figure: Figure) -> None:
    """Ears, skull, hair, features and hat."""
    body, face = character.body, figure.face
    for sign in (-1, 1):
        ear = flat_on_head(figure, body, ring(8) * [0.14, 0.2] + [sign * 0.98, 0.02])
        painter.polygon(ear, shade(character.skin, -0.18))
    skull = flat_on_head(figure, body, ring(16, np.pi * 0.98, 2.02 * np.pi) * [0.97, 1.0])
    jaw = face[:, 16::-1]
    painter.blob(np.concatenate([skull, jaw], 1), character.skin, 0.022)
    _crown(painter, character, figure)
    _features(painter, character, figure)
    _hat(painter, character, figure)


def _crown(painter: Painter, character: Character, figure: Figure) -> None:
    """Hair over the skull, leaving the forehead free."""
    arc = ring(13, np.pi, 2 * np.pi) * [1.06, 1.13]
    fringe = [
        [1.04, 0.15], [0.93, -0.25], [0.72, -0.56], [0.3, -0.72],
        [-0.25, -0.68], [-0.72, -0.52], [-0.93, -0.25], [-1.04, 0.15],
    ]  # fmt: skip
    painter.blob(flat_on_head(figure, character.body, np.concatenate([arc, fringe]), depth=0.05), character.hair, 0.02)


def _hat(painter: Painter, character: Character, figure: Figure) -> None:
    if character.hat == "none":
        return

    def put(points: FloatArray, depth: float) -> FloatArray:
        return flat_on_head(figure, character.body, points, depth)

    colour, dark = character.hat_colour, shade(character.hat_colour, -0.35)
    dome = np.concatenate([ring(13, np.pi, 2 * np.pi) * [1.12, 0.78] + [0, -0.58], [[0.6, -0.56], [-0.6, -0.56]]])
    painter.blob(put(dome, 0.1), colour, 0.02)
    if character.hat == "cap":
        painter.polygon(
            put(np.asarray([[-0.85, -0.74], [0.85, -0.74], [1.0, -0.56], [0, -0.5], [-1.0, -0.56]]), 0.75), dark
        )
    elif character.hat == "beanie":
        painter.polygon(put(np.asarray([[-1.14, -0.78], [1.14, -0.78], [1.16, -0.52], [-1.16, -0.52]]), 0.1), dark)
        painter.polygon(put(ring(9) * [0.3, 0.24] + [0, -1.42], 0.0), dark)
    else:
        painter.polygon(put(ring(16) * [1.85, 0.2] + [0, -0.62], 0.2), dark)
        painter.polygon(
            put(np.asarray([[-1.12, -0.86], [1.12, -0.86], [1.14, -0.7], [-1.14, -0.7]]), 0.1), shade(colour, 0.5)
        )


def _features(painter: Painter, character: Character, figure: Figure) -> None:
    face = figure.face
    bold = 0.0 if painter.small else 0.045
    down = figure.head_axes[:, None, 1] * character.body.head_ry
    dark = shade(character.hair, -0.3)
    for start in (36, 42):
        _eye(painter, character, figure, face[:, start : start + 6])
    for start in (17, 22):
        brow = face[:, start : start + 5]
        painter.polygon(np.concatenate([brow + bold * down, brow[:, ::-1] - 0.065 * down], 1), dark)
    if not painter.small:
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
    rings = ((1.0, character.eyes), (0.55, (16, 12, 12)))
    for size, colour in rings[1:] if painter.small else rings:
        circle = ring(9)[None]
        tall = np.minimum(half, size * 0.15 * body.head_ry)  # a wide open eye shows white above and below
        iris = circle[..., :1] * size * width * axes[:, :, 0] + circle[..., 1:] * tall * axes[:, :, 1]
        painter.polygon(middle + iris, colour)
    upper = lids[:, [0, 1, 2, 3]]
    line = figure.head_axes[:, None, 1] * ((0.035 if painter.small else 0.065) * body.head_ry)
    painter.polygon(np.concatenate([upper + 0.3 * line, upper[:, ::-1] - line], 1), (40, 26, 26))
