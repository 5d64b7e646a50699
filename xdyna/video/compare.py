"""Pictures side by side at one height: reference, driving frame, pose map, output."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from xdyna.video.picture import Image


def side_by_side(panels: Sequence[Image], height: int) -> Image:
    """Panels in a row, left to right.

    Args:
        panels: uint8 RGB [H, W, 3] each, of any sizes.
        height: of the row, pixels; each panel is resized to it and keeps its shape.
    Returns:
        uint8 RGB [height, sum of widths, 3]; (width, height) is `side_by_side_size_wh` of the panels' sizes.
    """
    return np.concatenate([_resized(panel, height) for panel in panels], axis=1)


def side_by_side_size_wh(sizes_wh: Sequence[tuple[int, int]], height: int) -> tuple[int, int]:
    """(width, height) of the row that panels of these (width, height) make, for `VideoWriter`."""
    return sum(_width_at(size_wh, height) for size_wh in sizes_wh), height


def _width_at(size_wh: tuple[int, int], height: int) -> int:
    return max(1, round(size_wh[0] * height / size_wh[1]))


def _resized(panel: Image, height: int) -> Image:
    old_height, old_width = panel.shape[:2]
    if old_height == height:
        return panel
    size_wh = (_width_at((old_width, old_height), height), height)
    method = cv2.INTER_AREA if height < old_height else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(panel, size_wh, interpolation=method), np.uint8)
