"""Scenes of the sky: clouds, snow, rain and fireworks."""

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
    Path,
    Scene,
    column,
    grid,
    hsv,
    to_image,
    wide,
)
from xdyna.data.synthetic.scenes_texture import Fall, Roll, smoothed, spots

LAND = 0.66  # where the meadow meets the sky, as a fraction of the height
#: Fireworks: middle (x, y), reach as fractions of the frame's height, and where in its life a burst is at time 0.
BURSTS = ((0.24, 0.18, 0.17, 0.0), (0.74, 0.13, 0.15, 0.55), (0.82, 0.42, 0.14, 0.25), (0.16, 0.47, 0.14, 0.75))
RAYS = 10


def meadow(rng: np.random.Generator, size_wh: tuple[int, int], clock: Clock) -> Scene:
    """Clouds that drift to the right over a green field."""
    width, height = size_wh
    _, y = grid(size_wh)
    sky = hsv(rng.uniform(0.54, 0.62), rng.uniform(0.5, 0.8), rng.uniform(0.7, 0.95))
    grass = hsv(rng.uniform(0.22, 0.36), rng.uniform(0.45, 0.8), rng.uniform(0.45, 0.7))
    stops = [(0, sky), (LAND, sky * 0.7 + 70), (LAND + 0.01, grass * 0.75), (1, grass * 1.1)]
    backdrop = to_image(wide(column(height, stops), width))
    rows, tile = int(LAND * height), round(width / 2)
    cover, light = _clouds(rng, (tile * clock.repeat, rows), 3 * clock.repeat)
    cover = cover * np.clip(1.25 - 0.55 * y[:rows] / LAND, 0, 1)
    clouds = Roll.of(np.stack([cover.T, (cover * light).T], -1), width)
    drifted = clock.cycles(1.0)
    base = backdrop[:rows].astype(np.float32)

    def paint(time_s: float) -> Image:
        now = clouds(-drifted(time_s) * tile).transpose(1, 0, 2)
        image = backdrop.copy()
        image[:rows] = to_image(base * (1 - now[..., :1]) + now[..., 1:])
        return image

    moving = np.zeros((height, width), np.float32)
    moving[:rows] = cover.max(1, keepdims=True)

    def parts(time_s: float) -> NDArray[np.int8]:
        shown = np.zeros((height, width), np.int8)
        shown[:rows] = clouds(-drifted(time_s) * tile)[..., 0].T > 0.01  # the sky behind is level: edges travel too
        return shown

    def drifting(time_s: float, next_s: float) -> Floats:
        return np.asarray([drifted.between(time_s, next_s) * tile, 0])

    return Scene(paint, moving, parts, (drifting,))


def _clouds(rng: np.random.Generator, size_wh: tuple[int, int], count: int) -> tuple[Floats, Floats]:
    """A tile of `count` heaped clouds, which tiles sideways: cover [H, W], 0..1, and brightness [H, W], 0..255."""
    width, height = size_wh
    fine = 3
    cover, light = (np.full((height * fine, width * fine), fill, np.uint8) for fill in (0, 205))
    heights = 0.2 + 0.6 * (rng.permutation(count) + rng.uniform(0.3, 0.7, count)) / count
    puffs = []
    for number, middle in enumerate(heights):
        size = rng.uniform(0.075, 0.1) * height
        x = (number + rng.uniform(0.35, 0.65)) / count * width
        for along in np.linspace(-1, 1, 5):
            radius = size * (1.05 - 0.45 * abs(along)) * rng.uniform(0.85, 1.1)
            puffs.append((x + along * 1.5 * size, middle * height - 0.5 * radius, radius))
    for picture, part, tone in ((cover, 1.0, 255), (light, 0.8, 252)):  # lit from above, grey below
        for x, y, radius in puffs:
            for lap in (-1, 0, 1):
                centre = (round((x + lap * width) * fine * 16), round((y - (1 - part) * radius) * fine * 16))
                cv2.circle(picture, centre, round(radius * part * fine * 16), tone, -1, cv2.LINE_AA, 4)
    return smoothed(cover, size_wh) / 255, smoothed(light, size_wh)


