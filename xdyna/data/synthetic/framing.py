"""How much of a person the frame shows: the whole body, from the thighs up, or head and shoulders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xdyna.data.synthetic.body import Body
from xdyna.data.synthetic.face import FACE_HEIGHT
from xdyna.errors import UserError, near_matches

FRAMINGS = ("full", "half", "bust")


@dataclass(frozen=True)
class Camera:
    """The stage in the frame.

    Attributes:
        middle: where the stage's middle stands, as a fraction of the frame's width.
        ground: where the ground is, as a fraction of the frame's height.
        body: height of a body, as a fraction of the frame's height.
        travel: how much of their sway, steps and jumps people show: less in close views, so that they stay in the
            picture.
    """

    middle: float
    ground: float
    body: float
    travel: float = 1.0


def check_framings(shares: Mapping[str, float]) -> None:
    """Refuse unknown framings and shares that are no shares.

    Raises:
        UserError: the shares cannot be used.
    """
    for name, share in shares.items():
        if name not in FRAMINGS:
            raise UserError(f"unknown framing {name!r}{near_matches(name, FRAMINGS)}")
        if not 0 <= share < float("inf"):
            raise UserError(f"framing {name}: share {share:g}, wanted 0 or more")
    if sum(shares.values()) <= 0:
        raise UserError("framings: no share is above 0, wanted one at least, for example {full: 1}")


def random_camera(rng: np.random.Generator, shares: Mapping[str, float], body: Body) -> Camera:
    """A camera whose framing is drawn by the shares (any scale: only their ratios count)."""
    weights = np.asarray([shares.get(name, 0.0) for name in FRAMINGS])
    framing = FRAMINGS[int(rng.choice(len(FRAMINGS), p=weights / weights.sum()))]
    if framing == "full":
        return Camera(rng.uniform(0.44, 0.56), rng.uniform(0.945, 0.975), rng.uniform(0.72, 0.8))
    if framing == "half":
        return _at_head(body, rng.uniform(0.46, 0.54), rng.uniform(0.30, 0.36), rng.uniform(1.25, 1.4), 0.7)
    face = rng.uniform(0.43, 0.48)  # of the frame's height
    return _at_head(body, rng.uniform(0.47, 0.53), rng.uniform(0.42, 0.46), face / (FACE_HEIGHT * body.head_ry), 0.3)


def _at_head(body: Body, middle: float, head: float, scale: float, travel: float) -> Camera:
    """A camera that shows the middle of the standing person's head at `head` of the frame's height."""
    return Camera(middle, head + scale * body.head_height, scale, travel)
