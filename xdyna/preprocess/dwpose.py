"""DWPose from the user's own ONNX files: a YOLOX people detector and a whole-body pose model (133 points).

The files are those published with DWPose (`yolox_l.onnx`, `dw-ll_ucoco_384.onnx`) or others of the same form. Several
people come natively, and so do hands and 68 face points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.preprocess.boxes import box_area, box_overlap
from xdyna.preprocess.tracks import FloatArray, Tracks

Image = NDArray[np.uint8]

NUM_POINTS = 133  # COCO whole-body: 17 body, 6 feet, 68 face, 21 left hand, 21 right hand
# COCO's index of each of `JOINT_NAMES`; the neck, which it lacks, lies half way between the shoulders.
_COCO: Final = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_NECK, _SHOULDERS = 1, (2, 5)
_FACE, _HANDS = slice(23, 91), (slice(91, 112), slice(112, 133))

# The networks' own constants.
_STRIDES = (8, 16, 32)
_PADDING_GRAY = 114
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_BOX_MARGIN = 1.25

_MIN_SCORE = 0.3
_MAX_OVERLAP = 0.45


class DWPoseFinder:
    """Finds people, with hands and face, by two ONNX files.

    Args:
        detector_file: a YOLOX export: [1, 3, H, W] -> [1, N, 5 + classes], class 0 a person.
        pose_file: a whole-body SimCC export: [1, 3, H, W] -> x [1, 133, 2 W] and y [1, 133, 2 H].
        device: `cpu` or `cuda`.

    Raises:
        UserError: a file is missing or not of this form, or onnxruntime is not installed.
    """

    name = "dwpose"

    def __init__(self, detector_file: Path, pose_file: Path, *, device: str = "cpu") -> None:
        self._detector = _Network(detector_file, device)
        self._pose = _Network(pose_file, device)
        self._detector.want_outputs(1)
        self._pose.want_outputs(2)

    def reset(self) -> None:
        """Nothing is kept between frames."""

    def find(self, frame: Image, max_people: int) -> list[Tracks]:
        """People of one uint8 RGB frame [H, W, 3]: at most `max_people`, the largest boxes first."""
        boxes = self._boxes(frame)
        order = np.argsort(-box_area(boxes), kind="stable")[:max_people]
        return [self._person(frame, boxes[index]) for index in order]

    def _boxes(self, frame: Image) -> FloatArray:
        """Boxes of people, float32 [N, 4]."""
        import cv2

        height, width = self._detector.size_hw
        scale = min(height / frame.shape[0], width / frame.shape[1])
        inner = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
        padded = np.full((height, width, 3), _PADDING_GRAY, np.uint8)
        padded[: inner[1], : inner[0]] = cv2.resize(frame, inner, interpolation=cv2.INTER_LINEAR)
        (raw,) = self._detector.run(padded[..., ::-1].astype(np.float32))  # YOLOX takes BGR, 0..255
        cells = _yolox_cells(height, width)
        if raw.shape[1] != len(cells) or raw.shape[2] < 6:
            raise UserError(
                f"{self._detector.path}: gives an output of shape {list(raw.shape)}, wanted [1, {len(cells)}, 6 or"
                " more]; is it a YOLOX export?"
            )
        middles, strides = cells[:, :2], cells[:, 2:]
        centers = (raw[0, :, :2] + middles) * strides / scale
        halves = np.exp(raw[0, :, 2:4].clip(max=12)) * strides / scale / 2
        scores = raw[0, :, 4] * raw[0, :, 5]
        boxes = np.concatenate([centers - halves, centers + halves], axis=1).astype(np.float32)
        return _without_doubles(boxes, scores)

    def _person(self, frame: Image, box: FloatArray) -> Tracks:
        import cv2

        height, width = self._pose.size_hw
        center = (box[:2] + box[2:]) / 2
        side = float(np.max((box[2:] - box[:2]) * _BOX_MARGIN / (width, height)))  # frame pixels per input pixel
        to_input = np.array([[1 / side, 0, width / 2 - center[0] / side], [0, 1 / side, height / 2 - center[1] / side]])
        crop = cv2.warpAffine(frame, to_input, (width, height), flags=cv2.INTER_LINEAR)
        outputs = self._pose.run((crop.astype(np.float32) - _MEAN) / _STD)
        points, scores = self._decode(*outputs)
        in_frame = ((points - (width / 2, height / 2)) * side + center).astype(np.float32)
        return to_tracks(in_frame, scores, (frame.shape[1], frame.shape[0]))

    def _decode(self, along_x: FloatArray, along_y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Peaks of the two one-dimensional heat maps: points in input pixels [133, 2] and scores [133]."""
        height, width = self._pose.size_hw
        if along_x.shape[1] != NUM_POINTS or along_y.shape[1] != NUM_POINTS:
            raise UserError(
                f"{self._pose.path}: gives {along_x.shape[1]} points, wanted {NUM_POINTS} (COCO whole-body)"
            )
        split = along_x.shape[2] / width, along_y.shape[2] / height
        points = np.stack([along_x[0].argmax(-1) / split[0], along_y[0].argmax(-1) / split[1]], axis=-1)
        return points.astype(np.float32), np.minimum(along_x[0].max(-1), along_y[0].max(-1)).clip(0, 1)


