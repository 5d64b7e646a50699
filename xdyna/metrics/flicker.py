"""Flicker: brightness that comes and goes within one frame, and that no motion explains."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import ALL_REGIONS, Floats, Frames, Mask, as_mask, check_clip, mean_where
from xdyna.metrics.flow import optical_flow, warped
from xdyna.metrics.motion_energy import LUMA
from xdyna.metrics.specs import ClipMetric, Region, Sample


def flicker(frames: Frames, masks: NDArray[Any] | None = None) -> float:
    """How far each pixel's brightness lies outside what the same place shows in the frames before and after.

    The neighbouring frames are brought here along the optical flow. What moves, brightens or fades steadily lies
    between them and gives nothing; what is in one frame only counts in full. Motion too fast for the flow counts as
    well, in the truth as in what was generated: compare with the truth's value.

    Args:
        frames: uint8 RGB [F, H, W, 3], F of 3 or more.
        masks: where to measure, [F, H, W], see `clips.as_mask`.

    Returns:
        Grey levels, 0 for a still clip; NaN for an empty mask.
    """
    check_clip(frames, least=3)
    back = optical_flow(frames[::-1])[::-1]
    return outside_neighbours(frames, optical_flow(frames), back, as_mask(masks, frames.shape[:3]))


def outside_neighbours(frames: Frames, forth: Floats, back: Floats, where: Mask) -> float:
    """`flicker` from the flows: [F-1, H, W, 2] each, entry k between frames k and k + 1; where: [F, H, W]."""
    luma = frames.astype(np.float32) @ LUMA
    before = np.stack([warped(picture, flow) for picture, flow in zip(luma[:-2], back[:-1], strict=True)])
    after = np.stack([warped(picture, flow) for picture, flow in zip(luma[2:], forth[1:], strict=True)])
    above = luma[1:-1] - np.maximum(before, after)
    below = np.minimum(before, after) - luma[1:-1]
    return mean_where(np.maximum(np.maximum(above, below), 0), where[1:-1])


def _measure(sample: Sample, region: Region, _: Any) -> float:
    where = as_mask(sample.where(region), sample.made.shape[:3])
    return outside_neighbours(sample.made, sample.flow_forth, sample.flow_back, where)


SPECS = (
    ClipMetric(name="flicker", unit="levels", better="truth", regions=ALL_REGIONS, least_frames=3, measure=_measure),
)
