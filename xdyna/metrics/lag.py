"""Whether loose parts (hair, skirts, capes) go on moving when the body has stopped, and for how long."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Frames, Mask, as_mask, check_clip


def lag(frames: Frames, loose: NDArray[Any], body: NDArray[Any], stop: int, fps: float) -> float:
    """Seconds for which the loose parts go on at the pace that they had before the body stopped.

    After the stop the body's own changes are noise; only what the loose parts change beyond that counts, so flicker
    gives 0 as a frozen clip does.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        loose: where the loose parts are, [F, H, W] or [H, W], see `clips.as_mask`.
        body: where the rest of the person is, well away from the loose parts; empty masks count as resting.
        stop: the first frame at which the body stands still, 3 or more; at least two frames follow.
        fps: frames per second.

    Returns:
        Seconds; NaN if the loose parts did not move before.
    """
    check_clip(frames, least=5)
    if not 3 <= stop <= len(frames) - 3:
        raise ValueError(f"stop is {stop}, wanted 3 to {len(frames) - 3} in a clip of {len(frames)} frames")
    moving, resting = (changes(frames, as_mask(masks, frames.shape[:3])) for masks in (loose, body))
    pace = float(np.nanmean(moving[:stop]))
    beyond = np.nansum(np.maximum(moving[stop:] - np.nan_to_num(resting[stop:]), 0))
    return float(beyond / pace / fps) if pace > 0 else float("nan")


def changes(frames: Frames, where: Mask) -> NDArray[np.float64]:
    """Mean absolute difference of each frame to the next, [F-1] grey levels, where either frame shows the region."""
    step = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(-1)
    either = where[:-1] | where[1:]
    count = either.sum((1, 2))
    return np.where(count > 0, (step * either).sum((1, 2)) / np.maximum(count, 1), np.nan)
