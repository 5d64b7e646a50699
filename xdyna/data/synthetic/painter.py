"""Filled polygons from back to front: the painter's list of shapes, computed for all frames of a clip at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.character import Colour, shade

FloatArray = NDArray[np.float64]

#: The light comes from the upper left: towards it, in the image.
LIGHT = np.asarray([-0.62, -0.78])
_HALF = np.linspace(-np.pi / 2, np.pi / 2, 7)


@dataclass(frozen=True, eq=False)
class Shape:
    """A filled polygon over F frames.

    Attributes:
        points: [F, N, 2] on the stage (body heights).
        colour: RGB.
        shown: [F] in which frames; None: in all.
    """

    points: FloatArray
    colour: Colour
    shown: NDArray[np.bool_] | None


class Painter:
    """Collects shapes from back to front.

    Args:
        layers: tones per rounded part (1 flat, more for a smoother roundness in large pictures).
        small: leave out what would smear a face of a few pixels.

    Attributes:
        shown: [F] in which frames the shapes to come are drawn; None: in all.
    """

    def __init__(self, layers: int, *, small: bool = False) -> None:
        self.layers, self.small = layers, small
        self.shown: NDArray[np.bool_] | None = None
        along = np.linspace(0, 1, layers) if layers > 1 else np.zeros(1)
        self._sizes = 1 - 0.72 * along
        self._tones = [float(tone) for tone in -0.26 + 0.36 * along] if layers > 1 else [0.0]
        self._shapes: list[Shape | _Limb] = []

    def polygon(self, points: FloatArray, colour: Colour) -> None:
        """A flat polygon [F, N, 2]."""
        self._shapes.append(Shape(points, colour, self.shown))

    def limb(self, start: FloatArray, end: FloatArray, radius: tuple[float, float], colour: Colour) -> None:
        """A tapered, rounded limb from start [F, 2] to end [F, 2], lit from `LIGHT`."""
        self._shapes.append(_Limb(start, end, radius, colour, self.shown))

    def blob(self, points: FloatArray, colour: Colour, depth: float) -> None:
        """A rounded polygon [F, N, 2]; `depth` is how far (body heights) its tones are shifted towards the light."""
        middle = points.mean(1, keepdims=True)
        for size, tone in zip(self._sizes, self._tones, strict=True):
            self.polygon(middle + (points - middle) * size + LIGHT * (1 - size) * depth, shade(colour, tone))

    def ribbon(self, points: FloatArray, widths: FloatArray, colour: Colour) -> None:
        """A rounded band along polylines [F, N, 2]; `widths` [M] are its half widths from beginning to end."""
        line = smooth(points, len(widths))
        along = np.gradient(line, axis=1)
        along = along / np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-6)
        side = np.stack([-along[..., 1], along[..., 0]], -1)
        tip = line[:, -1:] + along[:, -1:] * widths[-1]
        for size, tone in zip(self._sizes, self._tones, strict=True):
            reach = side * (widths * size)[:, None]
            middle = line + LIGHT * ((1 - size) * 0.5 * widths)[:, None]
            band = np.concatenate([middle + reach, tip, (middle - reach)[:, ::-1]], 1)
            self.polygon(band, shade(colour, tone))

    def finish(self) -> list[Shape]:
        """The shapes from back to front."""
        limbs = [shape for shape in self._shapes if isinstance(shape, _Limb)]
        outlines = iter(self._capsules(limbs) if limbs else np.empty(0))
        shapes: list[Shape] = []
        for shape in self._shapes:
            if isinstance(shape, Shape):
                shapes.append(shape)
                continue
            outline: FloatArray = next(outlines)  # [tones, F, 14, 2]
            for points, tone in zip(outline, self._tones, strict=True):
                shapes.append(Shape(points, shade(shape.colour, tone), shape.shown))
        return shapes

    def _capsules(self, limbs: list[_Limb]) -> FloatArray:
        """Outlines [L, tones, F, 14, 2] of two discs and what lies between them."""
        start, end = np.stack([limb.start for limb in limbs]), np.stack([limb.end for limb in limbs])
        radius = np.asarray([limb.radius for limb in limbs])
        axis = end - start  # [L, F, 2]
        axis = axis / np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), 1e-6)
        side = np.stack([-axis[..., 1], axis[..., 0]], -1)
        cap = axis[:, :, None] * np.cos(_HALF)[:, None] + side[:, :, None] * np.sin(_HALF)[:, None]  # [L, F, 7, 2]
        sizes = self._sizes[:, None, None, None]
        shift = LIGHT * (1 - sizes) * 0.8  # [T, 1, 1, 2]
        halves = []
        for points, column, sign in ((end, 1, 1), (start, 0, -1)):
            reach = radius[:, column, None, None, None, None]
            halves.append(points[:, None, :, None] + reach * (shift + sign * sizes * cap[:, None]))
        return np.concatenate(halves, 3)


@dataclass(frozen=True, eq=False)
class _Limb:
    start: FloatArray
    end: FloatArray
    radius: tuple[float, float]
    colour: Colour
    shown: NDArray[np.bool_] | None


def smooth(points: FloatArray, count: int) -> FloatArray:
    """`count` points [F, count, 2] on a smooth curve through polylines [F, N, 2] (Catmull-Rom)."""
    number = points.shape[1]
    at = np.linspace(0, number - 1, count)
    index = np.minimum(at.astype(int), number - 2)
    u = at - index
    weights = np.zeros((count, number))
    parts = (-u + 2 * u**2 - u**3, 2 - 5 * u**2 + 3 * u**3, u + 4 * u**2 - 3 * u**3, u**3 - u**2)
    for offset, part in zip((-1, 0, 1, 2), parts, strict=True):
        np.add.at(weights, (np.arange(count), np.clip(index + offset, 0, number - 1)), part / 2)
    return np.asarray(weights @ points)


def ring(count: int, start: float = 0.0, stop: float = 2 * np.pi) -> FloatArray:
    """Points [count, 2] on a unit circle's arc."""
    turn = np.linspace(start, stop, count)
    return np.stack([np.cos(turn), np.sin(turn)], -1)
