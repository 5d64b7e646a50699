"""MediaPipe's pose and hand models, which come inside its wheel: people and hands without any download.

The pose model finds one person. Several are found one after the other: find one, paint it over, look again.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.preprocess.boxes import confident_boxes
from xdyna.preprocess.quiet import silenced_stderr
from xdyna.preprocess.tracks import FloatArray, Tracks

Image = NDArray[np.uint8]

# MediaPipe's index of each of `JOINT_NAMES`; the neck, which it lacks, lies half way between the shoulders.
_LANDMARKS: Final = (0, -1, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
_NECK, _SHOULDERS, _HIPS = 1, (2, 5), (8, 11)
# Left then right: elbow, wrist, little finger's knuckle, forefinger's knuckle, thumb.
_ARMS: Final = ((13, 15, 17, 19, 21), (14, 16, 18, 20, 22))

_LARGEST_PX = 1280
_HAND_CROP_PX = 256
_HAND_CROP_PER_TORSO = 1.17  # side of the square in which a hand is looked for
_HAND_REACH_PER_TORSO = 0.25  # a hand whose wrist is farther than this from the arm's wrist is somebody else's
_GUESSED_HAND_CONF = 0.35  # shown in maps (0.3 and above), told apart from a hand that was seen
_HAND_BREADTH = 0.7  # of a guessed hand, at least, in units of its palm's length
_MAX_PAINTED_SHARE = 0.5  # of a further person's joints, where somebody was painted over
_MIN_FIGURE = 0.7  # mean of MediaPipe's mask at a further person's joints
_MIN_SURE_JOINTS = 5
_SURE_CONF = 0.5


def _solutions() -> Any:
    """MediaPipe's bundled solutions, imported on first use and in silence."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with silenced_stderr():
            return importlib.import_module("mediapipe").solutions
    except ImportError as error:
        raise UserError(
            f"detector mediapipe: cannot import mediapipe ({error}); wanted 0.10.14: pip install 'xdyna[pose]'"
        ) from None
    except AttributeError:
        raise UserError(
            "detector mediapipe: this mediapipe has no bundled models; wanted 0.10.14: pip install 'xdyna[pose]'"
        ) from None


class MediaPipeFinder:
    """Finds people frame by frame, with hands; a clip's frames must come in order, `reset` between clips.

    Args:
        hands: look for hands too (about half of the time).
    """

    name = "mediapipe"

    def __init__(self, *, hands: bool = True) -> None:
        solutions = _solutions()
        options = {"model_complexity": 1, "smooth_landmarks": False}
        self._follow = _Graph(solutions.pose.Pose, static_image_mode=False, **options)
        self._search = _Graph(solutions.pose.Pose, static_image_mode=True, enable_segmentation=True, **options)
        self._hand = None
        if hands:
            few = {"static_image_mode": True, "max_num_hands": 1, "model_complexity": 1}
            self._hand = _Graph(solutions.hands.Hands, min_detection_confidence=0.1, **few)

    def reset(self) -> None:
        """Forget where the person was: the next frame starts another clip."""
        self._follow.reset()

    def find(self, frame: Image, max_people: int) -> list[Tracks]:
        """People of one frame.

        Args:
            frame: uint8 RGB [H, W, 3].
            max_people: 1 follows one person from frame to frame; more searches the frame anew for up to so many.

        Returns:
            One-frame tracks of each person, at most `max_people`, in the order found.
        """
        small = _shrink(frame)
        if max_people == 1:
            landmarks = self._follow.run(small).pose_landmarks
            person = self._person(small, landmarks) if landmarks else None
            people = [person] if person else []
        else:
            people = self._find_all(small, max_people)
        return [person.resized((frame.shape[1], frame.shape[0])) for person in people]

    def _find_all(self, frame: Image, max_people: int) -> list[Tracks]:
        people: list[Tracks] = []
        painted = np.zeros(frame.shape[:2], bool)
        canvas = frame
        for _ in range(max_people):
            result = self._search.run(canvas)
            person = self._person(frame, result.pose_landmarks) if result.pose_landmarks else None
            if person is None or (people and _is_ghost(person, painted, result.segmentation_mask)):
                break
            people.append(person)
            painted |= _silhouette(person, result.segmentation_mask)
            canvas = paint_over(frame, painted)
        return people

    def _person(self, frame: Image, landmarks: Any) -> Tracks | None:
        height, width = frame.shape[:2]
        points = np.array(
            [(mark.x * width, mark.y * height, mark.visibility) for mark in landmarks.landmark], np.float32
        )
        person = Tracks.empty(1, (width, height), 1.0)
        person.joints_xy[0], person.joints_conf[0] = to_openpose(points, (width, height))
        if (person.joints_conf[0] >= _SURE_CONF).sum() < _MIN_SURE_JOINTS:
            return None
        if self._hand:
            for side, arm in enumerate(_ARMS):
                hand = self._find_hand(frame, points, arm)
                person.hands_xy[0, side], person.hands_conf[0, side] = hand
        return person

    def _find_hand(self, frame: Image, points: FloatArray, arm: tuple[int, ...]) -> tuple[FloatArray, float]:
        """21 points and a confidence of the hand at the end of one arm, seen in a crop or guessed from the arm."""
        import cv2

        elbow, wrist, little, fore, _ = (points[index, :2] for index in arm)
        conf = float(points[list(arm[1:4]), 2].min())
        inside = (wrist >= 0).all() and wrist[0] < frame.shape[1] and wrist[1] < frame.shape[0]
        torso = _torso_px(points)
        if conf < 0.1 or not inside or torso < 1 or self._hand is None:
            return np.zeros((21, 2), np.float32), 0.0
        center = (wrist + little + fore) / 3 * 1.3 - 0.3 * wrist
        to_crop = _upright_crop(center, wrist - elbow, _HAND_CROP_PER_TORSO * torso)
        result = self._hand.run(cv2.warpAffine(frame, to_crop, (_HAND_CROP_PX, _HAND_CROP_PX)))
        if result.multi_hand_landmarks:
            in_crop = np.array([(mark.x, mark.y) for mark in result.multi_hand_landmarks[0].landmark]) * _HAND_CROP_PX
            back = cv2.invertAffineTransform(to_crop)
            hand = (in_crop @ back[:, :2].T + back[:, 2]).astype(np.float32)
            if np.linalg.norm(hand[0] - wrist) <= _HAND_REACH_PER_TORSO * torso:
                return hand, max(float(result.multi_handedness[0].classification[0].score), _SURE_CONF)
        return guess_hand(points[list(arm), :2]), _GUESSED_HAND_CONF if conf >= 0.3 else 0.0


