"""Scenes behind the dancer: a still part painted once and a moving part that is a function of time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xdyna.data.synthetic.scenes_air import fireworks, meadow, rain, snow
from xdyna.data.synthetic.scenes_base import Clock, Scene
from xdyna.data.synthetic.scenes_ground import fire, grass, studio
from xdyna.data.synthetic.scenes_water import sea, waterfall

__all__ = ["SCENES", "Scene", "build_scene"]

#: Every kind of scene.
SCENES: dict[str, Callable[[np.random.Generator, tuple[int, int], Clock], Scene]] = {
    "studio": studio,
    "sea": sea,
    "waterfall": waterfall,
    "fire": fire,
    "snow": snow,
    "meadow": meadow,
    "rain": rain,
    "fireworks": fireworks,
    "grass": grass,
}


def build_scene(name: str, rng: np.random.Generator, size_wh: tuple[int, int], loop_s: float = 0.0) -> Scene:
    """A scene of the named kind.

    Args:
        name: a key of `SCENES`.
        rng: where colours, shapes and free paces are drawn from.
        size_wh: (width, height), pixels.
        loop_s: above 0, the scene repeats exactly after this many seconds, and how it moves is fixed by its kind, so
            that one frame tells the next; 0, paces vary and it goes on without repeating for several seconds.
    """
    return SCENES[name](rng, size_wh, Clock(rng, loop_s))
