"""Textures that tile, and the ways they travel: rolled straight, or sheared along a path."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from xdyna.data.synthetic.scenes_base import Floats, Image

_FINE = 4  # spots are drawn this much larger and averaged


def periodic_noise(
    rng: np.random.Generator, cells: tuple[int, int], size_wh: tuple[int, int], octaves: int = 2
) -> Floats:
    """Smooth noise [H, W], 0..1 with mean 0.5, that tiles in both directions; `cells` (across, down) in the tile."""
    total = np.zeros((size_wh[1], size_wh[0]))
    for octave in range(octaves):
        across, down = cells[0] * 2**octave, cells[1] * 2**octave
        knots = rng.random((down, across))
        total += _spline(size_wh[1], down) @ knots @ _spline(size_wh[0], across).T / 2**octave
    total = (total - total.mean()) / total.std()
    return np.asarray(np.clip(0.5 + 0.23 * total, 0, 1), np.float32)


def _spline(size: int, cells: int) -> Floats:
    """Weights [size, cells] of a periodic cubic B-spline with one knot per cell."""
    gap = ((np.arange(size) + 0.5) / size * cells - 0.5)[:, None] - np.arange(cells)[None]
    total = np.zeros_like(gap)
    for lap in range(-3, 4):
        far = np.abs(gap + lap * cells)
        total += np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.clip(2 - far, 0, None) ** 3 / 6)
    return np.asarray(total / total.sum(1, keepdims=True))


@dataclass(frozen=True, eq=False)
class Roll:
    """A texture that tiles along its rows, cut out at a moving place.

    Attributes:
        texture: [period + rows + 1, ...], made by `of`.
        period: rows after which it repeats.
        rows: rows that are cut out.
    """

    texture: Floats
    period: int
    rows: int

    @classmethod
    def of(cls, tile: Floats, rows: int) -> Roll:
        """A roll of the tile [period, ...]."""
        laps = -(-(rows + 1) // len(tile)) + 1
        return cls(np.concatenate([tile] * laps)[: len(tile) + rows + 1], len(tile), rows)

    def __call__(self, offset: float) -> Floats:
        """[rows, ...] from row `offset` (any real number) on, linear between rows."""
        offset = offset % self.period
        first = min(int(offset), self.period - 1)
        part = np.float32(offset - first)
        block = self.texture[first : first + self.rows + 1]
        if part == 0:
            return block[:-1]
        return block[:-1] * (1 - part) + block[1:] * part


@dataclass(frozen=True, eq=False)
class Fall:
    """A texture that travels down along a fixed, possibly bent path: column x - bend(y) of a roll.

    Attributes:
        roll: the texture, [.., W].
        bend_px: [H, 1] how far right the path has led at each row, pixels.
        map_x, map_y: where each pixel looks into the rolled texture, pixels.
        moving: [H, W] the most that ever shows at each pixel.
    """

    roll: Roll
    bend_px: Floats
    map_x: Floats
    map_y: Floats
    moving: Floats

    @classmethod
    def of(cls, tile: Floats, size_wh: tuple[int, int], bend_px: Floats) -> Fall:
        """The tile [period, W], which tiles in both directions, falling along `bend_px` [H, 1]."""
        width, height = size_wh
        map_x = ((np.arange(width)[None] - bend_px) % width).astype(np.float32)
        map_y = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
        padded = np.concatenate([tile, tile[:, :1]], 1)
        most = np.repeat(padded.max(0, keepdims=True), height, axis=0)
        moving = cv2.remap(most, map_x, map_y, cv2.INTER_LINEAR)
        return cls(Roll.of(padded, height), bend_px, map_x, map_y, moving)

    def __call__(self, fallen_px: float) -> Floats:
        """[H, W] once the texture has fallen so far."""
        return np.asarray(cv2.remap(self.roll(-fallen_px), self.map_x, self.map_y, cv2.INTER_LINEAR))

    def path(self, fallen_px: float) -> Floats:
        """How far the points go as the texture falls so far: pixels [H, 1, 2]."""
        rows = np.arange(len(self.bend_px), dtype=np.float64)
        bend = np.interp(rows + fallen_px, rows, self.bend_px[:, 0])
        return np.stack([bend - self.bend_px[:, 0], np.full(len(rows), fallen_px)], -1)[:, None]


def spots(
    rng: np.random.Generator, cells: tuple[int, int], size_wh: tuple[int, int], radius_px: float, tail_px: float = 0.0
) -> Floats:
    """A tile [H, W], 0..1, with one round spot in each cell (across, down), drawn out downwards by `tail_px`."""
    width, height = size_wh
    canvas = np.zeros((height * _FINE, width * _FINE), np.uint8)
    for row in range(cells[1]):
        for across in range(cells[0]):
            x = (across + (0.5 * row) % 1 + rng.uniform(0.2, 0.8)) / cells[0] * width
            y = (row + rng.uniform(0.1, 0.9)) / cells[1] * height
            size = radius_px * rng.uniform(0.8, 1.15)
            for lap_x in (-2, -1, 0, 1):
                for lap_y in (-1, 0, 1):
                    _spot(canvas, x + lap_x * width, y + lap_y * height, size, tail_px)
    return np.asarray(cv2.resize(canvas, size_wh, interpolation=cv2.INTER_AREA), np.float32) / 255


def _spot(canvas: Image, x: float, y: float, size: float, tail: float) -> None:
    scale = _FINE * 16
    ends = [(round(x * scale), round((y + end) * scale)) for end in (-tail / 2, tail / 2)]
    if tail:
        cv2.line(canvas, ends[0], ends[1], 255, max(1, round(2 * size * _FINE)), cv2.LINE_AA, 4)
    else:
        cv2.circle(canvas, ends[0], round(size * scale), 255, -1, cv2.LINE_AA, 4)


def smoothed(drawn: Image, size_wh: tuple[int, int]) -> Floats:
    """A drawing that tiles sideways, brought to a smaller size [H, W] with soft edges, 0..255."""
    small = cv2.resize(drawn, size_wh, interpolation=cv2.INTER_AREA).astype(np.float32)
    sigma = max(0.8, size_wh[1] / 60)
    margin = int(np.ceil(4 * sigma))
    blurred = cv2.GaussianBlur(np.pad(small, ((0, 0), (margin, margin)), "wrap"), (0, 0), sigma)
    return np.asarray(blurred[:, margin:-margin])
