"""Rectangles: which part of a picture fills the model's frame, and how boxes grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Points = NDArray[np.float32]

#: How far a face box is grown to left, top, right and bottom, in units of its longer side, from its centre.
FACE_BOX_GROWTH = (1.35, 1.25, 1.35, 1.45)
#: Shares of the surplus height that are cut off above: photos lose both ends alike, driving clips rather the floor.
CENTRE, UPPER = 2, 4
#: Past this reduction a bilinear filter skips pixels, and the area filter takes its place.
BILINEAR_LIMIT = 2.0


@dataclass(frozen=True)
class Crop:
    """A rectangle of whole pixels inside a picture."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, image: Image) -> Image:
        """The pixels [height, width, 3] of the rectangle, as a view of `image` [H, W, 3]."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def points(self, points_xy: Points, size_wh: tuple[int, int]) -> Points:
        """Where points [..., 2] of the picture lie once the rectangle has been stretched to `size_wh` (pixels)."""
        scale = np.asarray(size_wh, np.float64) / (self.width, self.height)
        return ((points_xy - (self.left, self.top)) * scale).astype(np.float32)


def ratio_crop(image_wh: tuple[int, int], size_wh: tuple[int, int], surplus_above: int = CENTRE) -> Crop:
    """The largest rectangle of a picture that has the shape of `size_wh`.

    Args:
        image_wh: (width, height) of the picture, pixels.
        size_wh: (width, height) whose ratio is wanted, pixels.
        surplus_above: one part in this many of the surplus height is cut off above (`CENTRE` for reference photos,
            `UPPER` for driving frames, as the official code does). Surplus width is cut off on both sides alike.
    Returns:
        The rectangle; its sides are rounded down to whole pixels, at least one.
    """
    (width, height), (wanted_width, wanted_height) = image_wh, size_wh
    if min(*image_wh, *size_wh) < 1:
        raise ValueError(f"sizes must be at least one pixel, got a picture of {image_wh} and a frame of {size_wh}")
    if height * wanted_width > width * wanted_height:
        kept = max(1, width * wanted_height // wanted_width)
        return Crop(0, (height - kept) // surplus_above, width, kept)
    kept = max(1, height * wanted_width // wanted_height)
    return Crop((width - kept) // 2, 0, kept, height)


def fit(image: Image, crop: Crop, size_wh: tuple[int, int], *, official: bool = False) -> Image:
    """Cut a rectangle out of a picture and stretch it to `size_wh`.

    Args:
        image: uint8 RGB [H, W, 3], 0..255.
        crop: what is kept.
        size_wh: (width, height) of the result, pixels.
        official: always filter bilinearly, as the official code does; otherwise large reductions average areas,
            which keeps fine texture of big photos from turning into speckle.
    Returns:
        uint8 RGB [height, width, 3], a new array.
    """
    import cv2

    reduction = max(crop.width / size_wh[0], crop.height / size_wh[1])
    area = reduction > BILINEAR_LIMIT and not official
    pixels = np.ascontiguousarray(crop.cut(image))
    resized = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


def grow_box(box: Sequence[float], growth: Sequence[float] = FACE_BOX_GROWTH) -> tuple[int, int, int, int]:
    """Grow a box round its centre, by its longer side.

    Args:
        box: (left, top, right, bottom), pixels.
        growth: new distance of each of the four sides from the centre, in units of the longer side.
    Returns:
        (left, top, right, bottom), truncated towards zero; may reach outside the picture.
    """
    left, top, right, bottom = (float(side) for side in box)
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    side = max(right - left, bottom - top)
    return (
        int(centre_x - side * growth[0]),
        int(centre_y - side * growth[1]),
        int(centre_x + side * growth[2]),
        int(centre_y + side * growth[3]),
    )
