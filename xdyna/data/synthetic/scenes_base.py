"""What a scene is, the clock that its motion follows, and the colours and grids that its pictures are made of."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
#: Which part each pixel shows at a time in seconds, int8 [H, W]: `UNKNOWN`, `STILL`, or 1, 2 .. a moving part.
Parts = Callable[[float], NDArray[np.int8]]
#: How far the points of a moving part go from one time to another, seconds: pixels, something that spreads to
#: [H, W, 2] (x to the right, y down).
Path = Callable[[float, float], Floats]

UNKNOWN, STILL = -1, 0

GROUND = 0.80  # where the floor meets the wall, as a fraction of the frame's height
FREE_REPEAT = 8  # tiles of a moving texture before it repeats, where a scene need not loop


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture that changes with time.

    Attributes:
        paint: paints the scene at a time in seconds, uint8 RGB [H, W, 3]. The picture may be the scene's own: copy it
            before writing to it.
        moving: float32 [H, W], 0..1: how much of each pixel can ever change; where it is 0, every frame is the same.
        parts: which part each pixel shows.
        paths: how part 1, 2 .. moves; pixels that show a mixture, or move in a way that is no path, are `UNKNOWN`.
    """

    paint: Callable[[float], Image]
    moving: Floats
    parts: Parts
    paths: tuple[Path, ...] = ()

    def __call__(self, time_s: float) -> Image:
        """The scene at a time in seconds."""
        return self.paint(time_s)


@dataclass(frozen=True)
class Cycles:
    """A motion that repeats: so many cycles per second, or `loop_s` of them exactly where that is above 0.

    Attributes:
        per_s: cycles per second; negative goes backwards.
        loop_s: seconds after which a whole number of cycles has gone by; 0 where none need have.
    """

    per_s: float
    loop_s: float

    def __call__(self, time_s: float) -> float:
        """Cycles gone through since time 0; from the loop's beginning where there is one, so that it closes exactly."""
        if self.loop_s > 0:
            return float(self.per_s * self.loop_s * (round(time_s / self.loop_s, 9) % 1.0))
        return self.per_s * time_s

    def between(self, time_s: float, next_s: float) -> float:
        """Cycles from one time to another."""
        return self.per_s * (next_s - time_s)


@dataclass(frozen=True, eq=False)
class Clock:
    """The pace of a scene's motions.

    Attributes:
        rng: where free paces are drawn from.
        loop_s: above 0, every motion goes through a whole number of cycles in this many seconds, at the pace of its
            kind; 0, the paces vary and textures go on for `FREE_REPEAT` tiles.
    """

    rng: np.random.Generator
    loop_s: float

    @property
    def repeat(self) -> int:
        """Tiles after which a moving texture repeats."""
        return 1 if self.loop_s > 0 else FREE_REPEAT

    def cycles(self, per_s: float) -> Cycles:
        """A motion of about `per_s` cycles per second; negative goes backwards."""
        if self.loop_s > 0:
            return Cycles(float(np.sign(per_s) * max(1, round(abs(per_s) * self.loop_s)) / self.loop_s), self.loop_s)
        return Cycles(float(per_s * self.rng.uniform(0.6, 1.3)), 0.0)


def hsv(hue: float, saturation: float, value: float) -> Floats:
    """An RGB colour [3], 0..255."""
    return np.asarray(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32) * 255


def column(height: int, stops: list[tuple[float, Floats]]) -> Floats:
    """A vertical gradient [H, 1, 3] through (position 0..1, RGB) stops."""
    rows = (np.arange(height, dtype=np.float32) + 0.5) / height
    at = [stop[0] for stop in stops]
    return np.stack([np.interp(rows, at, [stop[1][k] for stop in stops]) for k in range(3)], -1)[:, None].astype(
        np.float32
    )


def wide(gradient: Floats, width: int) -> Floats:
    """A column [H, 1, 3] as a picture [H, W, 3]."""
    return np.repeat(gradient, width, axis=1)


def grid(size_wh: tuple[int, int]) -> tuple[Floats, Floats]:
    """x [1, W] and y [H, 1] of the pixels' middles, 0..1."""
    width, height = size_wh
    return (
        ((np.arange(width, dtype=np.float32) + 0.5) / width)[None],
        ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None],
    )


def to_image(values: Floats) -> Image:
    """Rounded down to uint8; what is out of range is clipped."""
    return np.clip(values, 0, 255).astype(np.uint8)
