"""Scenes behind the dancer: a still part painted once and a moving part that is a function of time."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
#: Paints the scene at a time in seconds: uint8 RGB [H, W, 3].
Scene = Callable[[float], Image]

GROUND = 0.80  # where the floor meets the wall, as a fraction of the frame's height


def build_scene(name: str, rng: np.random.Generator, size_wh: tuple[int, int]) -> Scene:
    """A scene of the named kind whose colours and pace come from `rng`, painted at the given size."""
    return SCENES[name](rng, size_wh)


def _hsv(hue: float, saturation: float, value: float) -> Floats:
    return np.asarray(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32) * 255


def _column(height: int, stops: list[tuple[float, Floats]]) -> Floats:
    """A vertical gradient [H, 1, 3] through (position 0..1, RGB) stops."""
    rows = (np.arange(height, dtype=np.float32) + 0.5) / height
    at = [stop[0] for stop in stops]
    return np.stack([np.interp(rows, at, [stop[1][k] for stop in stops]) for k in range(3)], -1)[:, None].astype(
        np.float32
    )


def _fill(column: Floats, width: int) -> Floats:
    return np.repeat(column, width, axis=1)


def _grid(size_wh: tuple[int, int]) -> tuple[Floats, Floats]:
    """x [1, W] and y [H, 1], 0..1."""
    width, height = size_wh
    return (
        ((np.arange(width, dtype=np.float32) + 0.5) / width)[None],
        ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None],
    )


def _to_image(values: Floats) -> Image:
    return np.clip(values, 0, 255).astype(np.uint8)


def _studio(rng: np.random.Generator, size_wh: tuple[int, int]) -> Scene:
    """A plain wall with a soft light on it, and a floor; nothing moves."""
    hue = rng.random()
    wall = _hsv(hue, rng.uniform(0.1, 0.55), rng.uniform(0.45, 0.9))
    floor = _hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.5), rng.uniform(0.25, 0.6))
    x, y = _grid(size_wh)
    column = _column(size_wh[1], [(0, wall * 0.8), (GROUND, wall), (GROUND + 0.01, floor * 0.8), (1, floor * 1.1)])
    glow = np.exp(-(((x - rng.uniform(0.3, 0.7)) / 0.35) ** 2 + ((y - 0.4) / 0.4) ** 2))[..., None]
    picture = _fill(column, size_wh[0]) * (0.8 + 0.35 * glow)
    if rng.random() < 0.5:  # panels on the wall
        edge = (np.floor(x * rng.integers(3, 6) + rng.random()) % 2 * 0.12 * (y < GROUND))[..., None]
        picture = picture * (1 - edge)
    still = _to_image(picture)
    return lambda time_s: still


def _sea(rng: np.random.Generator, size_wh: tuple[int, int]) -> Scene:
    """Waves that roll towards a beach under a still sky with a sun."""
    width, height = size_wh
    x, y = _grid(size_wh)
    horizon, shore = 0.46, 0.82
    sky = _hsv(rng.uniform(0.52, 0.62), rng.uniform(0.2, 0.6), rng.uniform(0.8, 1.0))
    low = _hsv(rng.uniform(0.03, 0.13), rng.uniform(0.1, 0.5), 1.0)
    water = _hsv(rng.uniform(0.48, 0.62), rng.uniform(0.5, 0.9), rng.uniform(0.45, 0.75))
    sand = _hsv(rng.uniform(0.08, 0.13), rng.uniform(0.2, 0.45), rng.uniform(0.75, 0.95))
    column = _column(height, [(0, sky), (horizon, low), (horizon + 0.01, water * 0.75), (shore, water * 1.15),
                              (shore + 0.02, sand * 0.9), (1, sand)])  # fmt: skip
    sun = (((x - rng.uniform(0.15, 0.85)) * width / height) ** 2 + (y - rng.uniform(0.12, 0.3)) ** 2 < 0.005)[..., None]
    still = np.where(sun, np.asarray([255, 240, 190], np.float32), _fill(column, width))
    depth = np.clip((y - horizon) / (shore - horizon), 0, 1)
    inside = ((y > horizon + 0.01) & (y < shore))[..., None]
    pace, waves, wind = rng.uniform(0.5, 1.0), rng.uniform(3.5, 5.5), rng.uniform(-1, 1)
    where = 2 * np.pi * (waves * np.sqrt(depth + 0.02) + 0.12 * np.sin(2 * np.pi * (2 * x + 3 * y)))
    rows = slice(int(horizon * height), int(shore * height) + 1)
    where, inside, base = where[rows], inside[rows], still[rows]
    backdrop = _to_image(still)

    def paint(time_s: float) -> Image:
        crest = np.sin(where - 2 * np.pi * pace * time_s + wind * np.sin(time_s))
        light = np.clip(crest - 0.35, 0, 1)[..., None] * 110 + np.minimum(crest, 0)[..., None] * 22
        image = backdrop.copy()
        image[rows] = _to_image(base + light * inside)
        return image

    return paint


def _scrolled(rng: np.random.Generator, size_wh: tuple[int, int], cells: tuple[int, int]) -> Floats:
    """Smooth noise [2H, W], 0..1, whose two halves are equal, so that any H rows of it scroll without a seam."""
    coarse = rng.random((cells[1], cells[0])).astype(np.float32)
    tiled = np.concatenate([coarse] * 4)
    height = size_wh[1] * 4
    return np.asarray(
        cv2.resize(tiled, (size_wh[0], height), interpolation=cv2.INTER_CUBIC)[size_wh[1] : 3 * size_wh[1]]
    )


def _rows(noise: Floats, height: int, offset: float) -> Floats:
    """`height` rows from `offset` (rows, any real number) on, with linear interpolation between rows."""
    offset = offset % height
    first = int(offset)
    part = offset - first
    block = noise[first : first + height + 1]
    if len(block) <= height:
        block = np.concatenate([block, noise[:1]])
    return block[:-1] * (1 - part) + block[1:] * part


def _waterfall(rng: np.random.Generator, size_wh: tuple[int, int]) -> Scene:
    """Water that falls between two rock walls into a pool."""
    width, height = size_wh
    x, y = _grid(size_wh)
    left, right = rng.uniform(0.08, 0.25), rng.uniform(0.75, 0.92)
    rock = _hsv(rng.uniform(0.05, 0.4), rng.uniform(0.15, 0.5), rng.uniform(0.25, 0.45))
    water = _hsv(rng.uniform(0.5, 0.6), rng.uniform(0.25, 0.5), rng.uniform(0.65, 0.85))
    lumps = cv2.resize(rng.random((12, 8)).astype(np.float32), size_wh, interpolation=cv2.INTER_CUBIC)
    still = rock * (0.65 + 0.7 * lumps)[..., None]
    edge = 0.03 * np.sin(14 * y + rng.uniform(0, 6))
    falls = ((x > left + edge) & (x < right + edge) & (y < GROUND)).astype(np.float32)
    pool = np.broadcast_to((y >= GROUND), falls.shape).astype(np.float32)
    noise = _scrolled(rng, size_wh, (14, 5))
    pace = rng.uniform(0.6, 1.1)
    weight = cv2.GaussianBlur(falls, (0, 0), max(0.6, width / 90))[..., None]
    pool_colour = water * 0.7

    def paint(time_s: float) -> Image:
        streak = _rows(noise, height, -pace * time_s * height)[..., None]
        ripple = 0.14 * np.sin(40 * y + 9 * x - 7 * time_s)[..., None]
        image = still + weight * (water * (0.55 + 0.8 * streak) - still)
        return _to_image(image + pool[..., None] * (pool_colour * (1 + ripple) - image))

    return paint


def _fire(rng: np.random.Generator, size_wh: tuple[int, int]) -> Scene:
    """Flames along the back of a dark stage."""
    width, height = size_wh
    _, y = _grid(size_wh)
    night = _hsv(rng.uniform(0.6, 0.95), rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.3))
    floor = _hsv(rng.uniform(0.02, 0.1), 0.4, rng.uniform(0.25, 0.4))
    still = _fill(_column(height, [(0, night * 0.6), (GROUND, night), (GROUND + 0.01, floor), (1, floor * 0.7)]), width)
    noise = _scrolled(rng, size_wh, (9, 7))
    tall, pace = rng.uniform(0.3, 0.55), rng.uniform(0.5, 0.9)
    rise = np.clip((GROUND - y) / tall, 0, 3)
    below = (y < GROUND + 0.02).astype(np.float32)

    def paint(time_s: float) -> Image:
        flame = np.clip((_rows(noise, height, pace * time_s * height) * 1.5 + 0.15 - rise) * 2.2, 0, 1) * below
        glow = 0.25 * np.exp(-rise * 0.8)
        heat = np.stack([glow * 0.9 + flame * 1.5, glow * 0.3 + flame**1.5 * 1.1, flame**3 * 0.7], -1)
        return _to_image(still + heat * 200)

    return paint


def _snow(rng: np.random.Generator, size_wh: tuple[int, int]) -> Scene:
    """Flakes that fall over a dusky field with a line of hills."""
    width, height = size_wh
    x, _ = _grid(size_wh)
    dusk = _hsv(rng.uniform(0.55, 0.75), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.6))
    field = _hsv(rng.uniform(0.55, 0.65), rng.uniform(0.03, 0.15), rng.uniform(0.8, 0.95))
    still = _fill(
        _column(height, [(0, dusk * 0.7), (GROUND, dusk * 1.2), (GROUND + 0.01, field * 0.9), (1, field)]), width
    )
    ridge = 0.62 + 0.07 * np.sin(2 * np.pi * (x * rng.uniform(0.8, 1.6) + rng.random())) + 0.03 * np.sin(23 * x)
    _, y = _grid(size_wh)
    hill = ((y > ridge) & (y < GROUND))[..., None]
    backdrop = _to_image(np.where(hill, dusk * 0.55, still))
    count = 30
    start, pace = rng.random((count, 2)), rng.uniform(0.18, 0.42, count)
    size = rng.uniform(0.008, 0.014, count) * height

    def paint(time_s: float) -> Image:
        image = backdrop.copy()
        down = (start[:, 1] + pace * time_s) % 1.0
        across = (start[:, 0] + 0.03 * np.sin(2.2 * time_s + 40 * start[:, 0])) % 1.0
        spots = (np.stack([across * width, down * height, size], -1) * 16).astype(int).tolist()
        for column, row, radius in spots:
            cv2.circle(image, (column, row), radius, (250, 250, 255), -1, cv2.LINE_AA, 4)
        return image

    return paint


def _meadow(rng: np.random.Generator, size_wh: tuple[int, int]) -> Scene:
    """Clouds that drift over a green field."""
    width, height = size_wh
    sky = _hsv(rng.uniform(0.53, 0.62), rng.uniform(0.45, 0.75), rng.uniform(0.8, 1.0))
    grass = _hsv(rng.uniform(0.22, 0.36), rng.uniform(0.45, 0.8), rng.uniform(0.45, 0.7))
    land = 0.66
    still = _fill(
        _column(height, [(0, sky), (land, sky * 0.6 + 102), (land + 0.01, grass * 0.75), (1, grass * 1.1)]), width
    )
    backdrop = _to_image(still)
    rows = int(land * height)
    noise = np.ascontiguousarray(_scrolled(rng, (rows, width), (5, 5)).T)  # [rows, 2W]: scrolls sideways
    pace = rng.uniform(0.08, 0.2) * float(rng.choice([-1, 1]))
    fade = np.linspace(1, 0.2, rows, dtype=np.float32)[:, None]

    def paint(time_s: float) -> Image:
        drift = _rows(noise.T, width, pace * time_s * width).T
        cloud = (np.clip((drift - 0.5) * 3, 0, 1) * fade)[..., None]
        image = backdrop.copy()
        image[:rows] = _to_image(still[:rows] + cloud * (250 - still[:rows]))
        return image

    return paint


SCENES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Scene]] = {
    "studio": _studio,
    "sea": _sea,
    "waterfall": _waterfall,
    "fire": _fire,
    "snow": _snow,
    "meadow": _meadow,
}