class _Network:
    """An ONNX file with one image input."""

    def __init__(self, path: Path, device: str) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError("detector dwpose: onnxruntime is not installed: pip install 'xdyna[onnx]'") from None
        if not path.is_file():
            raise UserError(f"{path}: no such file; wanted an ONNX file for detector dwpose")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:
            raise UserError(f"{path}: not an ONNX file that onnxruntime can load: {str(error)[:200]}") from None
        self.path = path
        first = self._session.get_inputs()[0]
        self._input_name = first.name
        shape = list(first.shape)
        if len(shape) != 4 or shape[1] != 3 or not all(isinstance(side, int) for side in shape[2:]):
            raise UserError(f"{path}: takes an input of shape {shape}, wanted an image [1, 3, height, width]")
        self.size_hw: tuple[int, int] = (shape[2], shape[3])

    def want_outputs(self, count: int) -> None:
        got = len(self._session.get_outputs())
        if got != count:
            raise UserError(f"{self.path}: has {got} outputs, wanted {count}; are detector and pose file swapped?")

    def run(self, image: NDArray[Any]) -> list[FloatArray]:
        """Run on one image [H, W, 3]."""
        batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
        return [np.asarray(output, np.float32) for output in self._session.run(None, {self._input_name: batch})]


def _yolox_cells(height: int, width: int) -> FloatArray:
    """Column, row and stride of every prediction of a YOLOX head, float32 [N, 3]."""
    cells = []
    for stride in _STRIDES:
        rows, columns = np.mgrid[: height // stride, : width // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel(), np.full(rows.size, stride)], axis=1))
    return np.concatenate(cells).astype(np.float32)


def _without_doubles(boxes: FloatArray, scores: FloatArray) -> FloatArray:
    """The surest boxes, none of which overlaps a surer one by more than 0.45."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < _MIN_SCORE:
            break
        if all(box_overlap(boxes[index], boxes[other]) <= _MAX_OVERLAP for other in kept):
            kept.append(int(index))
    return boxes[kept]


def to_tracks(points: FloatArray, scores: FloatArray, size_wh: tuple[int, int]) -> Tracks:
    """Turn COCO's 133 whole-body points into one-frame tracks.

    Args:
        points: float32 [133, 2], pixels.
        scores: float32 [133], 0..1.
        size_wh: of the frame, pixels.

    Returns:
        Tracks of one frame. The neck is half way between the shoulders.
    """
    tracks = Tracks.empty(1, size_wh, 1.0)
    index = list(_COCO)
    tracks.joints_xy[0], tracks.joints_conf[0] = points[index], scores[index]
    tracks.joints_xy[0, _NECK] = tracks.joints_xy[0, list(_SHOULDERS)].mean(0)
    tracks.joints_conf[0, _NECK] = tracks.joints_conf[0, list(_SHOULDERS)].min()
    for side, part in enumerate(_HANDS):
        tracks.hands_xy[0, side], tracks.hands_conf[0, side] = points[part], scores[part]
    tracks.face_xy[0], tracks.face_conf[0] = points[_FACE], scores[_FACE].mean()
    return tracks
