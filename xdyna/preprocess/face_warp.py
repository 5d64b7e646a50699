"""Move driving frames so that the driver's face lies where the aligned head is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from xdyna.preprocess.crop import BILINEAR_LIMIT, Image
from xdyna.preprocess.face import FOUND
from xdyna.preprocess.tracks import FloatArray, Tracks


def face_similarity(before_xy: FloatArray, after_xy: FloatArray) -> tuple[float, NDArray[np.float64]]:
    """Scale and shift (pixels) with `after = scale * before + shift` in the least squares sense; points [N, 2]."""
    before, after = before_xy.astype(np.float64), after_xy.astype(np.float64)
    centred = before - before.mean(axis=0)
    spread = float((centred**2).sum())
    scale = float((centred * (after - after.mean(axis=0))).sum()) / spread if spread > 0 else 1.0
    return scale, after.mean(axis=0) - scale * before.mean(axis=0)


def move_frame(frame: Image, scale: float, shift_xy: NDArray[np.float64], size_wh: tuple[int, int]) -> Image:
    """A frame whose point p has gone to `scale * p + shift`.

    Args:
        frame: uint8 RGB [H, W, 3].
        scale: more than 0; large reductions average areas.
        shift_xy: pixels.
        size_wh: (width, height) of the result, pixels; what the frame does not cover is black.
    """
    import cv2

    if scale * BILINEAR_LIMIT < 1:
        width, height = (max(1, round(side * scale)) for side in (frame.shape[1], frame.shape[0]))
        ratio = np.array([width / frame.shape[1], height / frame.shape[0]])
        frame = np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    else:
        ratio = np.ones(2)
    scale_xy = scale / ratio
    # OpenCV counts pixel centres, which lie at halves.
    centre_shift = shift_xy + scale_xy * 0.5 - 0.5
    matrix = np.array([[scale_xy[0], 0, centre_shift[0]], [0, scale_xy[1], centre_shift[1]]])
    return np.asarray(cv2.warpAffine(frame, matrix, size_wh, flags=cv2.INTER_LINEAR), np.uint8)


def warp_to_face(frames: Iterable[Image], driving: Tracks, aligned: Tracks) -> Iterator[Image]:
    """Every frame moved and scaled so that its face points fall on the aligned ones.

    Args:
        frames: uint8 RGB [H, W, 3] each, of the driving tracks' size.
        driving: where the face is in the frames.
        aligned: where it is to be, as many frames.
    Yields:
        uint8 RGB of the aligned tracks' size; black where no face was found.
    """
    width, height = aligned.size_wh
    black = np.zeros((height, width, 3), np.uint8)
    for index, frame in zip(range(len(driving)), frames, strict=True):
        if driving.face_conf[index] < FOUND:
            yield black
            continue
        scale, shift = face_similarity(driving.face_xy[index], aligned.face_xy[index])
        yield move_frame(frame, scale, shift, aligned.size_wh)
