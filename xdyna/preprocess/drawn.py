"""Skeleton videos that somebody else drew: use them as pose maps as they are, or read the joints back from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.preprocess.draw import DRAWN_JOINTS, LIMBS, limb_color, wheel_color
from xdyna.preprocess.tracks import FloatArray, Tracks

Image = NDArray[np.uint8]

_HEIGHT_PX = 896  # sizes below are those of maps of this height
_COLOR_TOLERANCE = 32  # video compression blurs colors
_SPECK_SHARE = 0.2  # pieces smaller than this share of a limb's largest piece are other things' edges
_MIN_LIMB_AREA_PX = 20
_DISC_AREA_PX = (14, 64)
_REACH_PX = 12.0  # how far a disc may lie from the limbs that end in it
_END_CONF = 0.7  # of a joint read from the end of its limb, its disc being hidden

_BLACK = 24  # compressed black stays below
_MAX_DRAWN_SHARE = 0.5


def read_pose_maps(frames: Iterable[Image], size_wh: tuple[int, int], label: str) -> Iterator[Image]:
    """Fit the frames of a skeleton video to the model's size.

    Args:
        frames: uint8 RGB [H, W, 3] each.
        size_wh: (width, height) wanted, pixels.
        label: what to call the video in a message.

    Yields:
        uint8 RGB [height, width, 3].

    Raises:
        UserError: the first frame is no skeleton on black.
    """
    import cv2

    for index, frame in enumerate(frames):
        if index == 0 and (frame.max(-1) > _BLACK).mean() > _MAX_DRAWN_SHARE:
            raise UserError(
                f"{label}: not a skeleton video (most of its first frame is not black); give it as --pose-video"
            )
        if (frame.shape[1], frame.shape[0]) == tuple(size_wh):
            yield frame
            continue
        shrinks = frame.shape[1] >= size_wh[0]
        yield np.asarray(
            cv2.resize(frame, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8
        )


class DrawnSkeletonDetector:
    """Reads tracks back from a skeleton video: 14 joints, no eyes, ears, hands or face.

    Args:
        label: what to call the video in messages.
    """

    name = "pose-maps"

    def __init__(self, label: str = "the pose maps") -> None:
        self._label = label

    def detect(self, frames: Iterable[Image], *, fps: float) -> Tracks:
        """Joints of every frame (uint8 RGB [H, W, 3] each).

        Raises:
            UserError: there is no frame, or no joint in any.
        """
        joints, confs, size_wh = [], [], (0, 0)
        for frame in frames:
            xy, conf = decode_joints(frame)
            joints.append(xy)
            confs.append(conf)
            size_wh = (frame.shape[1], frame.shape[0])
        if not confs or not np.any(confs):
            raise UserError(
                f"{self._label}: no skeleton found in any frame; wanted an OpenPose-colored skeleton on black"
            )
        tracks = Tracks.empty(len(joints), size_wh, fps)
        tracks.joints_xy[:, : len(DRAWN_JOINTS)] = joints
        tracks.joints_conf[:, : len(DRAWN_JOINTS)] = confs
        return tracks


def decode_joints(pose_map: Image) -> tuple[FloatArray, FloatArray]:
    """Read the 14 drawn joints back from a map.

    Every joint has a disc of its own color, and every limb ends in two joints. Where a hand covers the disc, the limb's
    far end is taken.

    Args:
        pose_map: uint8 RGB [H, W, 3], one person.

    Returns:
        float32 [14, 2], pixels, and float32 [14], confidence: 1 for a disc, 0.7 for a limb's end, 0 for nothing.
    """
    scale = pose_map.shape[0] / _HEIGHT_PX
    limbs = [_limb_pixels(pose_map, limb, scale) for limb in range(len(LIMBS))]
    joints = np.zeros((len(DRAWN_JOINTS), 2), np.float32)
    conf = np.zeros(len(DRAWN_JOINTS), np.float32)
    for joint in DRAWN_JOINTS:
        own = [pixels for pixels, ends in zip(limbs, LIMBS, strict=True) if joint in ends and len(pixels)]
        discs = [(_distance_to(disc, own), disc) for disc in _discs(pose_map, joint, scale)]
        near = [item for item in discs if own and item[0] <= _REACH_PX * scale]
        if near:
            joints[joint], conf[joint] = min(near, key=lambda item: item[0])[1], 1.0
    for limb, (start, end) in enumerate(LIMBS):
        for known, hidden in ((start, end), (end, start)):
            if conf[known] and not conf[hidden] and len(limbs[limb]):
                farthest = np.linalg.norm(limbs[limb] - joints[known], axis=1).argmax()
                joints[hidden], conf[hidden] = limbs[limb][farthest], _END_CONF
    return joints, conf


def _limb_pixels(pose_map: Image, limb: int, scale: float) -> FloatArray:
    """Pixels (x, y) of one limb, float32 [N, 2]; what crosses the limb may have cut it."""
    import cv2

    count, parts, stats, _ = cv2.connectedComponentsWithStats(_near(pose_map, limb_color(limb)))
    if count == 1:
        return np.zeros((0, 2), np.float32)
    areas = stats[:, cv2.CC_STAT_AREA]
    smallest = max(_MIN_LIMB_AREA_PX * scale**2, areas[1:].max() * _SPECK_SHARE)
    large = [part for part in range(1, count) if areas[part] >= smallest]
    return np.argwhere(np.isin(parts, large))[:, ::-1].astype(np.float32)


def _discs(pose_map: Image, joint: int, scale: float) -> list[FloatArray]:
    """Middles of everything that may be the joint's disc: its color, a disc's size."""
    import cv2

    count, _, stats, centers = cv2.connectedComponentsWithStats(_near(pose_map, wheel_color(joint)))
    smallest, largest = (area * scale**2 for area in _DISC_AREA_PX)
    return [
        centers[part].astype(np.float32)
        for part in range(1, count)
        if smallest <= stats[part, cv2.CC_STAT_AREA] <= largest
    ]


def _near(image: Image, color: tuple[int, int, int]) -> Image:
    import cv2

    low, high = (np.clip(np.array(color) + bound, 0, 255) for bound in (-_COLOR_TOLERANCE, _COLOR_TOLERANCE))
    return np.asarray(cv2.inRange(image, low, high), np.uint8)


def _distance_to(point: FloatArray, limbs: list[FloatArray]) -> float:
    """Pixels from a point to the farthest of the limbs' nearest pixels."""
    return max((float(np.linalg.norm(pixels - point, axis=1).min()) for pixels in limbs), default=np.inf)
