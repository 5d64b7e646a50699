"""The two face maps that the face ControlNet reads: what they show, and how they are cut from the driving frames.

The *global* map keeps the pixels of an enlarged box round the face, the *local* map those of three small boxes round
both eyes and the mouth; everything else is black. Both follow the official code's arithmetic, because the released
weights were trained on such maps:

* the centre of each eye and of the mouth leaves out the first of its points (kept, since it moves trained inputs);
* a frame without a face gives two black maps (kept; `hold` carries the last box on instead);
* boxes that reach over the left or upper edge were indexed with negative numbers, so they came out empty or wrapped
  to the other side. That is done only with `official=True`; by default such boxes are clipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdyna.preprocess.crop import Image, grow_box
from xdyna.preprocess.tracks import NUM_FACE_POINTS, Tracks

Box = tuple[int, int, int, int]
Centres = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

#: Points of the 68 whose mean is the centre of a local box: the person's left eye, right eye, mouth.
LOCAL_PARTS = (slice(43, 48), slice(37, 42), slice(49, 68))
#: A face counts as found from this confidence on.
FOUND = 0.05
NO_BOX: Box = (0, 0, 0, 0)
NO_CENTRES: Centres = ((0, 0), (0, 0), (0, 0))


@dataclass(frozen=True)
class FacePlace:
    """Where the face of one frame is.

    Attributes:
        box: (left, top, right, bottom) of the global map, pixels, inside the frame.
        centres: (x, y) of both eyes and the mouth, whole pixels, possibly outside the frame.
    """

    box: Box = NO_BOX
    centres: Centres = NO_CENTRES


def face_place(landmarks_xy: NDArray[np.floating], size_wh: tuple[int, int], last_box: Box | None = None) -> FacePlace:
    """Box and part centres of a face.

    Args:
        landmarks_xy: [68, 2], pixels.
        size_wh: (width, height) of the frame, pixels.
        last_box: a box to keep as long as all landmarks lie inside it, which steadies the global map.
    """
    if landmarks_xy.shape != (NUM_FACE_POINTS, 2):
        raise ValueError(f"landmarks_xy has shape {landmarks_xy.shape}, wanted ({NUM_FACE_POINTS}, 2)")
    centres = [np.round(landmarks_xy[part].mean(axis=0)).astype(int) for part in LOCAL_PARTS]
    (left, top), (right, bottom) = landmarks_xy.min(axis=0), landmarks_xy.max(axis=0)
    box = clip_box(grow_box((left, top, right, bottom)), size_wh)
    if last_box is not None and _inside((left, top, right, bottom), last_box):
        box = last_box
    left_eye, right_eye, mouth = ((int(x), int(y)) for x, y in centres)
    return FacePlace(box, (left_eye, right_eye, mouth))


def clip_box(box: Box, size_wh: tuple[int, int]) -> Box:
    """The part of a box that lies in the frame; its sides are never reversed."""
    width, height = size_wh
    left, top = min(max(box[0], 0), width), min(max(box[1], 0), height)
    return left, top, max(left, min(box[2], width)), max(top, min(box[3], height))


def _inside(inner: Sequence[float], outer: Box) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def draw_face_maps(frame: Image, place: FacePlace, *, official: bool = False) -> tuple[Image, Image]:
    """Cut the local and the global map of one frame.

    Args:
        frame: uint8 RGB [H, W, 3], 0..255.
        place: where the face is; an empty box gives black maps.
        official: index boxes over the left or upper edge as the official code does instead of clipping them.
    Returns:
        local and global map, uint8 RGB [H, W, 3] each.
    """
    local_map, global_map = np.zeros_like(frame), np.zeros_like(frame)
    left, top, right, bottom = place.box
    global_map[top:bottom, left:right] = frame[top:bottom, left:right]
    half_width, half_height = _eighth(right - left), _eighth(bottom - top)
    for x, y in place.centres:
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        if not official:
            box = clip_box(box, (frame.shape[1], frame.shape[0]))
        rows, columns = slice(box[1], box[3]), slice(box[0], box[2])
        local_map[rows, columns] = frame[rows, columns]
    return local_map, global_map


def _eighth(side_px: int) -> int:
    # The official parts measure 64 px for a box of 512 px.
    return int(side_px / 512 * 64)


def face_maps(
    frames: Iterable[Image], tracks: Tracks, *, official: bool = False, hold: bool = False
) -> Iterator[tuple[Image, Image]]:
    """Local and global face map of every frame, as a stream.

    Args:
        frames: uint8 RGB [H, W, 3] each, of the tracks' size; as many as the tracks have.
        tracks: whose `face_xy` and `face_conf` say where the face is.
        official: reproduce the official code at the left and upper frame edge (see the module's text).
        hold: a frame without a face keeps the place of the last face instead of black maps.
    Yields:
        local and global map, uint8 RGB [H, W, 3] each.
    Raises:
        ValueError: frames and tracks differ in number or size.
    """
    width, height = tracks.size_wh
    last = FacePlace()
    for frame, landmarks_xy, confidence in zip(frames, tracks.face_xy, tracks.face_conf, strict=True):
        if frame.shape != (height, width, 3):
            raise ValueError(f"a frame has shape {frame.shape}, wanted {(height, width, 3)} as the tracks")
        place = last if hold else FacePlace()
        if confidence >= FOUND:
            place = last = face_place(landmarks_xy, tracks.size_wh)
        yield draw_face_maps(frame, place, official=official)
