"""Where a clip moves and how strongly. Flicker is not motion: three neighbouring frames are averaged first."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Floats, Frames, all_of_three, as_mask, check_clip, mean_of_three, mean_where
from xdyna.metrics.specs import ALL_REGIONS, ClipMetric, Region, Sample

#: Luma of Rec. 601.
LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)
#: A pixel seen for less than this share of the clip has no place in the map.
LEAST_SEEN = 0.25
#: Maps are blurred by this before they are compared with the truth's, pixels.
MAP_BLUR_PX = 1.5


def motion_energy(frames: Frames, masks: NDArray[Any] | None = None) -> float:
    """Mean of `motion_map`: grey levels per frame, 0 for a still clip.

    Args:
        frames: uint8 RGB [F, H, W, 3], F of 4 or more.
        masks: where to measure, [F, H, W], see `clips.as_mask`.
    """
    energy = motion_map(frames, masks)
    return mean_where(energy, ~np.isnan(energy))


def motion_map(frames: Frames, masks: NDArray[Any] | None = None, blur_px: float = 0.0) -> Floats:
    """Mean over time of how much each pixel's brightness, averaged over three frames, changes from frame to frame.

    Independent noise of a standard deviation s adds 0.38 s here against 1.13 s in a plain frame difference, while
    motion slower than three frames keeps its full value.

    Args:
        frames: uint8 RGB [F, H, W, 3], F of 4 or more.
        masks: where to measure, [F, H, W]. A change counts where all four frames that it depends on are covered.
        blur_px: standard deviation of a blur of the finished map that leaves out what was not measured.

    Returns:
        float32 [H, W], grey levels per frame; NaN where the mask covers less than a quarter of the clip.
    """
    check_clip(frames, least=4)
    where = as_mask(masks, frames.shape[:3])
    smooth = mean_of_three(frames.astype(np.float32) @ LUMA)
    change = np.abs(np.diff(smooth, axis=0))  # [F-3, H, W]
    known = all_of_three(where)
    known = known[:-1] & known[1:]
    count = known.sum(0)
    enough = count >= LEAST_SEEN * len(change)
    energy = np.where(enough, (change * known).sum(0) / np.maximum(count, 1), np.nan).astype(np.float32)
    return _blurred(energy, blur_px) if blur_px else energy


def map_correlation(first: Floats, second: Floats) -> float:
    """Pearson correlation of two maps [H, W] over the pixels that both know; NaN if one of them is constant there."""
    known = ~(np.isnan(first) | np.isnan(second))
    x, y = first[known].astype(np.float64), second[known].astype(np.float64)
    return correlation(x, y)


def correlation(x: Floats, y: Floats) -> float:
    """Pearson correlation of two lists of numbers; NaN for fewer than 3 or if one of them is constant."""
    if len(x) < 3:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / size) if size > 1e-9 else float("nan")


def _blurred(energy: Floats, sigma_px: float) -> Floats:
    """Gaussian blur in which unknown pixels have no weight."""
    known = ~np.isnan(energy)
    weight = cv2.GaussianBlur(known.astype(np.float32), (0, 0), sigma_px)
    total = cv2.GaussianBlur(np.where(known, energy, 0).astype(np.float32), (0, 0), sigma_px)
    return np.where(known, total / np.maximum(weight, 1e-6), np.nan)


def _measure(sample: Sample, region: Region, _: Any) -> float:
    return motion_energy(sample.made, sample.where(region))


def _measure_map(sample: Sample, region: Region, _: Any) -> float:
    assert sample.truth is not None
    where = sample.where(region)
    return map_correlation(motion_map(sample.made, where, MAP_BLUR_PX), motion_map(sample.truth, where, MAP_BLUR_PX))


SPECS = (
    ClipMetric(
        name="motion-energy", unit="levels/frame", better="truth", regions=ALL_REGIONS, least_frames=4, measure=_measure
    ),
    ClipMetric(
        name="motion-map", unit="correlation", better="higher", needs=frozenset({"truth"}), regions=ALL_REGIONS,
        least_frames=4, measure=_measure_map,
    ),
)  # fmt: skip
