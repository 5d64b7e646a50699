"""From shapes on the stage to pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.framing import Camera
from xdyna.data.synthetic.painter import Shape

Image = NDArray[np.uint8]

_BITS = 4  # fractional bits of the coordinates handed to OpenCV


@dataclass(frozen=True)
class Projection:
    """The stage as a camera shows it in a frame of (width, height) pixels."""

    camera: Camera
    size_wh: tuple[int, int]

    @property
    def scale_px(self) -> float:
        """Pixels per body height."""
        return self.camera.body * self.size_wh[1]

    @property
    def ground_px(self) -> float:
        """Where the ground is, pixels from the top."""
        return self.camera.ground * self.size_wh[1]

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Stage [..., 2] -> pixels, origin at the frame's top left corner."""
        return points * self.scale_px + [self.camera.middle * self.size_wh[0], self.ground_px]


def draw_figures(shapes: list[Shape], to_pixels: Projection, fine: int, num_frames: int) -> Iterator[Image]:
    """Premultiplied RGBA pictures [H, W, 4] of the person alone, frame by frame; each may be drawn over by the next.

    Args:
        shapes: from back to front.
        to_pixels: the view.
        fine: pictures are drawn this many times larger and averaged.
        num_frames: frames that the shapes have.
    """
    width, height = to_pixels.size_wh
    canvas = np.empty((height * fine, width * fine, 4), np.uint8)
    colours = [(*shape.colour, 255) for shape in shapes]
    outlines = _outlines(shapes, to_pixels, fine)
    for index in range(num_frames):
        canvas[:] = 0
        for points, colour in zip(outlines[index], colours, strict=True):
            if points is not None:
                cv2.fillPoly(canvas, [points], colour, cv2.LINE_AA, _BITS)
        yield cv2.resize(canvas, to_pixels.size_wh, interpolation=cv2.INTER_AREA) if fine > 1 else canvas


def _outlines(shapes: list[Shape], to_pixels: Projection, fine: int) -> list[list[NDArray[np.int32] | None]]:
    """Per frame and shape the points that OpenCV fills; None where the shape is not shown."""
    # OpenCV's coordinates count from the middle of the first pixel.
    points = to_pixels(np.concatenate([shape.points for shape in shapes], 1)) * fine - 0.5
    fixed = np.round(points * (1 << _BITS)).astype(np.int32)
    ends = np.cumsum([shape.points.shape[1] for shape in shapes]).tolist()
    spans = list(zip([0, *ends[:-1]], ends, shapes, strict=True))
    return [
        [frame[start:end] if shape.shown is None or shape.shown[index] else None for start, end, shape in spans]
        for index, frame in enumerate(fixed)
    ]
