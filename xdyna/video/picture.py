"""From a decoded frame to the picture a player would show: rotation, pixel shape, alpha, colour."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Image = NDArray[np.uint8]

#: What shows through transparent pixels.
BACKGROUND_RGB = (255, 255, 255)


def shown_size_wh(frame: VideoFrame, pixel_aspect: Fraction | None = None) -> tuple[int, int]:
    """(width, height) in which to show a frame.

    Args:
        frame: a decoded frame.
        pixel_aspect: width of a pixel over its height, where not 1.
    """
    width, height = frame.width, frame.height
    if pixel_aspect and pixel_aspect > 0:
        width = max(1, round(width * pixel_aspect))
    return (height, width) if _turns(frame)[0] else (width, height)


def to_rgb(frame: VideoFrame, size_wh: tuple[int, int]) -> Image:
    """The frame as shown.

    Args:
        frame: a decoded frame of any pixel format.
        size_wh: (width, height) of the result, pixels; `shown_size_wh` of the clip's first frame.
    Returns:
        uint8 RGB [height, width, 3], turned upright; transparent pixels over white.
    """
    transposed, flip_x, flip_y = _turns(frame)
    width, height = reversed(size_wh) if transposed else size_wh
    if _has_alpha(frame):
        image = flatten_alpha(frame.to_ndarray(format="rgba", width=width, height=height))
    else:
        image = np.asarray(frame.to_ndarray(format="rgb24", width=width, height=height), np.uint8)
    if transposed:
        image = image.transpose(1, 0, 2)
    if flip_x:
        image = image[:, ::-1]
    if flip_y:
        image = image[::-1]
    return np.ascontiguousarray(image, dtype=np.uint8)


def flatten_alpha(rgba: NDArray[np.generic]) -> Image:
    """uint8 RGBA [H, W, 4] laid over `BACKGROUND_RGB`: uint8 RGB [H, W, 3]."""
    values = rgba.astype(np.uint16)
    alpha = values[..., 3:]
    mixed = values[..., :3] * alpha + np.asarray(BACKGROUND_RGB, np.uint16) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _has_alpha(frame: VideoFrame) -> bool:
    return frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)


def _turns(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """What makes the frame upright: (swap the axes, then mirror x, then mirror y).

    A display matrix a b u / c d v / x y w sends the point (p, q) to (a p + c q, b p + d q). Phones write the eight
    turns and mirrorings; any other angle is taken to the nearest of them.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return False, False, False
    a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return False, a < 0, d < 0
    return True, c < 0, b < 0
