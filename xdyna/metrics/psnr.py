"""Peak signal-to-noise ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Frames, as_mask, check_pair
from xdyna.metrics.specs import ALL_REGIONS, ClipMetric, Region, Sample

PEAK = 255.0


def psnr(frames: Frames, truth: Frames, masks: NDArray[Any] | None = None) -> float:
    """PSNR in dB of the mean squared error over all frames, pixels and channels under the mask.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        truth: of the same shape.
        masks: where to measure, [F, H, W], see `clips.as_mask`.

    Returns:
        dB; infinite for equal clips, NaN for an empty mask.
    """
    check_pair(frames, truth)
    where = as_mask(masks, frames.shape[:3])
    if not where.any():
        return float("nan")
    error = (frames.astype(np.float32) - truth.astype(np.float32))[where]
    squared = float(np.mean(error**2, dtype=np.float64))
    return float("inf") if squared == 0 else float(10 * np.log10(PEAK**2 / squared))


def _measure(sample: Sample, region: Region, _: Any) -> float:
    assert sample.truth is not None
    return psnr(sample.made, sample.truth, sample.where(region))


SPECS = (
    ClipMetric(
        name="psnr", unit="dB", better="higher", needs=frozenset({"truth"}), regions=ALL_REGIONS, measure=_measure
    ),
)