class _Graph:
    """One MediaPipe solution, started at its first image, without the noise of starting."""

    def __init__(self, make: Any, **options: Any) -> None:
        self._make, self._options = make, options
        self._solution: Any = None
        self._stale = False

    def run(self, image: Image) -> Any:
        image = np.ascontiguousarray(image)
        if self._solution is None or self._stale:
            # A graph starts in threads of its own; they have spoken when its first result is there.
            with silenced_stderr():
                if self._solution is None:
                    self._solution = self._make(**self._options)
                else:
                    self._solution.reset()
                self._stale = False
                return self._solution.process(image)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # protobuf's deprecations
            return self._solution.process(image)

    def reset(self) -> None:
        self._stale = self._solution is not None


def to_openpose(points: FloatArray, size_wh: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Turn MediaPipe's 33 points into OpenPose's 18.

    Args:
        points: float32 [33, 3]: x, y in pixels, visibility 0..1.
        size_wh: of the frame, pixels; a point outside it was imagined, not seen, and gets confidence 0.

    Returns:
        float32 [18, 2] pixels, float32 [18] confidence 0..1. The neck is half way between the shoulders.
    """
    joints = points[list(_LANDMARKS)].copy()
    joints[_NECK] = joints[list(_SHOULDERS)].mean(0)
    joints[_NECK, 2] = joints[list(_SHOULDERS), 2].min()
    outside = (joints[:, :2] < 0).any(1) | (joints[:, :2] >= np.asarray(size_wh)).any(1)
    return joints[:, :2], np.where(outside, 0, joints[:, 2].clip(0, 1)).astype(np.float32)


def guess_hand(arm_xy: FloatArray) -> FloatArray:
    """A relaxed hand that fits what the arm shows, for frames where no hand could be made out.

    Args:
        arm_xy: float32 [5, 2], pixels: elbow, wrist, knuckles of little finger and forefinger, thumb.

    Returns:
        float32 [21, 2], pixels.
    """
    elbow, wrist, little, fore, thumb = arm_xy
    palm = (little + fore) / 2 - wrist
    forearm = wrist - elbow
    if np.linalg.norm(palm) < 1e-3:
        palm = 0.25 * forearm
    breadth, least = little - fore, _HAND_BREADTH * float(np.linalg.norm(palm))
    if np.linalg.norm(breadth) < 1e-3:
        breadth = np.array([-palm[1], palm[0]], np.float32)
    breadth = breadth * max(1.0, least / max(float(np.linalg.norm(breadth)), 1e-3))
    hand = np.zeros((21, 2), np.float32)
    hand[0] = wrist
    for step in range(4):
        hand[1 + step] = wrist + (thumb - wrist) * (0.4 + 0.35 * step)
    for finger in range(4):
        knuckle = (little + fore) / 2 + breadth * (finger / 3 - 0.5)
        for step in range(4):
            hand[5 + 4 * finger + step] = knuckle + palm * (0.28 * step)
    return hand


def _shrink(frame: Image) -> Image:
    """A large frame at a size at which the models, which see 256 px, lose nothing."""
    import cv2

    scale = _LARGEST_PX / max(frame.shape[:2])
    if scale >= 1:
        return frame
    size_wh = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return np.asarray(cv2.resize(frame, size_wh, interpolation=cv2.INTER_AREA), np.uint8)


def _upright_crop(center: FloatArray, pointing: FloatArray, side: float) -> NDArray[np.float32]:
    """Affine map [2, 3] from the frame to a square crop in which `pointing` is up."""
    length = float(np.linalg.norm(pointing))
    x, y = pointing / length if length > 1e-3 else np.array([0.0, -1.0])
    turn = np.array([[-y, x], [-x, -y]]) * (_HAND_CROP_PX / side)
    return np.concatenate([turn, (_HAND_CROP_PX / 2 - turn @ center)[:, None]], axis=1).astype(np.float32)


def _torso_px(points: FloatArray) -> float:
    """Pixels from the shoulders' middle to the hips'; hidden hips are still placed by MediaPipe."""
    joints = points[list(_LANDMARKS), :2]
    return float(np.linalg.norm(joints[list(_SHOULDERS)].mean(0) - joints[list(_HIPS)].mean(0)))


def _is_ghost(person: Tracks, painted: NDArray[np.bool_], segmentation: NDArray[np.float32] | None) -> bool:
    """Whether a further person is imagined: where another was painted over, or without a figure around its joints."""
    sure = person.joints_xy[0, person.joints_conf[0] >= _SURE_CONF]
    columns, rows = np.clip(np.rint(sure).astype(int), 0, np.asarray(person.size_wh) - 1).T
    if painted[rows, columns].mean() > _MAX_PAINTED_SHARE:
        return True
    return segmentation is not None and float(segmentation[rows, columns].mean()) < _MIN_FIGURE


def paint_over(frame: Image, mask: NDArray[np.bool_]) -> Image:
    """Fill masked pixels from their surroundings, smoothly: a flat silhouette would be taken for a person again.

    Args:
        frame: uint8 RGB [H, W, 3].
        mask: bool [H, W], what to fill.

    Returns:
        uint8 RGB [H, W, 3], equal to `frame` outside the mask.
    """
    import cv2

    known = (~mask).astype(np.float32)[..., None]
    levels = [np.concatenate([frame * known, known], axis=2)]
    while min(levels[-1].shape[:2]) > 2:
        height, width = levels[-1].shape[:2]
        half = (max(1, width // 2), max(1, height // 2))
        levels.append(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA))
    filled = levels[-1]
    for level in reversed(levels[:-1]):  # what a level does not know comes from the coarser one
        coarse = cv2.resize(filled, level.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        filled = level + (1 - level[..., 3:]) * coarse / np.maximum(coarse[..., 3:], 1e-6)
    colors = filled[..., :3] / np.maximum(filled[..., 3:], 1e-6)
    painted = np.where(mask[..., None], np.rint(colors.clip(0, 255)), frame)
    return np.asarray(painted, np.uint8)


def _silhouette(person: Tracks, segmentation: NDArray[np.float32] | None) -> NDArray[np.bool_]:
    """Bool [H, W]: the person's pixels, by MediaPipe's mask and by thick limbs."""
    import cv2

    from xdyna.preprocess.draw import LIMBS

    width, height = person.size_wh
    joints, shown = person.joints_xy[0], person.joints_conf[0] >= 0.2
    box = confident_boxes(person, 0.2)[0]
    thick = max(3, round(0.09 * float(box[3] - box[1])))
    mask = np.zeros((height, width), np.uint8)
    torso = [joint for joint in (2, 5, 11, 8) if shown[joint]]
    if len(torso) >= 3:
        cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(joints[torso]).astype(np.int32)), 1)
    for start, end in LIMBS:
        if shown[start] and shown[end]:
            ends = [tuple(int(value) for value in np.rint(joints[joint])) for joint in (start, end)]
            cv2.line(mask, ends[0], ends[1], 1, thick)
    head = [joint for joint in (0, 14, 15, 16, 17) if shown[joint]]
    if head:
        cv2.circle(mask, tuple(int(value) for value in joints[head].mean(0)), round(1.2 * thick), 1, cv2.FILLED)
    if segmentation is not None:
        mask |= cv2.dilate((segmentation > 0.3).astype(np.uint8), np.ones((5, 5), np.uint8))
    return mask.astype(bool)
