"""Scenes of water: a sea with a beach, and a waterfall with its pool."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.scenes_base import (
    GROUND,
    STILL,
    UNKNOWN,
    Clock,
    Floats,
    Image,
    Scene,
    column,
    grid,
    hsv,
    to_image,
    wide,
)
from xdyna.data.synthetic.scenes_texture import Roll, periodic_noise

WAVES = 2.7  # crests between the horizon and the shore
HORIZON, SHORE = 0.44, 0.80
_WASH = 0.035  # how far the sea runs up the beach, as a fraction of the height


def sea(rng: np.random.Generator, size_wh: tuple[int, int], clock: Clock) -> Scene:
    """Waves that roll towards a beach and run up it, under a still sky with a sun."""
    width, height = size_wh
    x, y = grid(size_wh)
    sky = hsv(rng.uniform(0.52, 0.62), rng.uniform(0.2, 0.6), rng.uniform(0.8, 1.0))
    low = hsv(rng.uniform(0.03, 0.13), rng.uniform(0.1, 0.5), 1.0)
    water = hsv(rng.uniform(0.48, 0.62), rng.uniform(0.55, 0.9), rng.uniform(0.45, 0.7))
    sand = hsv(rng.uniform(0.08, 0.13), rng.uniform(0.25, 0.5), rng.uniform(0.7, 0.9))
    sun = (((x - rng.uniform(0.15, 0.85)) * width / height) ** 2 + (y - rng.uniform(0.12, 0.3)) ** 2 < 0.005)[..., None]
    stops = [(0, sky), (HORIZON, low), (HORIZON + 0.01, sand * 0.9), (SHORE, sand * 0.85), (1.0, sand)]
    backdrop = to_image(np.where(sun, np.asarray([255, 240, 190], np.float32), wide(column(height, stops), width)))

    rows = slice(int(HORIZON * height), int((SHORE + 2 * _WASH) * height) + 1)
    depth = np.clip((y[rows] - HORIZON) / (SHORE - HORIZON), 0, None)
    bend = 0.16 * np.sin(2 * np.pi * (x * rng.uniform(0.7, 1.3) + rng.random()))
    along = WAVES * np.sqrt(depth) + bend  # which wave is here, in crests
    tile = max(24, height // 3)
    crests = cv2.copyMakeBorder(_crests(rng, width, tile, clock.repeat), 0, 1, 0, 0, cv2.BORDER_WRAP)
    columns = np.repeat(np.arange(width, dtype=np.float32)[None], len(depth), axis=0)
    deep = water * (0.7 + 0.45 * np.minimum(depth, 1))[..., None]
    base = backdrop[rows].astype(np.float32)
    edge = y[rows] - SHORE
    rolled = clock.cycles(1.0)
    soft = 1.2 / height

    def paint(time_s: float) -> Image:
        cycles = rolled(time_s)
        looked_up = ((along - cycles) % clock.repeat * tile).astype(np.float32)
        crest = cv2.remap(crests, columns, looked_up, cv2.INTER_LINEAR)[..., None]
        sea_now = deep + np.maximum(crest, 0) * (250 - deep) + np.minimum(crest, 0) * 0.35 * deep
        gap = edge - _WASH * np.sin(2 * np.pi * (cycles - WAVES - bend))  # rows below the water's edge
        foam = np.clip(1 - (gap / (6 * soft)) ** 2, 0, 1)[..., None] ** 3 * 0.9
        wet = np.clip(0.5 - gap / soft / 2, 0, 1)[..., None]
        image = backdrop.copy()
        image[rows] = to_image((base + wet * (sea_now - base)) * (1 - foam) + 250 * foam)
        return image

    moving = np.zeros((height, width), np.float32)
    moving[rows] = np.clip((_WASH + 7 * soft - edge) * height, 0, 1)

    def parts(time_s: float) -> NDArray[np.int8]:
        shown = np.where(moving > 0, UNKNOWN, STILL).astype(np.int8)  # foam at the edge comes and goes
        lapping = _WASH * np.sin(2 * np.pi * (rolled(time_s) - WAVES - bend))
        shown[rows][(edge - lapping < -7 * soft) & (depth > 0.06)] = 1
        return shown

    def rolling(time_s: float, next_s: float) -> Floats:
        gone = rolled.between(time_s, next_s) / WAVES
        down = (np.maximum(np.sqrt(depth) + gone, 0) ** 2 - depth) * (SHORE - HORIZON) * height
        path = np.zeros((height, 1, 2))
        path[rows, :, 1] = down
        return path

    return Scene(paint, moving, parts, (rolling,))


def _crests(rng: np.random.Generator, width: int, tile: int, repeat: int) -> Floats:
    """One wave per tile, [tile * repeat, W], -1 (trough) to 1 (foam), its crest broken here and there."""
    rows = np.arange(tile * repeat) / tile
    crest = np.exp(4.0 * (np.cos(2 * np.pi * (rows - 0.25)) - 1))[:, None]
    patches = periodic_noise(rng, (6, 2 * repeat), (width, tile * repeat))
    ripples = periodic_noise(rng, (9, 6 * repeat), (width, tile * repeat), 1)
    light = crest * np.clip(0.15 + 1.3 * patches, 0, 1) + 0.5 * (ripples - 0.5) - 0.45 * (1 - crest)
    return np.asarray(np.clip(light, -1, 1), np.float32)


def waterfall(rng: np.random.Generator, size_wh: tuple[int, int], clock: Clock) -> Scene:
    """Water that falls between two rock walls into a pool."""
    width, height = size_wh
    x, y = grid(size_wh)
    left, right = rng.uniform(0.08, 0.2), rng.uniform(0.8, 0.92)
    rock = hsv(rng.uniform(0.05, 0.4), rng.uniform(0.15, 0.5), rng.uniform(0.3, 0.5))
    water = hsv(rng.uniform(0.5, 0.6), rng.uniform(0.35, 0.6), rng.uniform(0.6, 0.8))
    lumps = periodic_noise(rng, (8, 12), size_wh)
    still = rock * (0.55 + 0.9 * lumps)[..., None]
    edge = 0.03 * np.sin(14 * y + rng.uniform(0, 6)) + 0.02 * (lumps - 0.5)
    falls = ((x > left + edge) & (x < right + edge) & (y < GROUND)).astype(np.float32)
    pool = np.broadcast_to(y >= GROUND, falls.shape)
    weight = cv2.GaussianBlur(falls, (0, 0), max(0.6, width / 90)) * (y < GROUND)
    tile = round(height / 3)
    streaks = periodic_noise(rng, (11, 2 * clock.repeat), (width, tile * clock.repeat))
    light = np.clip((streaks - 0.5) * 2.4, -1, 1)[..., None]
    fall = Roll.of((water + np.maximum(light, 0) * (252 - water) + np.minimum(light, 0) * water * 0.45), height)
    fallen, rippled = clock.cycles(1.0), clock.cycles(2.0)
    rows = slice(int(np.ceil(GROUND * height - 0.5)), height)
    near = (y[rows] - GROUND) / (1 - GROUND)
    along = 2.6 * near**0.75 + 0.12 * np.sin(2 * np.pi * (1.5 * x + rng.random()))
    pool_colour = water * 0.75

    def paint(time_s: float) -> Image:
        picture = still + weight[..., None] * (fall(-fallen(time_s) * tile) - still)
        ripple = np.sin(2 * np.pi * (along - rippled(time_s)))
        foam = np.exp(-near / 0.22)
        bright = 0.30 * np.maximum(ripple, 0) + 0.55 * foam * (1 + 0.25 * ripple)
        picture[rows] = pool_colour * (1 + 0.22 * np.minimum(ripple, 0))[..., None] + 170 * bright[..., None]
        return to_image(picture)

    moving = np.minimum(np.maximum(weight, pool), 1).astype(np.float32)
    shown = np.where(moving > 0, UNKNOWN, STILL).astype(np.int8)
    shown[weight > 0.98] = 1
    shown[rows][near[:, 0] > 0.6] = 2  # closer to the fall, foam hides the ripples

    def falling(time_s: float, next_s: float) -> Floats:
        return np.asarray([0, fallen.between(time_s, next_s) * tile])

    def spreading(time_s: float, next_s: float) -> Floats:
        gone = rippled.between(time_s, next_s) / 2.6
        path = np.zeros((height, 1, 2))
        path[rows, :, 1] = (np.maximum(near**0.75 + gone, 0) ** (4 / 3) - near) * (1 - GROUND) * height
        return path

    return Scene(paint, moving, lambda time_s: shown, (falling, spreading))
