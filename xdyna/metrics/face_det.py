"""In how many frames a detector finds a face at all."""

from __future__ import annotations

import numpy as np

from xdyna.metrics.clips import Frames, check_clip
from xdyna.metrics.faces import Finder
from xdyna.metrics.specs import ClipMetric, Region, Sample


def face_det(frames: Frames, finder: Finder) -> float:
    """Share of the frames in which a face is found.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        finder: looks for it.

    Returns:
        0..1. The true clip's own share is what can be reached: people turn away.
    """
    check_clip(frames)
    return float(np.mean([finder.find(frame) is not None for frame in frames]))


def _measure(sample: Sample, _: Region, finder: Finder) -> float:
    return face_det(sample.made, finder)


SPECS = (
    ClipMetric(name="face-det", unit="share", better="higher", backbone="mediapipe-faces", measure=_measure),
    ClipMetric(name="face-det-scrfd", unit="share", better="higher", backbone="scrfd", measure=_measure),
)
