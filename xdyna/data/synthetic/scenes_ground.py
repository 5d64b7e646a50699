"""Scenes on the ground: a studio, where nothing moves, fire and a field of grass."""

from __future__ import annotations

import cv2
import numpy as np

from xdyna.data.synthetic.scenes_base import GROUND, Clock, Floats, Image, Scene, column, grid, hsv, to_image, wide
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
    return Scene(lambda time_s: still, np.zeros((size_wh[1], size_wh[0]), np.float32))


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
    roll = Roll.of(noise, len(rise))
    backdrop = to_image(still)
    risen = clock.cycles(1.0)

    def flame(noise_now: Floats) -> Floats:
        return np.asarray(np.clip((noise_now * 2.0 - 0.1 - rise) * 1.15, 0, 1))

    def paint(time_s: float) -> Image:
        hot = flame(roll(risen(time_s) * tile))
        heat = np.stack([np.minimum(hot * 2.2, 1) * 255, hot**1.3 * 225, hot**3 * 140], -1)
        cover = np.minimum(hot * 2.5, 1)[..., None]
        image = backdrop.copy()
        image[rows] = to_image(base * (1 - cover) + heat * cover)
        return image

    moving = np.zeros((height, width), np.float32)
    moving[rows] = flame(noise.max(0, keepdims=True))
    return Scene(paint, moving)


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
    picture = np.where((y > ridge)[..., None], blade * 0.45, picture).astype(np.float32)
    backdrop = to_image(picture)
    rows = slice(int(FIELD * height), height)
    margin = int(np.ceil(0.1 * height))
    layers = [_row_of_grass(rng, size_wh, y[rows], margin, part, blade) for part in np.linspace(0, 1, ROWS)]
    blown, gusts = clock.cycles(1.0), _gusts(rng, clock.repeat)
    at = np.arange(len(gusts)) * (clock.repeat / len(gusts))
    columns = np.arange(width, dtype=np.float32)[None] + margin
    map_y = np.repeat(np.arange(len(y[rows]), dtype=np.float32)[:, None], width, axis=1)

    def paint(time_s: float) -> Image:
        field = picture[rows]
        for number, (blades, reach) in enumerate(layers):
            wind = np.interp(0.75 * x[0] - 0.1 * number - blown(time_s), at, gusts, period=clock.repeat)[None]
            bend = reach * (0.3 + wind)
            now = cv2.remap(blades, (columns - bend * 0.05 * height).astype(np.float32), map_y, cv2.INTER_LINEAR)
            shine = (1 + 0.3 * wind * np.sqrt(reach))[..., None]
            field = field * (1 - now[..., 3:]) + now[..., :3] * shine
        image = backdrop.copy()
        image[rows] = to_image(field)
        return image

    moving = np.zeros((height, width), np.float32)
    for blades, reach in layers:
        shown = blades[..., 3].max(1)[:, None]
        moving[rows] = np.where(reach > 0, np.maximum(moving[rows], shown), moving[rows] * (1 - shown))
    return Scene(paint, moving)


def _gusts(rng: np.random.Generator, repeat: int) -> Floats:
    """The wind along its way, -1..1: one wave, or `repeat` uneven ones."""
    if repeat == 1:
        return np.sin(2 * np.pi * np.arange(64) / 64)
    return np.asarray(2 * periodic_noise(rng, (2 * repeat, 1), (64 * repeat, 1), 1)[0] - 1)


def _row_of_grass(
    rng: np.random.Generator, size_wh: tuple[int, int], y: Floats, margin: int, part: float, colour: Floats
) -> tuple[Floats, Floats]:
    """One row of blades, standing straight: the farthest (part 0) to the nearest (part 1).

    Args:
        rng: where blades stand and how they look.
        size_wh: of the frame, pixels.
        y: [R, 1] the rows that are drawn, as fractions of the frame's height.
        margin: columns drawn beyond either side of the frame, pixels.
        part: which row.
        colour: RGB of the grass, 0..255.
    Returns:
        premultiplied RGBA [R, W + 2 margin, 4], colours 0..255, cover 0..1; and how far each row of it bends [R, 1],
        0 (roots and below) to 1 (tips).
    """
    width, height = size_wh
    base, length = FIELD + 0.10 + 0.36 * part, 0.10 + 0.10 * part
    fine = 3
    canvas = np.zeros((len(y) * fine, (width + 2 * margin) * fine, 4), np.uint8)
    top, scale = float(y[0, 0]) - 0.5 / height, height * fine
    ground = np.clip(colour * (0.42 + 0.1 * part), 0, 255)
    canvas[round((base - 0.02 - top) * scale) :] = [*ground, 255]
    step = 0.018 + 0.014 * part  # between blades, as a fraction of the frame's height
    count = int((width + 2 * margin) / (height * step)) + 1
    tones = periodic_noise(rng, (max(4, count // 6), 1), (count, 1))[0]
    for blade in rng.permutation(count):
        left = (blade + rng.uniform(-0.3, 0.3)) * step
        tip = base - length * rng.uniform(0.65, 1.0)
        lean = rng.uniform(-0.2, 0.2) * length
        points = np.asarray([[left - 0.6 * step, base], [left + lean, tip], [left + 0.6 * step, base]]) - [0, top]
        shade = np.clip(colour * (0.55 + 0.75 * tones[blade] + rng.uniform(-0.1, 0.1)), 0, 255)
        cv2.fillPoly(canvas, [np.round(points * scale * 16).astype(np.int32)], (*shade.tolist(), 255), cv2.LINE_AA, 4)
    small = cv2.resize(canvas, (width + 2 * margin, len(y)), interpolation=cv2.INTER_AREA).astype(np.float32)
    small[..., 3] /= 255
    return small, np.clip((base - y) / length, 0, 1).astype(np.float32) ** 1.5
