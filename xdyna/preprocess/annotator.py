"""OpenPose from the controlnet-aux package, an optional extra that fetches its own weights."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.preprocess.boxes import box_area, confident_boxes
from xdyna.preprocess.tracks import NUM_FACE_POINTS, FloatArray, Tracks

Image = NDArray[np.uint8]

WEIGHTS = "lllyasviel/Annotators"


class ControlNetAuxFinder:
    """Finds people, hands and faces by controlnet-aux's OpenPose.

    Args:
        weights: repository on the hub, or a folder, that holds the annotator's weights.
        device: a torch device.

    Raises:
        UserError: the package or its weights are not there.
    """

    name = "controlnet-aux"

    def __init__(self, *, weights: str = WEIGHTS, device: str = "cpu") -> None:
        try:
            package = importlib.import_module("controlnet_aux")
        except ImportError as error:
            raise UserError(
                f"detector controlnet-aux: cannot import controlnet_aux ({error}): pip install 'xdyna[annotators]'"
            ) from None
        try:
            self._openpose: Any = package.OpenposeDetector.from_pretrained(weights).to(device)
        except Exception as error:
            raise UserError(
                f"detector controlnet-aux: cannot load its weights from {weights} ({str(error)[:160]}); it fetches them"
                " from the hub on first use"
            ) from None

    def reset(self) -> None:
        """Nothing is kept between frames."""

    def find(self, frame: Image, max_people: int) -> list[Tracks]:
        """People of one uint8 RGB frame [H, W, 3]: at most `max_people`, the largest first."""
        poses = self._openpose.detect_poses(frame, include_hand=True, include_face=True)
        people = [_to_tracks(pose, (frame.shape[1], frame.shape[0])) for pose in poses]
        people.sort(key=lambda person: -float(box_area(confident_boxes(person))[0]))
        return people[:max_people]


def _to_tracks(pose: Any, size_wh: tuple[int, int]) -> Tracks:
    tracks = Tracks.empty(1, size_wh, 1.0)
    tracks.joints_xy[0], tracks.joints_conf[0] = _points(pose.body.keypoints, tracks.joints_conf.shape[1], size_wh)
    for side, hand in enumerate((pose.left_hand, pose.right_hand)):
        if hand:
            tracks.hands_xy[0, side], tracks.hands_conf[0, side] = _points(hand, len(hand), size_wh)
    if pose.face:  # OpenPose adds the two pupils to the 68
        points, conf = _points(pose.face[:NUM_FACE_POINTS], NUM_FACE_POINTS, size_wh)
        tracks.face_xy[0], tracks.face_conf[0] = points, conf.mean() if conf.all() else 0
    return tracks


def _points(keypoints: Sequence[Any], count: int, size_wh: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Pixels [N, 2] and confidence [N] of keypoints in 0..1 of the frame; missing ones are None or negative."""
    points, conf = np.zeros((count, 2), np.float32), np.zeros(count, np.float32)
    for index, keypoint in enumerate(keypoints):
        if keypoint is not None and keypoint.x >= 0 and keypoint.y >= 0:
            points[index] = keypoint.x * size_wh[0], keypoint.y * size_wh[1]
            conf[index] = getattr(keypoint, "score", 1.0)
    return points, conf
