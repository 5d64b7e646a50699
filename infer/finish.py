"""What is done to finished frames before they are written: enlarging, a visible mark, the side-by-side picture."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from xdyna.errors import UserError

Image = NDArray[np.uint8]

_MARK_HEIGHT = 0.04  # of the frame, text height
_MARK_MIN_PX = 8
_MARK_READABLE_PX = 6
_MARK_OPACITY = 0.6
_GAP_PX = 2


class Finisher:
    """Enlarges frames and puts the visible mark on them.

    Args:
        size_wh: (width, height) of the frames as they come, pixels.
        upscale: factor, 1 for none; Lanczos resampling, nothing is invented.
        watermark: text of the mark at the bottom right; None for none.
    Attributes:
        size_wh: (width, height) of the frames as they go.
    """

    def __init__(self, size_wh: tuple[int, int], upscale: int = 1, watermark: str | None = None) -> None:
        self._upscale = upscale
        self.size_wh = (size_wh[0] * upscale, size_wh[1] * upscale)
        self._mark = draw_mark(watermark, self.size_wh) if watermark else None

    def __call__(self, frame: Image) -> Image:
        """uint8 RGB [H, W, 3] in, [H * upscale, W * upscale, 3] out."""
        if self._upscale > 1:
            frame = cv2.resize(frame, self.size_wh, interpolation=cv2.INTER_LANCZOS4)
        if self._mark is None:
            return frame
        color, opacity = self._mark
        return np.rint(frame * (1 - opacity) + color * opacity).astype(np.uint8)


def draw_mark(text: str, size_wh: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A line of white text with a dark edge at the bottom right, made smaller until it fits the width.

    Returns:
        Its colour float32 [H, W, 3], 0..255, and its opacity float32 [H, W, 1], 0..1.
    Raises:
        UserError: it would be too small to be read.
    """
    width, height = size_wh
    size_px = max(_MARK_MIN_PX, round(height * _MARK_HEIGHT))
    margin = max(1, size_px // 3)
    while _text_width(text, size_px) > width - 2 * margin:
        size_px -= 1
        if size_px < _MARK_READABLE_PX:
            raise UserError(
                f"--watermark: {text!r} does not fit a frame {width} px wide; wanted a shorter text, or --upscale N"
            )
    layer = PilImage.new("RGBA", size_wh, (0, 0, 0, 0))
    ImageDraw.Draw(layer).text(
        (width - margin, height - margin),
        text,
        font=ImageFont.load_default(size_px),
        fill=(255, 255, 255, 255),
        stroke_width=max(1, size_px // 12),
        stroke_fill=(0, 0, 0, 255),
        anchor="rd",
    )
    drawn = np.asarray(layer, np.float32)
    return drawn[..., :3], drawn[..., 3:] * np.float32(_MARK_OPACITY / 255)


def _text_width(text: str, size_px: int) -> float:
    return ImageFont.load_default(size_px).getlength(text)


def side_by_side(pictures: Sequence[Image], height: int) -> Image:
    """Pictures in a row, scaled to one height, with a thin gap between them.

    Args:
        pictures: uint8 RGB, each [h, w, 3].
        height: of the row, pixels.
    Returns:
        uint8 RGB [height, W, 3].
    """
    gap = np.zeros((height, _GAP_PX, 3), np.uint8)
    row: list[Image] = []
    for picture in pictures:
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        row += [gap, cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)]
    return np.concatenate(row[1:], axis=1)