def _precipitation(backdrop: Image, layers: list[tuple[Fall, float]], clock: Clock, colour: Floats) -> Scene:
    """Layers of (texture, tile's height in pixels) that fall, one tile per second, before a still backdrop."""
    fallen = clock.cycles(1.0)
    base = backdrop.astype(np.float32)

    def paint(time_s: float) -> Image:
        through: Floats = np.ones(base.shape[:2], np.float32)
        for texture, tile in layers:
            through = through * (1 - texture(fallen(time_s) * tile))
        return to_image(base * through[..., None] + colour * (1 - through[..., None]))

    def parts(time_s: float) -> NDArray[np.int8]:
        shown = np.zeros(base.shape[:2], np.int8)
        for number, (texture, tile) in enumerate(layers, 1):
            cover = texture(fallen(time_s) * tile)
            shown[cover > 0.01] = UNKNOWN
            shown[cover > 0.4] = number
        return shown

    def path(texture: Fall, tile: float) -> Path:
        return lambda time_s, next_s: texture.path(fallen.between(time_s, next_s) * tile)

    clear = np.prod([1 - texture.moving for texture, _ in layers], axis=0)
    return Scene(paint, (1 - clear).astype(np.float32), parts, tuple(path(*layer) for layer in layers))


def snow(rng: np.random.Generator, size_wh: tuple[int, int], clock: Clock) -> Scene:
    """Flakes that fall in gentle bends over a dusky field with a line of hills."""
    width, height = size_wh
    x, y = grid(size_wh)
    dusk = hsv(rng.uniform(0.55, 0.75), rng.uniform(0.35, 0.7), rng.uniform(0.3, 0.55))
    field = hsv(rng.uniform(0.55, 0.65), rng.uniform(0.05, 0.2), rng.uniform(0.6, 0.75))
    stops = [(0, dusk * 0.7), (GROUND, dusk * 1.2), (GROUND + 0.01, field * 0.9), (1, field)]
    ridge = 0.62 + 0.07 * np.sin(2 * np.pi * (x * rng.uniform(0.8, 1.6) + rng.random())) + 0.03 * np.sin(23 * x)
    hill = ((y > ridge) & (y < GROUND))[..., None]
    backdrop = to_image(np.where(hill, dusk * 0.55, wide(column(height, stops), width)))
    layers = []
    for cells, parts, radius, sway in (((3, 2), 3, 0.023, 0.03), ((4, 2), 4, 0.015, 0.02)):
        tile = round(height / parts)
        flakes = spots(rng, (cells[0], cells[1] * clock.repeat), (width, tile * clock.repeat), radius * height)
        bend = sway * height * np.sin(2 * np.pi * (1.5 * y + rng.random()))
        layers.append((Fall.of(flakes, size_wh, bend), float(tile)))
    return _precipitation(backdrop, layers, clock, np.asarray([250, 250, 255], np.float32))


def rain(rng: np.random.Generator, size_wh: tuple[int, int], clock: Clock) -> Scene:
    """Slanting rain before the houses of a street at dusk."""
    width, height = size_wh
    _, y = grid(size_wh)
    sky = hsv(rng.uniform(0.55, 0.68), rng.uniform(0.15, 0.4), rng.uniform(0.3, 0.5))
    street = hsv(rng.uniform(0.5, 0.7), rng.uniform(0.1, 0.3), rng.uniform(0.25, 0.4))
    stops = [(0, sky * 0.8), (GROUND, sky * 1.3), (GROUND + 0.01, street * 0.8), (1, street * 1.2)]
    backdrop = to_image(skyline(rng, wide(column(height, stops), width), sky * 0.55, (0.25, 0.55)))
    tile = round(height / 2)
    drops = spots(rng, (6, 3 * clock.repeat), (width, tile * clock.repeat), 0.0085 * height, 0.085 * height)
    slant = float(rng.choice([-0.25, 0.25])) * height
    fall = Fall.of(drops * 0.85, size_wh, slant * y)
    return _precipitation(backdrop, [(fall, float(tile))], clock, np.asarray([205, 218, 235], np.float32))


