"""From a decoded frame to the picture a player would show: rotation, pixel shape, alpha, colour."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Image = NDArray[np.uint8]

#: What shows through transparent pixels.
BACKGROUND_RGB = (255, 255, 255)


class Turn(NamedTuple):
    """What makes a frame upright: swap its axes, then mirror x, then mirror y."""

    swap: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> Turn:
        """From the display matrix, which is the same for all frames of a clip.

        The matrix a b u / c d v / x y w sends the point (p, q) to (a p + c q, b p + d q). Phones write the eight
        turns and mirrorings; any other angle is taken to the nearest of them.
        """
        # Ask one frame only: a frame whose side data was looked at refers to itself, and would stay in memory until
        # the garbage collector runs.
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if not isinstance(matrix, SideData):
            return cls()
        a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5].tolist()
        if abs(a) >= abs(b):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)


def to_rgb(frame: VideoFrame, size_wh: tuple[int, int], turn: Turn) -> Image:
    """The frame as shown.

    Args:
        frame: a decoded frame of any pixel format.
        size_wh: (width, height) of the result, pixels.
        turn: what makes it upright.
    Returns:
        uint8 RGB [height, width, 3]; transparent pixels over white.
    """
    width, height = reversed(size_wh) if turn.swap else size_wh
    if _has_alpha(frame):
        image = flatten_alpha(frame.to_ndarray(format="rgba", width=width, height=height))
    else:
        image = np.asarray(frame.to_ndarray(format="rgb24", width=width, height=height), np.uint8)
    if turn.swap:
        image = image.transpose(1, 0, 2)
    if turn.mirror_x:
        image = image[:, ::-1]
    if turn.mirror_y:
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
