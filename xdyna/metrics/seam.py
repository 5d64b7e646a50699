"""Whether the borders of context windows show as jumps in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xdyna.metrics.clips import Floats, Frames, check_clip
from xdyna.metrics.specs import ClipMetric, Region, Sample


def seam(frames: Frames, borders: Sequence[int]) -> float:
    """Frame difference across window borders over that inside windows.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        borders: b for a border between frames b and b+1, see `window_borders`.

    Returns:
        A ratio, 1 without a seam.
    """
    across, inside = split_differences(frame_differences(frames), borders)
    return float(across.mean() / inside.mean()) if inside.mean() > 0 else float("nan")


def frame_differences(frames: Frames) -> Floats:
    """Mean absolute difference of each frame to the next, grey levels: [F-1]."""
    check_clip(frames, least=2)
    return np.asarray(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3)))


def split_differences(differences: Floats, borders: Sequence[int]) -> tuple[Floats, Floats]:
    """Differences [F-1] at the borders, and the others."""
    if not borders or min(borders) < 0 or max(borders) >= len(differences) or len(set(borders)) == len(differences):
        raise ValueError(f"borders are {list(borders)}, wanted some, not all, of 0..{len(differences) - 1}")
    at = np.isin(np.arange(len(differences)), list(borders))
    return differences[at], differences[~at]


def window_borders(windows: Sequence[Sequence[int]], num_frames: int) -> list[int]:
    """b for every pair of neighbouring frames b, b+1 that are not covered by the same windows."""
    members = [frozenset(k for k, window in enumerate(windows) if frame in window) for frame in range(num_frames)]
    return [frame for frame in range(num_frames - 1) if members[frame] != members[frame + 1]]


def _measure(sample: Sample, _: Region, __: Any) -> float:
    return seam(sample.made, sample.borders)


SPECS = (
    ClipMetric(
        name="seam", unit="ratio", better="lower", needs=frozenset({"borders"}), least_frames=3, measure=_measure
    ),
)
