"""Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Floats, Frames, as_mask, check_pair, mean_where
from xdyna.metrics.specs import ALL_REGIONS, ClipMetric, Region, Sample

#: The paper's Gaussian window and its constants for a peak of 255.
WINDOW_PX, SIGMA_PX = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(frames: Frames, truth: Frames, masks: NDArray[Any] | None = None) -> float:
    """Mean SSIM over frames, channels and pixels; windows at the edge see mirrored pixels, as torchmetrics has it.

    Args:
        frames: uint8 RGB [F, H, W, 3], sides of 11 pixels or more.
        truth: of the same shape.
        masks: where to measure, [F, H, W]: the windows' middles; the windows reach 5 pixels beyond.

    Returns:
        -1..1, 1 for equal clips; NaN for an empty mask.
    """
    check_pair(frames, truth)
    if min(frames.shape[1:3]) < WINDOW_PX:
        raise ValueError(f"frames are {frames.shape[2]}x{frames.shape[1]}, wanted sides of at least {WINDOW_PX} px")
    maps = np.stack([ssim_map(made, wanted).mean(-1) for made, wanted in zip(frames, truth, strict=True)])
    return mean_where(maps, as_mask(masks, frames.shape[:3]))


def ssim_map(made: NDArray[Any], wanted: NDArray[Any]) -> Floats:
    """SSIM around every pixel of one picture, float64 [H, W, 3]."""
    x, y = made.astype(np.float64), wanted.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return np.asarray(light * (2 * covariance + C2) / (variance_x + variance_y + C2))


def _blur(picture: Floats) -> Floats:
    size = (WINDOW_PX, WINDOW_PX)
    return np.asarray(cv2.GaussianBlur(picture, size, SIGMA_PX, borderType=cv2.BORDER_REFLECT_101))


def _measure(sample: Sample, region: Region, _: Any) -> float:
    assert sample.truth is not None
    return ssim(sample.made, sample.truth, sample.where(region))


SPECS = (
    ClipMetric(
        name="ssim", unit="", better="higher", needs=frozenset({"truth"}), regions=ALL_REGIONS, measure=_measure
    ),
)
