"""Whether neighbouring frames fit each other along the optical flow: there and back again, and in what they show."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import ALL_REGIONS, Floats, Frames, Mask, as_mask, check_clip, mean_where
from xdyna.metrics.flow import optical_flow, warped
from xdyna.metrics.motion_energy import LUMA
from xdyna.metrics.specs import ClipMetric, Region, Sample

#: A pixel counts as moving from this speed on, pixels per frame.
MOVES_PX = 0.25
#: There and back again must end within this many pixels, and this share of the way, of the beginning.
NEAR_PX, NEAR_SHARE = 0.5, 0.1
#: What the flow leads to must differ from where it begins by at most this share of the change at the place itself,
#: both averaged over a square of this side.
LEFT_SHARE, AROUND_PX = 0.5, 3
#: Of fewer moving pixels nothing is said.
LEAST_PX = 30


def flow_consistency(frames: Frames, masks: NDArray[Any] | None = None) -> float:
    """Share of the moving pixels whose change the flow explains: it leads to the like, and back to where it began.

    Things that really move give the same flow both ways and look alike afterwards; noise, flicker and what appears
    from nothing do not.

    Args:
        frames: uint8 RGB [F, H, W, 3], F of 2 or more.
        masks: where to measure, [F, H, W], see `clips.as_mask`.

    Returns:
        0..1; NaN where next to nothing moves (fewer than 30 pixels in all).
    """
    check_clip(frames, least=2)
    back = optical_flow(frames[::-1])[::-1]
    return consistency(frames, optical_flow(frames), back, as_mask(masks, frames.shape[:3]))


def warping_error(frames: Frames, masks: NDArray[Any] | None = None) -> float:
    """Mean absolute difference of each frame to the next one brought back along the flow.

    A still clip has none: compare it with the truth's. Pixels that the flow leads out of the frame do not count.

    Args:
        frames: uint8 RGB [F, H, W, 3], F of 2 or more.
        masks: where to measure, [F, H, W], see `clips.as_mask`.

    Returns:
        Grey levels; NaN for an empty mask.
    """
    check_clip(frames, least=2)
    return warp_difference(frames, optical_flow(frames), as_mask(masks, frames.shape[:3]))


def consistency(frames: Frames, forth: Floats, back: Floats, where: Mask) -> float:
    """`flow_consistency` from the flows: [F-1, H, W, 2] each, entry k between frames k and k + 1; where: [F, H, W]."""
    length = np.linalg.norm(forth, axis=-1)
    moves = (length >= MOVES_PX) & where[:-1]
    if moves.sum() < LEAST_PX:
        return float("nan")
    luma = frames.astype(np.float32) @ LUMA
    good = 0
    for step, (there, again) in enumerate(zip(forth, back, strict=True)):
        returned = np.linalg.norm(there + warped(again, there), axis=-1)
        left = _around(np.abs(warped(luma[step + 1], there) - luma[step]))
        explained = left <= LEFT_SHARE * _around(np.abs(luma[step + 1] - luma[step]))
        good += int((moves[step] & explained & (returned <= NEAR_PX + NEAR_SHARE * length[step])).sum())
    return good / int(moves.sum())


def warp_difference(frames: Frames, forth: Floats, where: Mask) -> float:
    """`warping_error` from the flow [F-1, H, W, 2] and the mask [F, H, W]."""
    brought = np.stack([warped(after, flow) for after, flow in zip(frames[1:], forth, strict=True)])
    difference = np.abs(brought.astype(np.float32) - frames[:-1]).mean(-1)
    return mean_where(difference, where[:-1] & leads_inside(forth))


def leads_inside(forth: Floats) -> Mask:
    """Bool [F-1, H, W]: pixels whose flow ends inside the frame."""
    height, width = forth.shape[1:3]
    x, y = forth[..., 0] + np.arange(width), forth[..., 1] + np.arange(height)[:, None]
    return np.asarray((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))


def _around(values: Floats) -> Floats:
    return np.asarray(cv2.blur(values, (AROUND_PX, AROUND_PX)))


def _measure_consistency(sample: Sample, region: Region, _: Any) -> float:
    where = as_mask(sample.where(region), sample.made.shape[:3])
    return consistency(sample.made, sample.flow_forth, sample.flow_back, where)


def _measure_warping(sample: Sample, region: Region, _: Any) -> float:
    return warp_difference(sample.made, sample.flow_forth, as_mask(sample.where(region), sample.made.shape[:3]))


SPECS = (
    ClipMetric(
        name="flow-consistency", unit="share", better="truth", regions=ALL_REGIONS, least_frames=2,
        measure=_measure_consistency,
    ),
    ClipMetric(
        name="warping-error", unit="levels", better="truth", regions=ALL_REGIONS, least_frames=2,
        measure=_measure_warping,
    ),
)  # fmt: skip
