"""Scenes on the ground: a studio, where nothing moves, fire and a field of grass."""

from __future__ import annotations

from dataclasses import dataclass

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
from xdyna.data.synthetic.scenes_texture import Roll, periodic_noise

FIELD = 0.50  # where the tips of the farthest grass begin, as a fraction of the height
ROWS = 5  # rows of grass


def studio(rng: np.random.Generator, size_wh: tuple[int, int], clock: Clock) -> Scene:
    """A plain wall with a soft light on it, and a floor; nothing moves."""
    hue = rng.random()
    wall = hsv(hue, rng.uniform(0.1, 0.55), rng.uniform(0.45, 0.9))
    floor = hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.5), rng.uniform(0.25, 0.6))
    x, y = grid(size_wh)
    stops = [(0, wall * 0.8), (GROUND, wall), (GROUND + 0.01, floor * 0.8), (1, floor * 1.1)]
    glow = np.exp(-(((x - rng.uniform(0.3, 0.7)) / 0.35) ** 2 + ((y - 0.4) / 0.4) ** 2))[..., None]
    picture = wide(column(size_wh[1], stops), size_wh[0]) * (0.8 + 0.35 * glow)
    if rng.random() < 0.5:  # panels on the wall
        edge = (np.floor(x * rng.integers(3, 6) + rng.random()) % 2 * 0.12 * (y < GROUND))[..., None]
        picture = picture * (1 - edge)
    still = to_image(picture)
    everywhere = np.zeros((size_wh[1], size_wh[0]), np.float32)
    return Scene(lambda time_s: still, everywhere, lambda time_s: everywhere.astype(np.int8))


def fire(rng: np.random.Generator, size_wh: tuple[int, int], clock: Clock) -> Scene:
    """Tongues of flame along the back of a dark stage."""
    width, height = size_wh
    _, y = grid(size_wh)
    night = hsv(rng.uniform(0.6, 0.95), rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.3))
    floor = hsv(rng.uniform(0.02, 0.1), 0.4, rng.uniform(0.25, 0.4))
    stops = [(0, night * 0.6), (GROUND, night), (GROUND + 0.01, floor), (1, floor * 0.7)]
    still = wide(column(height, stops), width)
    tile = round(height / 3)
    noise = periodic_noise(rng, (8, 3 * clock.repeat), (width, tile * clock.repeat))
    tongues = periodic_noise(rng, (4, 1), (width, 1), 1)
    rise = (GROUND - y) / (rng.uniform(0.34, 0.5) * (0.55 + 0.9 * tongues))  # 0 at the ground, 1 at the tips
    rows = slice(0, int((GROUND + 0.02) * height))
    rise, base = np.maximum(rise[rows], -0.1), still[rows] + _glow(rise[rows])
    tint = 1 - np.clip(rise, 0, 1)[..., None] * np.asarray([0.05, 0.4, 0.8], np.float32)  # yellow below, red above
    roll = Roll.of(noise, len(rise))
    backdrop = to_image(still)
    risen = clock.cycles(1.0)

    def cover(noise_now: Floats) -> Floats:
        return np.asarray(np.clip((noise_now * 2.0 - 0.1 - rise) * 2.2, 0, 1))

    def paint(time_s: float) -> Image:
        noise_now = roll(risen(time_s) * tile)
        shown = cover(noise_now)[..., None]
        heat = np.clip(noise_now * 2.2 - 0.45, 0, 1)
        flame = np.stack([np.minimum(140 + 330 * heat, 255), 50 + 190 * heat, 15 + 150 * heat**2], -1) * tint
        image = backdrop.copy()
        image[rows] = to_image(base + shown * (flame - base))
        return image

    moving = np.zeros((height, width), np.float32)
    moving[rows] = cover(noise.max(0, keepdims=True))
    unknown = np.where(moving > 0, UNKNOWN, STILL).astype(np.int8)

    def parts(time_s: float) -> NDArray[np.int8]:
        shown = unknown.copy()
        shown[rows][cover(roll(risen(time_s) * tile)) > 0.9] = 1
        return shown

    def rising(time_s: float, next_s: float) -> Floats:
        return np.asarray([0, -risen.between(time_s, next_s) * tile])

    return Scene(paint, moving, parts, (rising,))


def _glow(rise: Floats) -> Floats:
    """Light of the fire on what is behind it, RGB [.., 3]."""
    return np.exp(-np.maximum(rise, 0) * 1.1)[..., None] * np.asarray([70, 22, 0], np.float32)


