"""How colours change over a long clip, second by second against its first second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Floats, Frames, Mask, as_mask, check_clip
from xdyna.metrics.colour import to_lab
from xdyna.metrics.specs import ALL_REGIONS, ClipMetric, Region, Sample

LEVELS = 256


@dataclass(frozen=True, eq=False)
class Drift:
    """Figures of S seconds; the first second's are 0.

    Attributes:
        lab: mean L, a, b of each second minus those of the first, [S, 3].
        histogram: earth mover's distance of each second's histograms to the first's, mean over R, G and B, grey levels:
            by how much the pixels' values have to change, at least, for them to be the first second's, [S].
    """

    lab: Floats
    histogram: Floats

    @property
    def de(self) -> Floats:
        """dE (1976) between the mean colours, [S]."""
        return np.asarray(np.linalg.norm(self.lab, axis=-1))

    @property
    def de_per_minute(self) -> float:
        """Steady part of the change: length of the slope of the line through the mean colours, dE per minute.

        What goes and comes back leaves little here, a drift all; NaN for fewer than 3 seconds.
        """
        known = ~np.isnan(self.lab).any(-1)
        if known.sum() < 3:
            return float("nan")
        seconds = np.arange(len(self.lab))[known]
        slope = np.polyfit(seconds, self.lab[known], 1)[0]
        return float(np.linalg.norm(slope) * 60)

    def row(self) -> dict[str, float]:
        """The figures for a table: at the end (mean of the last three seconds), the worst second, and the slope."""
        return {
            "dE at the end": _mean(self.de[-3:]),
            "worst dE": _most(self.de),
            "dE per minute": self.de_per_minute,
            "histogram at the end": _mean(self.histogram[-3:]),
            "worst histogram": _most(self.histogram),
        }


def drift(frames: Frames, fps: float, masks: NDArray[Any] | None = None) -> Drift:
    """Compare the colours of each second with the first second's. A clip whose colours stay the same has 0.

    People who walk through the picture change its colours as well; a mask of what ought to stay, or the figures of the
    driving video, tell how much of it is drift. A last second of which less than half is there is left out.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        fps: frames per second.
        masks: where to measure, [F, H, W] or [H, W], see `clips.as_mask`. NaN for a second of which it covers nothing.

    Raises:
        ValueError: not such a clip, less than a second and a half of it, or a rate that makes no sense.
    """
    check_clip(frames)
    where = as_mask(masks, frames.shape[:3])
    spans = seconds_of(len(frames), fps)
    if len(spans) < 2:
        raise ValueError(f"{len(frames)} frames at {fps:g} fps, wanted at least a second and a half")
    lab = np.stack([_mean_lab(frames[span], where[span]) for span in spans])
    shares = np.stack([_cumulative(frames[span], where[span]) for span in spans])  # [S, 3, 256]
    moved = np.abs(shares - shares[0]).sum(-1).mean(-1)
    return Drift(lab - lab[0], moved)


def seconds_of(num_frames: int, fps: float) -> list[slice]:
    """The frames of each second; a last one of which less than half is there is left out.

    Raises:
        ValueError: a rate of less than one frame per second.
    """
    if not 1 <= fps < float("inf"):
        raise ValueError(f"fps is {fps}, wanted at least 1")
    count = int(num_frames / fps + 0.5)
    edges = [min(int(np.ceil(second * fps)), num_frames) for second in range(count + 1)]
    return [slice(first, end) for first, end in pairwise(edges)]


def _mean_lab(frames: Frames, where: Mask) -> Floats:
    """Mean L, a and b under a mask: [3]."""
    totals = np.zeros(3)
    for frame, mask in zip(frames, where, strict=True):  # a frame at a time: Lab takes 24 bytes per pixel
        totals += to_lab(frame[mask]).sum(0)
    count = int(where.sum())
    return totals / count if count else np.full(3, np.nan)


def _cumulative(frames: Frames, where: Mask) -> Floats:
    """Share of the pixels under a mask that are at most 0, 1, .. 255, per channel: [3, 256].

    The area between two such curves is their distributions' earth mover's distance.
    """
    pixels = frames[where]
    if not len(pixels):
        return np.full((3, LEVELS), np.nan)
    counts = np.stack([np.bincount(pixels[:, channel], minlength=LEVELS) for channel in range(3)])
    return np.asarray(counts.cumsum(-1) / len(pixels))


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _most(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else float("nan")


def _measure(figure: str) -> Callable[[Sample, Region, Any], float]:
    def measure(sample: Sample, region: Region, _: Any) -> float:
        if len(seconds_of(len(sample.made), sample.fps)) < 2:
            return float("nan")
        return drift(sample.made, sample.fps, sample.where(region)).row()[figure]

    return measure


SPECS = (
    ClipMetric(name="drift", unit="dE", better="truth", regions=ALL_REGIONS, measure=_measure("dE at the end")),
    ClipMetric(
        name="drift-per-minute", unit="dE/min", better="truth", regions=ALL_REGIONS, measure=_measure("dE per minute")
    ),
)
