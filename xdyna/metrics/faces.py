"""Faces of frames: where they are, and brought to the place in which recognition networks expect them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdyna.errors import UserError
from xdyna.metrics.frames import BATCH, as_pictures
from xdyna.preprocess.crop import Image
from xdyna.preprocess.quiet import silenced_stderr

Floats = NDArray[np.float32]

#: Side of an aligned face, and where both eyes, the nose and the corners of the mouth lie in it, pixels, left of the
#: picture first: the places on which ArcFace and its successors were trained.
SIDE_PX = 112
PLACES = np.asarray(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
#: The mesh looks in a square so many times as wide as the detector's box.
ROOM = 2.0


class Finder(Protocol):
    """Finds a face in a picture."""

    def find(self, frame: Image) -> Floats | None:
        """Eyes, nose and mouth corners of the largest face, float32 [5, 2] in pixels; None without one."""


def five_points(face_xy: NDArray[Any]) -> Floats:
    """Eyes, nose and mouth corners, [5, 2], of the common 68 points [68, 2]."""
    eyes = face_xy[36:42].mean(0), face_xy[42:48].mean(0)
    return np.stack([*eyes, face_xy[30], face_xy[48], face_xy[54]]).astype(np.float32)


def aligned(frame: Image, points: Floats) -> Image:
    """A face turned, scaled and shifted so that its points [5, 2] lie as near to `PLACES` as can be: [112, 112, 3]."""
    import cv2

    matrix = similarity(points, PLACES)
    return np.asarray(cv2.warpAffine(frame, matrix, (SIDE_PX, SIDE_PX), flags=cv2.INTER_LINEAR), np.uint8)


def similarity(points: Floats, places: Floats) -> NDArray[np.float64]:
    """Matrix [2, 3] of the turn, scale and shift of least squares that takes points [N, 2] to places (Umeyama 1991)."""
    middle, wanted = points.mean(0, dtype=np.float64), places.mean(0, dtype=np.float64)
    x, y = points - middle, places - wanted
    # In the plane, as complex numbers: one factor takes x to y, its length the scale and its angle the turn.
    a, b = x[:, 0] + 1j * x[:, 1], y[:, 0] + 1j * y[:, 1]
    factor = complex(np.vdot(a, b) / np.vdot(a, a).real)
    turn = np.asarray([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.concatenate([turn, (wanted - turn @ middle)[:, None]], 1)


class MediaPipeFinder:
    """MediaPipe's detector of near and far faces, and its mesh for the points; both come inside its wheel.

    Args:
        min_confidence: of the detector, 0..1.

    Raises:
        UserError: MediaPipe is not installed.
    """

    def __init__(self, min_confidence: float = 0.5) -> None:
        from xdyna.preprocess.face_mesh import FaceMesh

        self._mesh = FaceMesh()
        with silenced_stderr():
            from mediapipe.python.solutions import face_detection

            self._detector = face_detection.FaceDetection(
                min_detection_confidence=min_confidence,
                model_selection=1,  # faces up to 5 m away; the other one knows those of a phone's front camera only
            )
            self._detector.process(np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8))  # it announces itself once

    def box(self, frame: Image) -> Floats | None:
        """(x0, y0, x1, y1) of the largest face, pixels; None without one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # protobuf's deprecations
            found = self._detector.process(np.ascontiguousarray(frame)).detections or []
        boxes = [one.location_data.relative_bounding_box for one in found]
        if not boxes:
            return None
        largest = max(boxes, key=lambda one: one.width * one.height)
        left, top = largest.xmin, largest.ymin
        shares = np.asarray([left, top, left + largest.width, top + largest.height], np.float32)
        height, width = frame.shape[:2]
        return shares * np.asarray([width, height, width, height], np.float32)

    def find(self, frame: Image) -> Floats | None:
        """See `Finder.find`; None as well where the detector sees a face and the mesh does not."""
        box = self.box(frame)
        if box is None:
            return None
        middle, reach = (box[:2] + box[2:]) / 2, ROOM * (box[2:] - box[:2]).max() / 2
        face_xy = self._mesh.find(frame, np.concatenate([middle - reach, middle + reach]).astype(np.float32))
        return None if face_xy is None else five_points(face_xy)


@dataclass(frozen=True, eq=False)
class Recogniser:
    """Finds faces and says whose they are.

    Attributes:
        finder: where they are.
        network: aligned RGB faces, float [N, 3, 112, 112] in 0..1 -> directions [N, D].
    """

    finder: Finder
    network: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def directions(self, frames: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Directions of length 1 of the faces found in frames [F, H, W, 3]: [n, D], and which frames have one, [F].

        Raises:
            UserError: the network gives what is not finite.
        """
        points = [self.finder.find(frame) for frame in frames]
        faces = [aligned(frame, found) for frame, found in zip(frames, points, strict=True) if found is not None]
        shown = np.asarray([found is not None for found in points], np.bool_)
        if not faces:
            return np.zeros((0, 0)), shown
        starts = range(0, len(faces), BATCH)
        parts = [self.network(as_pictures(np.stack(faces[start : start + BATCH]))) for start in starts]
        rows = torch.cat(parts).double().numpy()
        if not np.isfinite(rows).all():
            raise UserError("the face recognition network gives NaN or infinity; its weights are broken")
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), shown


def load_mediapipe() -> MediaPipeFinder:
    """MediaPipe's detector; its file comes in its wheel."""
    return MediaPipeFinder()


def load_scrfd(path: Path) -> Finder:
    """insightface's detector."""
    from xdyna.metrics.nets.onnx_faces import Scrfd

    return Scrfd(path)


def load_adaface(path: Path) -> Recogniser:
    """AdaFace's own checkpoints (blue first), with MediaPipe to find the faces."""
    from xdyna.metrics.nets.iresnet import load_adaface as load

    return Recogniser(MediaPipeFinder(), load(path, bgr=True))


def load_adaface_rgb(path: Path) -> Recogniser:
    """AdaFace as its authors put it on the hub (red first), with MediaPipe to find the faces."""
    from xdyna.metrics.nets.iresnet import load_adaface as load

    return Recogniser(MediaPipeFinder(), load(path, bgr=False))


def load_insightface(detector_path: Path, network_path: Path) -> Recogniser:
    """insightface's detector and ArcFace."""
    from xdyna.metrics.nets.onnx_faces import ArcFace, Scrfd

    return Recogniser(Scrfd(detector_path), ArcFace(network_path))
