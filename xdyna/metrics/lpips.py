"""LPIPS: perceptual distance to the truth, frame by frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xdyna.metrics.clips import Frames, as_mask, check_pair
from xdyna.metrics.frames import BATCH, as_pictures, device_of
from xdyna.metrics.nets.perceptual import Lpips
from xdyna.metrics.specs import ALL_REGIONS, ClipMetric, Region, Sample

#: The smallest sides of which AlexNet's last layer still has a pixel.
LEAST_SIDE_PX = 32
#: Pixels per call: VGG's first layers keep 256 bytes of each.
MOST_PX = 1 << 20


@torch.no_grad()
def lpips(frames: Frames, truth: Frames, network: Lpips, masks: NDArray[Any] | None = None) -> float:
    """Mean over frames of the distance under the mask.

    A layer's pixel counts by the share of it that the mask covers. It has seen more than it covers, so a region's value
    depends a little on what lies round it. Frames of which the mask covers nothing do not count.

    Args:
        frames: uint8 RGB [F, H, W, 3], sides of 32 pixels or more.
        truth: of the same shape.
        network: AlexNet's or VGG's.
        masks: where to measure, [F, H, W], see `clips.as_mask`.

    Returns:
        0 for equal clips; NaN for an empty mask.
    """
    check_pair(frames, truth)
    if min(frames.shape[1:3]) < LEAST_SIDE_PX:
        raise ValueError(f"frames are {frames.shape[2]}x{frames.shape[1]}, wanted sides of at least {LEAST_SIDE_PX} px")
    where = None if masks is None else as_mask(masks, frames.shape[:3])
    shown = np.arange(len(frames)) if where is None else np.flatnonzero(where.any((1, 2)))
    if not len(shown):
        return float("nan")
    device, total = device_of(network), 0.0
    batch = max(1, min(BATCH, MOST_PX // (frames.shape[1] * frames.shape[2])))
    for start in range(0, len(shown), batch):
        part = shown[start : start + batch]
        counts = None if where is None else torch.from_numpy(where[part][:, None].astype(np.float32)).to(device)
        distances = network(as_pictures(frames[part]).to(device), as_pictures(truth[part]).to(device), counts)
        total += float(distances.double().sum())
    return total / len(shown)


def _measure(sample: Sample, region: Region, network: Lpips) -> float:
    assert sample.truth is not None
    return lpips(sample.made, sample.truth, network, sample.where(region))


SPECS = (
    ClipMetric(
        name="lpips", unit="", better="lower", needs=frozenset({"truth"}), regions=ALL_REGIONS, backbone="lpips-alex",
        measure=_measure,
    ),
    ClipMetric(
        name="lpips-vgg", unit="", better="lower", needs=frozenset({"truth"}), regions=ALL_REGIONS,
        backbone="lpips-vgg", measure=_measure,
    ),
)  # fmt: skip
