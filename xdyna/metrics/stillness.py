"""Whether what stands still in the truth stands still in the generated clip."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import (
    Floats,
    Frames,
    Mask,
    all_of_three,
    as_mask,
    check_clip,
    check_pair,
    grown,
    mean_of_three,
    mean_where,
)
from xdyna.metrics.flow import optical_flow, speeds, steps_where
from xdyna.metrics.specs import ClipMetric, Region, Sample

#: A pixel of the truth stands still if no channel of its 3-frame mean (filmed clips have grain) spans more levels.
RESTS = 6.0
#: Still is what lies so far from anything that moves and from the person, pixels.
MARGIN_PX = 2
#: Of fewer pixels per frame nothing is said.
LEAST_PX = 30


def still_region(truth: Frames, masks: NDArray[Any] | None = None) -> Mask:
    """Bool [F, H, W]: where the truth stands still, behind the person and without it.

    Args:
        truth: uint8 RGB [F, H, W, 3], F of 3 or more.
        masks: of the person, [F, H, W], who hides what is behind and is never part of the region; None: nobody.
    """
    check_clip(truth, least=3, name="truth")
    seen = np.ones(truth.shape[:3], np.bool_)
    if masks is not None:
        seen = ~grown(as_mask(masks, truth.shape[:3]), MARGIN_PX)
    smooth = mean_of_three(truth)
    known = all_of_three(np.asarray(seen))
    most = np.where(known[..., None], smooth, -np.inf).max(0)
    least = np.where(known[..., None], smooth, np.inf).min(0)
    ever = np.asarray(known.any(0))
    moves = ever & ((most - least).max(-1) > RESTS)
    return np.asarray(seen & ever & ~grown(moves[None], MARGIN_PX))


def still_flow(frames: Frames, truth: Frames, masks: NDArray[Any] | None = None) -> float:
    """Mean speed where the truth stands still, pixels per frame; NaN where next to nothing does.

    Args:
        frames: uint8 RGB [F, H, W, 3], F of 4 or more.
        truth: of the same shape.
        masks: of the person, see `still_region`.
    """
    check_pair(frames, truth)
    return _still_speed(optical_flow(frames), still_region(truth, masks))


def still_change(frames: Frames, truth: Frames, masks: NDArray[Any] | None = None) -> float:
    """Mean difference of each frame to the next where the truth stands still, grey levels; NaN likewise.

    Arguments as of `still_flow`; F of 3 or more.
    """
    check_pair(frames, truth)
    still = still_region(truth, masks)
    both = still[:-1] & still[1:]
    if both.sum() < LEAST_PX * len(both):
        return float("nan")
    return mean_where(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(-1), both)


def _still_speed(forth: Floats, still: Mask) -> float:
    where = steps_where(still)
    return mean_where(speeds(forth), where) if where.sum() >= LEAST_PX * len(where) else float("nan")


def _measure_flow(sample: Sample, _: Region, __: Any) -> float:
    assert sample.truth is not None
    return _still_speed(sample.flow_forth, still_region(sample.truth, sample.masks))


def _measure_change(sample: Sample, _: Region, __: Any) -> float:
    assert sample.truth is not None
    return still_change(sample.made, sample.truth, sample.masks)


SPECS = (
    ClipMetric(
        name="still-flow", unit="px/frame", better="lower", needs=frozenset({"truth"}), least_frames=4,
        measure=_measure_flow,
    ),
    ClipMetric(
        name="still-change", unit="levels/frame", better="lower", needs=frozenset({"truth"}), least_frames=3,
        measure=_measure_change,
    ),
)  # fmt: skip
