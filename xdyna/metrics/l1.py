"""Mean absolute difference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Frames, as_mask, check_pair
from xdyna.metrics.specs import ALL_REGIONS, ClipMetric, Region, Sample


def l1(frames: Frames, truth: Frames, masks: NDArray[Any] | None = None) -> float:
    """Mean absolute difference over all frames, pixels and channels under the mask, white being 1.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        truth: of the same shape.
        masks: where to measure, [F, H, W], see `clips.as_mask`.

    Returns:
        0..1; NaN for an empty mask.
    """
    check_pair(frames, truth)
    where = as_mask(masks, frames.shape[:3])
    if not where.any():
        return float("nan")
    difference = np.abs(frames[where].astype(np.int16) - truth[where])
    return float(difference.mean(dtype=np.float64) / 255)


def _measure(sample: Sample, region: Region, _: Any) -> float:
    assert sample.truth is not None
    return l1(sample.made, sample.truth, sample.where(region))


SPECS = (
    ClipMetric(name="l1", unit="", better="lower", needs=frozenset({"truth"}), regions=ALL_REGIONS, measure=_measure),
)
