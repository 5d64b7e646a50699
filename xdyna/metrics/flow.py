"""Optical flow: how fast regions move. Flicker has flow too, but its directions do not agree from frame to frame."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Floats, Frames, all_of_three, as_mask, check_clip, mean_of_three, mean_where
from xdyna.metrics.specs import ALL_REGIONS, ClipMetric, Region, Sample

#: Small frames are enlarged before DIS looks for its patches of 8 pixels; flow is given in pixels of the frames.
LEAST_SIDE_PX = 192
#: Flow counts where the brightness changes by so many grey levels, averaged over a square of this side. Without that,
#: flow found at the rim of a moving part would spread over still, even surfaces, in the truth as well.
SEEN_CHANGE, SEEN_SIDE_PX = 2.0, 3
#: Share of a region that `dynamic_degree` looks at.
FASTEST_SHARE = 0.05


def flow(frames: Frames, masks: NDArray[Any] | None = None) -> float:
    """Mean speed under the mask: the length of the flow vector averaged over three frames, pixels per frame.

    Args:
        frames: uint8 RGB [F, H, W, 3], F of 4 or more.
        masks: where to measure, [F, H, W], see `clips.as_mask`.

    Returns:
        Pixels per frame, 0 for a still clip; NaN for an empty mask.
    """
    check_clip(frames, least=4)
    where = as_mask(masks, frames.shape[:3])
    return mean_where(speeds(optical_flow(frames)), steps_where(where))


def dynamic_degree(frames: Frames, masks: NDArray[Any] | None = None) -> float:
    """Mean speed of the fastest 5 % of a region, step by step: how fast things move, however small they are.

    Args:
        frames: uint8 RGB [F, H, W, 3], F of 4 or more.
        masks: where to measure, [F, H, W], see `clips.as_mask`.

    Returns:
        Pixels per frame, 0 for a still clip; NaN for an empty mask.
    """
    check_clip(frames, least=4)
    return fastest(speeds(optical_flow(frames)), steps_where(as_mask(masks, frames.shape[:3])))


def fastest(values: Floats, where: NDArray[np.bool_]) -> float:
    """Mean over steps [S, H, W] of the mean of each step's largest 5 % under the mask; NaN where it is empty."""
    steps = [np.sort(step[seen]) for step, seen in zip(values, where, strict=True) if seen.any()]
    tops = [float(step[-max(1, round(FASTEST_SHARE * len(step))) :].mean()) for step in steps]
    return float(np.mean(tops)) if tops else float("nan")


def speeds(vectors: Floats) -> Floats:
    """Flow [F-1, H, W, 2] -> length of its 3-frame means, [F-3, H, W], pixels per frame."""
    return np.asarray(np.linalg.norm(mean_of_three(vectors), axis=-1))


def steps_where(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[F-3, H, W]: pixels of `speeds` that saw nothing but the mask [F, H, W]."""
    return all_of_three(where[:-1] & where[1:])


def optical_flow(frames: Frames) -> Floats:
    """Flow from each frame to the next by dense inverse search (Kroeger et al. 2016), 0 where nothing changes.

    Returns:
        float32 [F-1, H, W, 2]: (x, y), pixels.
    """
    check_clip(frames, least=2)
    height, width = frames.shape[1:3]
    enlarge = max(1, round(LEAST_SIDE_PX / min(height, width)))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    vectors = np.empty((len(frames) - 1, height, width, 2), np.float32)
    for index, (first, second) in enumerate(pairwise(grey)):
        found = search.calc(_enlarged(first, enlarge), _enlarged(second, enlarge), None)
        found = cv2.resize(found, (width, height), interpolation=cv2.INTER_AREA) / enlarge
        change = cv2.blur(cv2.absdiff(first, second).astype(np.float32), (SEEN_SIDE_PX, SEEN_SIDE_PX))
        vectors[index] = np.where((change >= SEEN_CHANGE)[..., None], found, 0)
    return vectors


def warped(picture: NDArray[Any], vectors: Floats) -> NDArray[Any]:
    """A picture [H, W(, C)] fetched from where the flow [H, W, 2] leads to; edge pixels fill what is outside."""
    height, width = vectors.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved = (x + vectors[..., 0]).astype(np.float32), (y + vectors[..., 1]).astype(np.float32)
    return np.asarray(cv2.remap(picture, *moved, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _enlarged(picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    size = (picture.shape[1] * factor, picture.shape[0] * factor)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC))


def _measure(sample: Sample, region: Region, _: Any) -> float:
    where = as_mask(sample.where(region), sample.made.shape[:3])
    return mean_where(speeds(sample.flow_forth), steps_where(where))


def _measure_degree(sample: Sample, region: Region, _: Any) -> float:
    return fastest(speeds(sample.flow_forth), steps_where(as_mask(sample.where(region), sample.made.shape[:3])))


SPECS = (
    ClipMetric(name="flow", unit="px/frame", better="truth", regions=ALL_REGIONS, least_frames=4, measure=_measure),
    ClipMetric(
        name="dynamic-degree", unit="px/frame", better="truth", regions=ALL_REGIONS, least_frames=4,
        measure=_measure_degree,
    ),
)  # fmt: skip