def skyline(rng: np.random.Generator, picture: Floats, wall: Floats, tops: tuple[float, float]) -> Floats:
    """The picture [H, W, 3] with a row of houses whose roofs are at `tops` (fractions of the height), some lit."""
    height, width = picture.shape[:2]
    picture = picture.copy()
    left, ground, pane = 0, int(GROUND * height), max(2, height // 32)
    while left < width:
        right = left + int(rng.uniform(0.14, 0.26) * width) + 1
        top = int(rng.uniform(*tops) * height)
        picture[top:ground, left:right] = wall * rng.uniform(0.75, 1.15)
        for row in range(top + pane, ground - 2 * pane, 2 * pane + 1):
            for at in range(left + pane, min(right, width) - pane, 2 * pane + 1):
                if rng.random() < 0.3:
                    picture[row : row + pane, at : at + pane] = [245, 205, 120]
        left = right
    return picture


def fireworks(rng: np.random.Generator, size_wh: tuple[int, int], clock: Clock) -> Scene:
    """Bursts that open and fade at fixed places over a town at night; each starts anew as its last sparks go out."""
    width, height = size_wh
    night = hsv(rng.uniform(0.6, 0.75), rng.uniform(0.5, 0.8), rng.uniform(0.14, 0.24))
    plaza = hsv(rng.uniform(0.55, 0.8), rng.uniform(0.1, 0.3), rng.uniform(0.25, 0.35))
    stops = [(0, night * 0.6), (GROUND, night * 1.6), (GROUND + 0.01, plaza), (1, plaza * 1.2)]
    backdrop = to_image(skyline(rng, wide(column(height, stops), width), night * 0.6, (0.6, 0.72)))
    hue = rng.random()
    bursts = [
        (
            np.asarray([x * width, y * height]) + rng.uniform(-0.02, 0.02, 2) * height,
            reach * height,
            start,
            hsv(hue + 0.27 * number, 0.65, 1.0),
            clock.cycles(1.0),
            rng.random(),
        )
        for number, (x, y, reach, start) in enumerate(BURSTS)
    ]

    def paint(time_s: float) -> Image:
        image = backdrop.copy()
        for middle, reach, start, colour, cycles, turn in bursts:
            _burst(image, middle, reach, (start + cycles(time_s)) % 1.0, colour, turn)
        return image

    moving = np.zeros((height, width), np.uint8)
    for middle, reach, *_ in bursts:
        centre = (round(middle[0] * 16 - 8), round(middle[1] * 16 - 8))
        cv2.circle(moving, centre, round((reach + 0.02 * height + 1) * 16), 255, -1, cv2.LINE_AA, 4)
    shown = np.where(moving > 0, UNKNOWN, STILL).astype(np.int8)  # sparks fade as they fly
    return Scene(paint, moving.astype(np.float32) / 255, lambda time_s: shown)


def _burst(image: Image, middle: Floats, reach: float, life: float, colour: Floats, turn: float) -> None:
    """Draw one burst; `life` runs from 0 (a bright point) to 1 (wide and almost out)."""
    spread = 1 - (1 - life) ** 1.6
    size = 0.02 * image.shape[0] * (1 - 0.45 * life)
    angles = 2 * np.pi * (np.arange(RAYS) + turn) / RAYS
    rays = np.stack([np.cos(angles), np.sin(angles)], -1)
    glow = min(1.0, 2.6 * (1 - life) ** 1.2)
    tone = np.minimum(colour + 160 * max(0.0, 0.5 - life), 255)
    left, top = np.maximum(np.floor(middle - reach - 2 * size - 2), 0).astype(int)
    right, bottom = np.ceil(middle + reach + 2 * size + 2).astype(int)
    patch = image[top:bottom, left:right]
    lit = np.zeros(patch.shape[:2], np.uint8)
    origin = middle - [left, top] - 0.5
    inner, outer = (origin + rays * reach * part for part in (max(0.0, spread - 0.3), spread))
    segments = (np.stack([inner, outer], 1) * 16).astype(np.int32)
    cv2.polylines(lit, list(segments), False, 110, max(1, round(size)), cv2.LINE_AA, 4)
    for _, far in segments.tolist():
        cv2.circle(lit, far, round(size * 16), 255, -1, cv2.LINE_AA, 4)
    cover = (lit.astype(np.float32) * (glow / 255))[..., None]
    patch[:] = to_image(patch + cover * (tone - patch))
