"""insightface's two networks, run by onnxruntime: SCRFD, which finds faces, and ArcFace, which tells whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xdyna.errors import UserError
from xdyna.preprocess.crop import Image

#: Side of the square in which SCRFD looks, pixels; its grids' strides, and the anchors at each of their points.
SIDE_PX, STRIDES, ANCHORS = 640, (8, 16, 32), 2
#: A face counts from this score on; boxes that share more than this with a better one are the same face.
LEAST_SCORE, SAME_FACE = 0.5, 0.4

Floats = NDArray[np.float32]


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPU, with one thread per call as everything else here.

    Raises:
        UserError: onnxruntime is not installed, or the file is not a network.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("insightface's networks need onnxruntime: pip install 'xdyna[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions have no common base
        raise UserError(f"{path}: not an ONNX network ({type(error).__name__}); get it again") from None


class Scrfd:
    """Finds the largest face of a picture.

    Args:
        path: of `det_10g.onnx` or another SCRFD with key points: nine outputs, scores, boxes and points by stride.

    Raises:
        UserError: a network of another form.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)
        self._input = self._session.get_inputs()[0].name
        if (count := len(self._session.get_outputs())) != 3 * len(STRIDES):
            raise UserError(f"{path}: has {count} outputs, wanted 9 of a SCRFD with key points")

    def find(self, frame: Image) -> Floats | None:
        """Eyes, nose and mouth corners of the largest face, float32 [5, 2] in pixels, left of the picture first."""
        square, scale = in_square(frame)
        blob = (square.astype(np.float32) - 127.5) / 128
        outputs = self._session.run(None, {self._input: blob.transpose(2, 0, 1)[None]})
        scores, boxes, points = decoded([np.asarray(output) for output in outputs])
        if not len(scores):
            return None
        kept = distinct(boxes, scores)
        sides = boxes[kept, 2:] - boxes[kept, :2]
        largest = kept[int(sides.prod(1).argmax())]
        return np.asarray(points[largest] / scale, np.float32)


def in_square(frame: Image) -> tuple[Image, float]:
    """The frame, scaled, in the upper left of a black square of `SIDE_PX`, and the scale."""
    import cv2

    height, width = frame.shape[:2]
    scale = SIDE_PX / max(height, width)
    size = (min(round(width * scale), SIDE_PX), min(round(height * scale), SIDE_PX))
    square = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    square[: size[1], : size[0]] = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
    return square, scale


def decoded(outputs: list[NDArray[Any]]) -> tuple[Floats, Floats, Floats]:
    """What SCRFD says, in pixels of the square: scores [K], boxes [K, 4] and points [K, 5, 2] of the likely faces.

    Boxes are given as distances of the four sides, points as offsets, from each anchor and in units of the stride.
    """
    found: list[list[Floats]] = [[], [], []]
    levels = len(STRIDES)
    for level, stride in enumerate(STRIDES):
        score = outputs[level].reshape(-1)
        box = outputs[level + levels].reshape(-1, 4) * stride
        point = outputs[level + 2 * levels].reshape(-1, 5, 2) * stride
        steps = np.arange(SIDE_PX // stride) * stride
        x, y = np.meshgrid(steps, steps)
        anchors = np.repeat(np.stack([x, y], -1).reshape(-1, 2), ANCHORS, axis=0)
        likely = score >= LEAST_SCORE
        at = anchors[likely]
        corners = np.concatenate([at - box[likely, :2], at + box[likely, 2:]], 1)
        for values, found_here in zip(found, (score[likely], corners, at[:, None] + point[likely]), strict=True):
            values.append(found_here.astype(np.float32))
    scores, boxes, points = (np.concatenate(values) for values in found)
    return scores, boxes, points


def distinct(boxes: Floats, scores: Floats) -> list[int]:
    """Which boxes are the best of their face."""
    import cv2

    as_sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    kept = cv2.dnn.NMSBoxes(as_sizes.tolist(), scores.tolist(), LEAST_SCORE, SAME_FACE)
    return [int(index) for index in np.asarray(kept).reshape(-1)]


class ArcFace:
    """Directions of aligned faces.

    Args:
        path: of `w600k_r50.onnx` or another recognition network of insightface, for faces of 112 pixels.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, faces: Tensor) -> Tensor:
        """Aligned RGB faces, float [N, 3, 112, 112] in 0..1 -> [N, 512] of length 1."""
        rows = [self._session.run(None, {self._input: face[None].numpy()})[0] for face in (faces * 2 - 1).float()]
        return F.normalize(torch.from_numpy(np.concatenate(rows)))
