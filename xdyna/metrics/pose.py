"""Pose by re-detection: the detector of driving videos looks at the generated clip too, and both poses are compared.

For filmed people. It hardly finds drawn ones: `joints` has a regressor for those.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from xdyna.errors import UserError
from xdyna.metrics.clips import Floats, Frames, check_clip
from xdyna.metrics.joints import person_height
from xdyna.metrics.specs import ClipMetric, Region, Sample
from xdyna.preprocess.tracks import Tracks

#: Joints count as found, and as wanted, from this confidence on: those that pose maps show.
SURE = 0.3
#: A joint is right within this share of the person's height.
PCK_SHARE = 0.1


class Reader(Protocol):
    """Finds the person of a clip."""

    def read(self, frames: Frames) -> Tracks:
        """Joints and face points of uint8 RGB frames [F, H, W, 3]; confidence 0 where nobody is found."""


class MediaPipeReader:
    """Joints by MediaPipe's pose model and face points by its mesh, as `xdyna preprocess` finds them.

    The last few clips' tracks are kept, because several metrics look at the same clips.

    Raises:
        UserError: MediaPipe is not installed.
    """

    def __init__(self, keep: int = 4) -> None:
        from xdyna.preprocess.detect import PeopleDetector
        from xdyna.preprocess.face_mesh import FaceMesh
        from xdyna.preprocess.mediapipe_pose import MediaPipeFinder

        self._detector = PeopleDetector(MediaPipeFinder(hands=False))
        self._mesh = FaceMesh()
        self._keep = keep
        self._read: dict[bytes, Tracks] = {}

    def read(self, frames: Frames) -> Tracks:
        """See `Reader.read`."""
        check_clip(frames)
        key = hashlib.blake2b(repr(frames.shape).encode() + np.ascontiguousarray(frames).tobytes()).digest()
        if key not in self._read:
            while len(self._read) >= self._keep:
                self._read.pop(next(iter(self._read)))
            self._read[key] = self._find(frames)
        return self._read[key]

    def _find(self, frames: Frames) -> Tracks:
        from xdyna.preprocess.face_mesh import find_faces

        try:
            people = self._detector.detect(iter(frames), fps=1.0)
        except UserError:  # nobody is seen in any frame
            return Tracks.empty(len(frames), (frames.shape[2], frames.shape[1]), 1.0)
        return find_faces(iter(frames), people, self._mesh)


def pose_error(found: Tracks, wanted: Tracks) -> float:
    """Mean distance of found to wanted joints over those that both have.

    Args:
        found: in the generated clip, F frames.
        wanted: as many frames of another size, perhaps: brought to that of `found`.

    Returns:
        Pixels of `found`; NaN where no joint is in both.
    """
    distances = pose_distances(found, wanted)
    known = np.isfinite(distances)
    return float(distances[known].mean()) if known.any() else float("nan")


def pose_pck(found: Tracks, wanted: Tracks, share: float = PCK_SHARE) -> float:
    """Share of the wanted joints that are found within `share` of the person's height; those not found are wrong.

    Returns:
        0..1; NaN where no joint is wanted.
    """
    distances = pose_distances(found, wanted)
    known = ~np.isnan(distances)
    limit = share * person_height(_sure(wanted.resized(found.size_wh)))
    return float((distances[known] <= limit).mean()) if known.any() and np.isfinite(limit) else float("nan")


def pose_distances(found: Tracks, wanted: Tracks) -> Floats:
    """Distances [F, 18] in pixels of `found`; NaN where a joint is not wanted, infinite where it is not found.

    Raises:
        ValueError: of other lengths.
    """
    if len(found) != len(wanted):
        raise ValueError(f"found has {len(found)} frames, wanted {len(wanted)}: one length is needed")
    goal = wanted.resized(found.size_wh)
    distances = np.linalg.norm(found.joints_xy - goal.joints_xy, axis=-1)
    distances = np.where(found.joints_conf >= SURE, distances, np.inf)
    return np.where(goal.joints_conf >= SURE, distances, np.nan)


def wanted_tracks(sample: Sample, reader: Reader) -> Tracks | None:
    """Where the driving person is: as given, else as found in the truth; None where neither is known."""
    if sample.tracks is not None:
        return sample.tracks
    return None if sample.truth is None else reader.read(sample.truth)


def load_reader() -> MediaPipeReader:
    """The detector; see `MediaPipeReader`."""
    return MediaPipeReader()


def _sure(tracks: Tracks) -> Tracks:
    return replace(tracks, joints_conf=(tracks.joints_conf >= SURE).astype(np.float32))


def _measure_error(sample: Sample, _: Region, reader: Reader) -> float:
    wanted = wanted_tracks(sample, reader)
    return float("nan") if wanted is None else pose_error(reader.read(sample.made), wanted)


def _measure_pck(sample: Sample, _: Region, reader: Reader) -> float:
    wanted = wanted_tracks(sample, reader)
    return float("nan") if wanted is None else pose_pck(reader.read(sample.made), wanted)


_SHARED: dict[str, Any] = {"backbone": "mediapipe-pose"}
SPECS = (
    ClipMetric(name="pose-error", unit="px", better="lower", measure=_measure_error, **_SHARED),
    ClipMetric(name="pck", unit="share", better="higher", measure=_measure_pck, **_SHARED),
)
