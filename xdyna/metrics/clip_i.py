"""CLIP-I: how alike CLIP's image encoder finds the clip's frames and the reference photo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from xdyna.metrics.clips import Frames, check_clip
from xdyna.metrics.frames import rows_of
from xdyna.metrics.specs import ClipMetric, Region, Sample


def clip_i(frames: Frames, reference: NDArray[np.uint8], network: nn.Module) -> float:
    """Mean cosine between the direction of the reference and that of each frame.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        reference: uint8 RGB [h, w, 3].
        network: pictures, float [N, 3, H, W] in 0..1, -> directions [N, D] of length 1.

    Returns:
        -1..1, 1 for the same picture.
    """
    check_clip(frames)
    wanted, found = rows_of(reference[None], network), rows_of(frames, network)
    return float((found.astype(np.float64) @ wanted[0]).mean())


def _measure(sample: Sample, _: Region, network: nn.Module) -> float:
    assert sample.reference is not None
    return clip_i(sample.made, sample.reference, network)


SPECS = (
    ClipMetric(
        name="clip-i", unit="", better="higher", needs=frozenset({"reference"}), backbone="clip", measure=_measure
    ),
)