def grass(rng: np.random.Generator, size_wh: tuple[int, int], clock: Clock) -> Scene:
    """Tall grass that bends as gusts run through it to the right, under a still sky."""
    width, height = size_wh
    x, y = grid(size_wh)
    sky = hsv(rng.uniform(0.5, 0.66), rng.uniform(0.15, 0.5), rng.uniform(0.75, 1.0))
    low = hsv(rng.uniform(0.05, 0.16), rng.uniform(0.05, 0.35), 1.0)
    blade = hsv(rng.uniform(0.13, 0.36), rng.uniform(0.45, 0.8), rng.uniform(0.55, 0.8))
    ridge = FIELD + 0.02 + 0.03 * np.sin(2 * np.pi * (x * rng.uniform(0.6, 1.4) + rng.random()))
    picture = wide(column(height, [(0, sky), (FIELD, low), (1, low)]), width)
    picture = np.where((y > ridge)[..., None], blade * (0.36 + 0.2 * y)[..., None], picture).astype(np.float32)
    margin = int(np.ceil(0.1 * height))
    layers = [_row_of_grass(rng, size_wh, margin, part, blade) for part in np.linspace(0, 1, ROWS)]
    backdrop = to_image(picture)
    field = slice(layers[0].rows.start, layers[-1].rows.stop)
    blown, gusts = clock.cycles(1.0), _gusts(rng, clock.repeat)
    at = np.arange(len(gusts)) * (clock.repeat / len(gusts))
    columns = np.arange(width, dtype=np.float32)[None]

    def wind(number: int, column_px: Floats, time_s: float) -> Floats:
        along = 0.75 * (column_px + 0.5) / width - 0.1 * number - blown(time_s)
        return np.interp(along, at, gusts, period=clock.repeat).astype(np.float32)

    def bent(number: int, column_px: Floats, time_s: float) -> Floats:
        return (0.3 + wind(number, column_px, time_s)) * layers[number].reach * (0.06 * height)

    def drawn(number: int, time_s: float) -> Floats:
        map_x = (columns + margin - bent(number, columns, time_s)).astype(np.float32)
        return np.asarray(cv2.remap(layers[number].blades, map_x, layers[number].map_y, cv2.INTER_LINEAR))

    def paint(time_s: float) -> Image:
        grown = picture.copy()
        for number, layer in enumerate(layers):
            now = drawn(number, time_s)
            shine = (1 + 0.2 * wind(number, columns, time_s) * layer.shine)[..., None]
            grown[layer.rows] = grown[layer.rows] * (1 - now[..., 3:]) + now[..., :3] * shine
        image = backdrop.copy()
        image[field] = to_image(grown[field])
        return image

    moving = np.zeros((height, width), np.float32)
    for layer in layers:
        shown = layer.blades[..., 3].max(1)[:, None] * (layer.reach > 0)
        moving[layer.rows] = np.maximum(moving[layer.rows], shown)

    def parts(time_s: float) -> NDArray[np.int8]:
        shown = np.where(moving > 0, UNKNOWN, STILL).astype(np.int8)
        for number, layer in enumerate(layers):
            cover = drawn(number, time_s)[..., 3]
            rows = shown[layer.rows]
            rows[cover > 0.01] = UNKNOWN
            rows[cover > 0.75] = number + 1
        return shown

    def path(number: int) -> Path:
        def leaning(time_s: float, next_s: float) -> Floats:
            root = columns - bent(number, columns, time_s)
            place = root
            for _ in range(6):  # where the same blade is next: place = root + bent(place)
                place = root + bent(number, place, next_s)
            gone = np.zeros((height, width, 2))
            gone[layers[number].rows, :, 0] = place - columns
            return gone

        return leaning

    return Scene(paint, moving, parts, tuple(path(number) for number in range(ROWS)))


def _gusts(rng: np.random.Generator, repeat: int) -> Floats:
    """The wind along its way, -1..1: one wave, or `repeat` uneven ones."""
    if repeat == 1:
        return np.asarray(np.sin(2 * np.pi * np.arange(64) / 64))
    return np.asarray(np.clip(3 * periodic_noise(rng, (3 * repeat, 1), (64 * repeat, 1), 1)[0] - 1.5, -1, 1))


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of blades, standing straight.

    Attributes:
        rows: of the frame, from the longest blade's tip to the roots.
        blades: premultiplied RGBA [R, W + 2 margin, 4], colours 0..255, cover 0..1.
        reach: [R, 1] how far each row of pixels bends, 0 (roots) to 1 (tips).
        shine: [R, 1] how much each row of pixels brightens in a gust.
        map_y: [R, W] the rows of `blades`.
    """

    rows: slice
    blades: Floats
    reach: Floats
    shine: Floats
    map_y: Floats


def _row_of_grass(rng: np.random.Generator, size_wh: tuple[int, int], margin: int, part: float, colour: Floats) -> _Row:
    """The farthest row (part 0) to the nearest (part 1), drawn `margin` pixels beyond either side of the frame."""
    width, height = size_wh
    base, length = FIELD + 0.10 + 0.36 * part, 0.10 + 0.10 * part
    fine = 3
    rows = slice(int((base - length) * height), int(np.ceil(base * height)))
    count_rows = rows.stop - rows.start
    canvas = np.zeros((count_rows * fine, (width + 2 * margin) * fine, 4), np.uint8)
    step = 0.026 + 0.018 * part  # between blades, as a fraction of the frame's height
    count = int((width + 2 * margin) / (height * step)) + 1
    tones = periodic_noise(rng, (max(4, count // 4), 1), (count, 1))[0]
    for blade in rng.permutation(count):
        left = (blade + rng.uniform(-0.3, 0.3)) * step
        tip = base - length * rng.uniform(0.65, 1.0)
        lean = rng.uniform(-0.2, 0.2) * length
        points = np.asarray([[left - 0.7 * step, base], [left + lean, tip], [left + 0.7 * step, base]]) * height
        points = np.round((points - [0, rows.start]) * fine * 16).astype(np.int32)
        shade = np.clip(colour * (0.5 + 0.85 * tones[blade] + rng.uniform(-0.1, 0.1)), 0, 255)
        cv2.fillPoly(canvas, [points], (*shade.tolist(), 255), cv2.LINE_AA, 4)
    blades = cv2.resize(canvas, (width + 2 * margin, count_rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    blades[..., 3] /= 255
    y = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5) / height
    up = np.clip((base - y) / length, 0, 1)
    blades *= np.minimum(up * 3, 1)[..., None]  # the roots are lost in the dark
    map_y = np.repeat(np.arange(count_rows, dtype=np.float32)[:, None], width, axis=1)
    return _Row(rows, blades, up**1.5, np.sqrt(up**1.5), map_y)
