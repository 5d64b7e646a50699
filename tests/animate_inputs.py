"""Photos, driving clips and their tracks for tests of whole jobs: a waving figure, known without any detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from clips import make_clip
from numpy.typing import NDArray

from xdyna.photo import write_png
from xdyna.preprocess.draw import draw_pose_map
from xdyna.preprocess.tracks import NUM_FACE_POINTS, SUFFIX, Tracks

# Shares of the frame's width and height, in the order of JOINT_NAMES.
_STANDING = (
    (0.50, 0.15), (0.50, 0.25),
    (0.40, 0.25), (0.36, 0.38), (0.33, 0.50), (0.60, 0.25), (0.64, 0.38), (0.67, 0.50),
    (0.44, 0.52), (0.43, 0.70), (0.42, 0.90), (0.56, 0.52), (0.57, 0.70), (0.58, 0.90),
    (0.48, 0.13), (0.52, 0.13), (0.46, 0.14), (0.54, 0.14),
)  # fmt: skip


def waving_tracks(
    num_frames: int, size_wh: tuple[int, int] = (96, 144), fps: float = 8.0, *, face: bool = True
) -> Tracks:
    """A standing person whose arms swing; the face is a ring of points round the nose."""
    tracks = Tracks.empty(num_frames, size_wh, fps)
    tracks.joints_xy[:] = np.asarray(_STANDING, np.float32) * np.asarray(size_wh, np.float32)
    swing = np.sin(np.arange(num_frames) * 0.7).astype(np.float32) * size_wh[1] * 0.08
    for joint in (4, 7):
        tracks.joints_xy[:, joint, 1] -= np.abs(swing)
    tracks.joints_conf[:] = 1
    if face:
        angle = np.linspace(0, 2 * np.pi, NUM_FACE_POINTS, endpoint=False)
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * size_wh[1] * 0.05
        tracks.face_xy[:] = tracks.joints_xy[:, :1] + ring
        tracks.face_conf[:] = 1
    return tracks


def make_photo(path: Path, size_wh: tuple[int, int] = (64, 96), *, with_tracks: bool = True) -> Path:
    """A photo of coloured stripes with a figure drawn over it, whose legs are shorter than the driver's."""
    tracks = waving_tracks(1, size_wh)
    for joint in (9, 10, 12, 13):
        tracks.joints_xy[:, joint, 1] -= 0.3 * (tracks.joints_xy[:, joint, 1] - tracks.joints_xy[:, 8, 1])
    stripes = np.linspace(0, 255, size_wh[0] * size_wh[1] * 3).reshape(size_wh[1], size_wh[0], 3).astype(np.uint8)
    write_png(path, np.maximum(stripes, draw_pose_map(tracks, 0, size_wh)))
    if with_tracks:
        tracks.save(path.with_name(path.stem + SUFFIX))
    return path


def make_driver(
    path: Path,
    num_frames: int = 6,
    *,
    fps: int = 8,
    size_wh: tuple[int, int] = (96, 144),
    face: bool = True,
    with_tracks: bool = True,
    background: int = 64,
    tone: tuple[float, float] | None = None,
) -> Path:
    """A driving clip of the waving figure on grey, with its tracks beside it; on 0 it is a skeleton video."""
    tracks = waving_tracks(num_frames, size_wh, fps, face=face)

    def draw(number: int, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
        return np.maximum(draw_pose_map(tracks, number, size_wh), np.uint8(background))

    make_clip(path, num_frames, fps, size_wh, tone=tone, draw=draw)
    if with_tracks:
        tracks.save(path.with_name(path.stem + SUFFIX))
    return path


def files_in(folder: Path) -> list[str]:
    """Names of everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())
