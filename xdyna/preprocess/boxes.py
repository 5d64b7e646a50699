"""Boxes around what a detector found; (x0, y0, x1, y1) in pixels, all zero where there is nothing to box."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xdyna.preprocess.tracks import JOINT_NAMES, FloatArray, Tracks

MIN_CONF = 0.3

_NOSE, _NECK = JOINT_NAMES.index("nose"), JOINT_NAMES.index("neck")
_EYES = (JOINT_NAMES.index("right_eye"), JOINT_NAMES.index("left_eye"))
_EARS = (JOINT_NAMES.index("right_ear"), JOINT_NAMES.index("left_ear"))
_HEAD = (_NOSE, *_EYES, *_EARS)

# Side of a head box (chin to hair, ear to ear and a margin) in units of each measure, for a head seen from the front.
# Turned and bowed heads shorten every measure, none lengthens: the largest estimate is the nearest.
_SIDE_PER_NECK_TO_NOSE = 1.9
_SIDE_PER_EYE_TO_EYE = 4.2
_SIDE_PER_EAR_TO_EAR = 1.8
# A frame's estimate never falls below this share of the clip's median (a profile bowed to the ground).
_SMALLEST_SHARE = 0.6


def confident_boxes(tracks: Tracks, min_conf: float = MIN_CONF) -> FloatArray:
    """Smallest box around the body joints of at least `min_conf`.

    Returns:
        float32 [F, 4], (x0, y0, x1, y1) in pixels; zeros where fewer than two joints are that confident.
    """
    boxes = np.zeros((len(tracks), 4), np.float32)
    for frame, (joints_xy, conf) in enumerate(zip(tracks.joints_xy, tracks.joints_conf, strict=True)):
        found = joints_xy[conf >= min_conf]
        if len(found) >= 2:
            boxes[frame] = [*found.min(0), *found.max(0)]
    return boxes


def is_box(boxes: FloatArray) -> NDArray[np.bool_]:
    """Bool [...]: which of the boxes [..., 4] have an area."""
    found: NDArray[np.bool_] = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    return found


def box_area(boxes: FloatArray) -> FloatArray:
    """Area in square pixels, float32 [...], of boxes [..., 4]; 0 for what is no box."""
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1], np.float32)


def box_overlap(one: FloatArray, other: FloatArray) -> float:
    """Intersection over union, 0..1, of two boxes [4]."""
    shared = float(box_area(np.concatenate([np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])])))
    union = float(box_area(one)) + float(box_area(other)) - shared
    return shared / union if union > 0 else 0.0


def head_box(tracks: Tracks, min_conf: float = MIN_CONF) -> FloatArray:
    """Square box around the head, from nose, eyes, ears and neck.

    It is generous: hair and chin are inside, about a fifth of the side is margin. It may reach beyond the frame.

    Returns:
        float32 [F, 4], (x0, y0, x1, y1) in pixels of a `tracks.size_wh` frame; zeros where no head joint is
        confident or where the head's size cannot be told.
    """
    shown = tracks.joints_conf >= min_conf
    sides = np.max(
        [
            _SIDE_PER_NECK_TO_NOSE * _distance(tracks.joints_xy, shown, _NECK, _NOSE),
            _SIDE_PER_EYE_TO_EYE * _distance(tracks.joints_xy, shown, *_EYES),
            _SIDE_PER_EAR_TO_EAR * _distance(tracks.joints_xy, shown, *_EARS),
        ],
        axis=0,
    )
    if not sides.any():
        return np.zeros((len(tracks), 4), np.float32)
    sides = np.maximum(sides, _SMALLEST_SHARE * np.median(sides[sides > 0]))

    head_xy, head_shown = tracks.joints_xy[:, _HEAD], shown[:, _HEAD, None]
    centers = (head_xy * head_shown).sum(1) / np.maximum(head_shown.sum(1), 1)
    corners = np.concatenate([centers - sides[:, None] / 2, centers + sides[:, None] / 2], axis=1)
    return np.where(head_shown.any(1), corners, 0).astype(np.float32)


def _distance(joints_xy: FloatArray, shown: NDArray[np.bool_], one: int, other: int) -> FloatArray:
    """Pixels between two joints, float [F]; 0 where one of them is not shown."""
    length = np.linalg.norm(joints_xy[:, one] - joints_xy[:, other], axis=-1)
    return np.asarray(np.where(shown[:, one] & shown[:, other], length, 0), np.float32)
