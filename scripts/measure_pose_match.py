"""Measure how well our pose maps agree with maps that somebody else drew from the same clip.

    python scripts/measure_pose_match.py DRIVING.mp4 POSE.mp4 [DRIVING.mp4 POSE.mp4 ..] [--picture FILE.png]

The other map's joints are read back from its colours. Printed for every clip: the median joint distance in per cent of
the frame height, over all joints and for each; how many joints miss; and on which share of frames the limbs overlap
(IoU of both limb masks, dilated by 4 px) by at least 0.5. With --picture, a sheet of frames is written: the clip, the
other map, our map, and both maps laid over each other (theirs red, ours green, yellow where they agree).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.preprocess.detect import build_detector
from xdyna.preprocess.draw import DRAWN_JOINTS, LIMBS, MIN_CONF, draw_pose_map, limb_color, wheel_color
from xdyna.preprocess.drawn import decode_joints
from xdyna.preprocess.smooth import fill_gaps, smooth_tracks
from xdyna.preprocess.tracks import JOINT_NAMES, Tracks
from xdyna.video import VideoReader

Image = NDArray[np.uint8]

DILATE_PX = 4
GOOD_IOU = 0.5
MISS_PERCENT = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", help="pairs: driving clip, then its pose maps")
    parser.add_argument("--detector", default="mediapipe")
    parser.add_argument("--frames", type=int, default=None, help="only so many frames of each clip")
    parser.add_argument("--no-smooth", action="store_true", help="leave tracks as detected")
    parser.add_argument("--picture", type=Path, default=None, help="PNG to write, side by side")
    options = parser.parse_args()
    if len(options.videos) % 2:
        parser.error(f"got {len(options.videos)} videos, wanted pairs of a driving clip and its pose maps")
    rows = []
    for driving, drawn in zip(options.videos[::2], options.videos[1::2], strict=True):
        tracks = detect(driving, options.detector, options.frames, smooth=not options.no_smooth)
        distances, overlaps = compare(tracks, drawn)
        report(driving, distances, overlaps)
        if options.picture:
            rows += side_by_side(driving, drawn, tracks, overlaps)
    if options.picture:
        cv2.imwrite(str(options.picture), np.concatenate(rows)[..., ::-1])


def detect(driving: Path, name: str, num_frames: int | None, *, smooth: bool) -> Tracks:
    """Our tracks of a clip, mended and smoothed as for a model."""
    detector, announcement = build_detector(name, video=driving)
    print(announcement)
    reader = VideoReader(driving, frames=num_frames)
    tracks, gaps = fill_gaps(detector.detect(reader, fps=float(reader.fps)))
    print(*gaps.lines(), f"{gaps.joints_filled} single joints filled", sep="\n")
    return smooth_tracks(tracks) if smooth else tracks


def compare(tracks: Tracks, drawn: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Joint distances [F, 14] in per cent of the frame height (NaN: theirs unreadable, inf: ours missing), IoUs [F]."""
    distances, overlaps = [], []
    for index, theirs in zip(range(len(tracks)), VideoReader(drawn), strict=False):
        height, width = theirs.shape[:2]
        ours = tracks.resized((width, height))
        joints, conf = decode_joints(theirs)
        away = np.linalg.norm(joints - ours.joints_xy[index, : len(DRAWN_JOINTS)], axis=-1) / height * 100
        away[ours.joints_conf[index, : len(DRAWN_JOINTS)] < MIN_CONF] = np.inf
        away[conf == 0] = np.nan
        distances.append(away)
        own_map = draw_pose_map(ours, index, (width, height), hands=False)
        overlaps.append(overlap(limb_mask(theirs), limb_mask(own_map)))
    return np.array(distances), np.array(overlaps)


def limb_mask(pose_map: Image) -> NDArray[np.bool_]:
    """Pixels of limbs and joints, dilated; the hands' blue is none of their colours but the left knee's."""
    mask = np.zeros(pose_map.shape[:2], np.uint8)
    knee = JOINT_NAMES.index("left_knee")
    colors = [limb_color(limb) for limb in range(len(LIMBS))]
    colors += [wheel_color(joint) for joint in DRAWN_JOINTS if joint != knee]
    for color in colors:
        mask |= cv2.inRange(pose_map, np.clip(np.array(color) - 40, 0, 255), np.clip(np.array(color) + 40, 0, 255))
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))  # edges of hands and of compression
    return np.asarray(cv2.dilate(mask, np.ones((2 * DILATE_PX + 1, 2 * DILATE_PX + 1), np.uint8)) > 0)


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def report(driving: Path, distances: NDArray[np.float64], overlaps: NDArray[np.float64]) -> None:
    known = distances[~np.isnan(distances)]
    per_frame = np.nanmedian(distances, axis=1)
    print(f"{driving.name}: {len(distances)} frames")
    print(f"  joint distance, % of frame height: median {np.median(known):.2f}, 90th percentile {pct(known, 90):.2f}")
    print(f"  frames whose median joint distance is at most 2 %: {(per_frame <= 2).mean():.1%}")
    good = (overlaps >= GOOD_IOU).mean()
    print(f"  limb IoU: median {np.median(overlaps):.2f}, at least {GOOD_IOU} on {good:.1%} of frames")
    print(f"  {'joint':15} median   90th   over {MISS_PERCENT:g} %   ours missing   theirs unreadable")
    for joint in DRAWN_JOINTS:
        column = distances[:, joint]
        read = column[~np.isnan(column)]
        misses = (read[np.isfinite(read)] > MISS_PERCENT).sum() / len(read)
        print(
            f"  {JOINT_NAMES[joint]:15} {np.median(read):6.2f} {pct(read, 90):6.2f} {misses:9.1%}"
            f" {np.isinf(read).mean():14.1%} {np.isnan(column).mean():19.1%}"
        )


def pct(values: NDArray[np.float64], share: float) -> float:
    """Percentile that allows infinite values."""
    return float(np.percentile(values, share, method="nearest"))


def side_by_side(driving: Path, drawn: Path, tracks: Tracks, overlaps: NDArray[np.float64]) -> list[Image]:
    """Two rows: four frames spread over the clip, then the four worst."""
    spread = [int(at) for at in np.linspace(0, len(overlaps) - 1, 4)]
    worst = [int(at) for at in np.argsort(overlaps)[:4]]
    clip, maps = (dict(pick(path, {*spread, *worst})) for path in (driving, drawn))
    return [
        np.concatenate(
            [panel(clip[at], maps[at], tracks, at, f"{driving.name} {at}: IoU {overlaps[at]:.2f}") for at in row], 1
        )
        for row in (spread, worst)
    ]


def pick(path: Path, wanted: set[int]) -> Iterator[tuple[int, Image]]:
    for index, frame in enumerate(VideoReader(path)):
        if index in wanted:
            yield index, frame
        if index >= max(wanted):
            return


def panel(frame: Image, theirs: Image, tracks: Tracks, index: int, title: str) -> Image:
    ours = draw_pose_map(tracks, index, (theirs.shape[1], theirs.shape[0]))
    both = np.stack([limb_mask(theirs), limb_mask(ours), np.zeros(theirs.shape[:2], bool)], axis=-1) * np.uint8(255)
    shown = cv2.addWeighted(cv2.resize(frame, theirs.shape[1::-1]), 0.5, ours, 1, 0)
    sheet = np.concatenate([shown, theirs, ours, both], axis=1)
    sheet = np.asarray(cv2.resize(sheet, None, fx=0.33, fy=0.33, interpolation=cv2.INTER_AREA), np.uint8)
    cv2.putText(sheet, title, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return sheet


if __name__ == "__main__":
    main()
