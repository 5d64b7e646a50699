"""68 face points by MediaPipe's face mesh, inside head boxes taken from the body joints."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.preprocess.boxes import head_box, is_box
from xdyna.preprocess.crop import Image
from xdyna.preprocess.quiet import silenced_stderr
from xdyna.preprocess.tracks import NUM_FACE_POINTS, FloatArray, Tracks

#: Side of the picture that the mesh is looked for in, pixels.
CROP_PX = 256
#: Vertex of the 468-point mesh for each of the 68 points. Left and right in the comments are those of the picture.
MESH_VERTICES = (
    127, 234, 93, 132, 172, 136, 149, 148, 152, 377, 378, 365, 397, 361, 323, 454, 356,  # jaw, from the left ear down
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows, left to right
    168, 197, 5, 4,  # ridge of the nose, downwards
    98, 97, 2, 326, 327,  # under the nose, left to right
    33, 160, 158, 133, 153, 144,  # left eye, clockwise from its outer corner
    362, 385, 387, 263, 373, 380,  # right eye, clockwise from its inner corner
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,  # outer lip, clockwise from the left corner
    78, 82, 13, 312, 308, 317, 14, 87,  # inner lip, likewise
)  # fmt: skip
#: A true face spans at least this share of its head box, and its centre lies at most this share from the box's.
SMALLEST_SHARE, FARTHEST_SHARE = 0.15, 0.35


class FaceFinder(Protocol):
    """Finds 68 face points in a part of a picture."""

    def find(self, frame: Image, box: FloatArray) -> FloatArray | None:
        """Points float32 [68, 2] (pixels of `frame`) in the box (x0, y0, x1, y1; may reach outside), or None."""


class FaceMesh:
    """MediaPipe's face mesh on one picture at a time, without memory of the last; close it or use it in `with`.

    Args:
        min_confidence: of the face detector in front of the mesh, 0..1.
    Raises:
        UserError: MediaPipe is not installed.
    """

    def __init__(self, min_confidence: float = 0.3) -> None:
        try:
            with silenced_stderr():
                from mediapipe.python.solutions import face_mesh

                self._mesh = face_mesh.FaceMesh(
                    static_image_mode=True,
                    max_num_faces=1,
                    refine_landmarks=True,
                    min_detection_confidence=min_confidence,
                )
                # The network announces itself at its first picture: let that be now.
                self._mesh.process(np.zeros((CROP_PX, CROP_PX, 3), np.uint8))
        except ImportError as error:
            raise UserError(
                f"finding faces needs MediaPipe 0.10.14 ({error}): pip install 'xdyna[pose]', or go on without a face"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the network."""
        self._mesh.close()

    def find(self, frame: Image, box: FloatArray) -> FloatArray | None:
        """See `FaceFinder.find`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # protobuf's deprecations
            found = self._mesh.process(cut_square(frame, box)).multi_face_landmarks
        if not found:
            return None
        vertices = found[0].landmark
        shares = np.array([(vertices[index].x, vertices[index].y) for index in MESH_VERTICES], np.float32)
        if not plausible(shares):
            return None
        return (box[:2] + shares * (box[2:] - box[:2])).astype(np.float32)


def cut_square(frame: Image, box: FloatArray) -> Image:
    """A box of a frame as uint8 RGB [256, 256, 3]; what lies outside the frame is black."""
    import cv2

    scale = CROP_PX / (box[2:] - box[:2])
    # Pixel centres lie at halves: the map is written for centres, as OpenCV counts them.
    shift = (0.5 - box[:2]) * scale - 0.5
    matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]], np.float64)
    return np.asarray(cv2.warpAffine(frame, matrix, (CROP_PX, CROP_PX), flags=cv2.INTER_LINEAR), np.uint8)


def plausible(shares: FloatArray) -> bool:
    """Whether points [68, 2], as shares (0..1) of a head box, can be the face of that head."""
    low, high = shares.min(axis=0), shares.max(axis=0)
    off_centre = np.abs((low + high) / 2 - 0.5).max()
    return bool((high - low).max() >= SMALLEST_SHARE and off_centre <= FARTHEST_SHARE)


def find_faces(frames: Iterable[Image], tracks: Tracks, finder: FaceFinder) -> Tracks:
    """Fill in the face points of tracks.

    Args:
        frames: uint8 RGB [H, W, 3] each, of the tracks' size; as many as the tracks have.
        tracks: their joints say where the head is.
        finder: looks into each head box.
    Returns:
        The tracks with `face_xy` and `face_conf` (1 where found, else 0) replaced.
    """
    face_xy = np.zeros((len(tracks), NUM_FACE_POINTS, 2), np.float32)
    face_conf = np.zeros(len(tracks), np.float32)
    boxes = head_box(tracks)
    shown: NDArray[np.bool_] = is_box(boxes)
    for index, frame in zip(range(len(tracks)), frames, strict=True):
        landmarks_xy = finder.find(frame, boxes[index]) if shown[index] else None
        if landmarks_xy is not None:
            face_xy[index], face_conf[index] = landmarks_xy, 1.0
    return replace(tracks, face_xy=face_xy, face_conf=face_conf)
