"""Mend and calm tracks: short gaps are filled and reported, jitter is filtered without delay."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xdyna.preprocess.boxes import confident_boxes, is_box
from xdyna.preprocess.tracks import FloatArray, Tracks

#: Longest gap, in seconds, that is filled by default.
GAP_LIMIT_S = 0.75
MIN_CONF = 0.3
# What was filled in is shown in maps, and can be told from what was seen.
FILLED_CONF = 0.4

# One-Euro filter: the cutoff grows with speed, so that still joints rest and quick ones keep up. Speeds are in frame
# heights per second.
MIN_CUTOFF_HZ = 2.5
SPEED_CUTOFF_HZ = 12.0
SPEED_SMOOTHING_HZ = 2.0


@dataclass(frozen=True)
class GapReport:
    """What `fill_gaps` did.

    Attributes:
        num_frames: of the clip.
        filled: frames in which the whole person was missing and was filled in.
        missing: spans [first, last] of frames in which the person is still missing.
        joints_filled: how many single joints were filled in frames in which others were seen.
        fps: of the clip.
    """

    num_frames: int
    filled: tuple[int, ...]
    missing: tuple[tuple[int, int], ...]
    joints_filled: int
    fps: float

    @property
    def num_missing(self) -> int:
        """How many frames are without a person."""
        return sum(last - first + 1 for first, last in self.missing)

    def lines(self) -> list[str]:
        """What a user should know, one line each; empty when nothing was missing."""
        lines = []
        if self.filled:
            lines.append(
                f"the person was lost in {len(self.filled)} of {self.num_frames} frames and filled in from around them"
            )
        if self.missing:
            spans = ", ".join(
                f"{first / self.fps:.2f}-{(last + 1) / self.fps:.2f} s" for first, last in self.missing[:5]
            )
            more = f" and {len(self.missing) - 5} more" if len(self.missing) > 5 else ""
            lines.append(
                f"nobody is seen in {self.num_missing} of {self.num_frames} frames ({spans}{more}); the map is empty"
                " there"
            )
        return lines


def fill_gaps(tracks: Tracks, limit_s: float = GAP_LIMIT_S) -> tuple[Tracks, GapReport]:
    """Fill every joint's and hand's gaps of at most `limit_s` seconds by straight lines between what was seen.

    A gap at the start or end of a clip is filled by holding still. Longer gaps stay: confidence below 0.3. Face points
    are filled too where both sides were seen.

    Args:
        tracks: one person.
        limit_s: longest gap to fill, seconds; 0 fills none.

    Returns:
        The tracks and what was done.
    """
    limit = round(limit_s * tracks.fps)
    absent = ~is_box(confident_boxes(tracks, MIN_CONF))
    joints_xy, joints_conf = _fill(tracks.joints_xy, tracks.joints_conf, limit)
    hands_xy, hands_conf = _fill(tracks.hands_xy, tracks.hands_conf, limit)
    face_xy, face_conf = _fill(tracks.face_xy[:, None], tracks.face_conf[:, None], limit)
    filled = replace(
        tracks,
        joints_xy=joints_xy,
        joints_conf=joints_conf,
        hands_xy=hands_xy,
        hands_conf=hands_conf,
        face_xy=face_xy[:, 0],
        face_conf=face_conf[:, 0],
    )
    still_absent = ~is_box(confident_boxes(filled, MIN_CONF))
    new = (joints_conf >= MIN_CONF) & (tracks.joints_conf < MIN_CONF) & ~absent[:, None]
    return filled, GapReport(
        num_frames=len(tracks),
        filled=tuple(int(index) for index in np.flatnonzero(absent & ~still_absent)),
        missing=tuple(_spans(still_absent)),
        joints_filled=int(new.sum()),
        fps=tracks.fps,
    )


def smooth_tracks(
    tracks: Tracks,
    *,
    min_cutoff_hz: float = MIN_CUTOFF_HZ,
    speed_cutoff_hz: float = SPEED_CUTOFF_HZ,
) -> Tracks:
    """Filter jitter by One-Euro filters run forwards and backwards, whose delays cancel.

    Args:
        tracks: one person; points of confidence below 0.3 are left alone, and what follows them begins anew.
        min_cutoff_hz: cutoff for a joint at rest; lower is calmer.
        speed_cutoff_hz: what a speed of one frame height per second adds to it; higher follows quick moves closer.

    Returns:
        Tracks with moved points; confidences unchanged.
    """

    def calm(points: FloatArray, conf: FloatArray) -> FloatArray:
        scaled = points.astype(np.float64) / tracks.size_wh[1]
        shown = conf >= MIN_CONF
        ahead = _one_euro(scaled, shown, tracks.fps, min_cutoff_hz, speed_cutoff_hz)
        back = _one_euro(scaled[::-1], shown[::-1], tracks.fps, min_cutoff_hz, speed_cutoff_hz)[::-1]
        return ((ahead + back) / 2 * tracks.size_wh[1]).astype(np.float32)

    return replace(
        tracks,
        joints_xy=calm(tracks.joints_xy, tracks.joints_conf),
        hands_xy=calm(tracks.hands_xy, tracks.hands_conf),
        face_xy=calm(tracks.face_xy, np.repeat(tracks.face_conf[:, None], tracks.face_xy.shape[1], axis=1)),
    )


def _fill(points: FloatArray, conf: FloatArray, limit: int) -> tuple[FloatArray, FloatArray]:
    """Fill gaps of at most `limit` frames; points [F, *N, ..., 2] with confidences [F, *N]."""
    points, conf = points.copy(), conf.copy()
    for item in np.ndindex(conf.shape[1:]):
        each = (slice(None), *item)
        shown = np.flatnonzero(conf[each] >= MIN_CONF)
        if not len(shown):
            continue
        own = points[each]
        for first, last in _spans(conf[each] < MIN_CONF):
            if last - first + 1 > limit:
                continue
            before, after = first - 1, last + 1
            start = own[before] if before >= 0 else own[after]
            end = own[after] if after < len(own) else own[before]
            share = np.linspace(0, 1, last - first + 3)[1:-1].reshape(-1, *[1] * (own.ndim - 1))
            own[first : last + 1] = start * (1 - share) + end * share
            conf[(slice(first, last + 1), *item)] = FILLED_CONF
        points[each] = own
    return points, conf


def _spans(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[first, last] of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(first), int(after) - 1) for first, after in edges.reshape(-1, 2)]


def _one_euro(
    points: NDArray[np.float64], shown: NDArray[np.bool_], fps: float, min_cutoff_hz: float, speed_cutoff_hz: float
) -> NDArray[np.float64]:
    """The One-Euro filter (Casiez et al. 2012) for points [F, ..., 2]; begins anew where a point was not shown."""
    filtered = points.copy()
    if not len(points):
        return filtered
    speed = np.zeros(points.shape[1:-1])
    for now in range(1, len(points)):
        going = shown[now] & shown[now - 1]
        moved = np.linalg.norm(points[now] - filtered[now - 1], axis=-1) * fps
        speed = np.where(going, speed + _pull(SPEED_SMOOTHING_HZ, fps) * (moved - speed), 0.0)
        pull = _pull(min_cutoff_hz + speed_cutoff_hz * np.maximum(speed, moved), fps)[..., None]
        stepped = filtered[now - 1] + pull * (points[now] - filtered[now - 1])
        filtered[now] = np.where(going[..., None], stepped, points[now])
    return filtered


def _pull(cutoff_hz: float | NDArray[np.float64], fps: float) -> NDArray[np.float64]:
    """Share of the way to a new value that a first-order low-pass of this cutoff goes in one frame."""
    angle = 2 * math.pi * np.asarray(cutoff_hz, np.float64) / fps
    return np.asarray(angle / (angle + 1))
