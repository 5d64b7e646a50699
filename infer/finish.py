"""What is done to finished frames before they are written: enlarging and a visible mark."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna import provenance
from xdyna.errors import UserError

Image = NDArray[np.uint8]


class Finisher:
    """Enlarges frames and puts the visible mark on them.

    Args:
        size_wh: (width, height) of the frames as they come, pixels.
        upscale: factor, 1 for none; Lanczos resampling, nothing is invented.
        watermark: text of the mark at the bottom right; None for none.
    Attributes:
        size_wh: (width, height) of the frames as they go.
    Raises:
        UserError: the mark cannot be drawn or would be too small to be read; said here, before any long work.
    """

    def __init__(self, size_wh: tuple[int, int], upscale: int = 1, watermark: str | None = None) -> None:
        self._upscale = upscale
        self._watermark = watermark
        self.size_wh = (size_wh[0] * upscale, size_wh[1] * upscale)
        if watermark is not None:
            try:
                provenance.watermark(np.zeros((self.size_wh[1], self.size_wh[0], 3), np.uint8), watermark)
            except UserError as error:
                raise UserError(f"--watermark: {error}; --upscale N makes room for more") from None

    def __call__(self, frame: Image) -> Image:
        """uint8 RGB [H, W, 3] in, [H * upscale, W * upscale, 3] out."""
        if self._upscale > 1:
            frame = np.asarray(cv2.resize(frame, self.size_wh, interpolation=cv2.INTER_LANCZOS4), np.uint8)
        return frame if self._watermark is None else provenance.watermark(frame, self._watermark)
