"""Where and how a drawn clip moves: truth for what is measured on generated clips.

A pixel of the person goes where the polygon it shows goes: the affine map nearest to how the polygon's corners move.
A pixel of the scene goes along the path of the part it shows (`Scene.parts`, `Scene.paths`). Not known: what is mixed
of two parts, where the scene changes without moving (sparks that fade, foam at the water's edge), and under a shadow.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.clips import ClipSpec, Staged, cast_shadow, stage
from xdyna.data.synthetic.scenes import Scene, build_scene
from xdyna.data.synthetic.scenes_base import STILL, UNKNOWN, Floats

AGREE_PX = 0.5  # forth and back again must lead this near to the beginning, else the place is hidden in one frame
SPREAD_PX = 0.3  # a pixel whose parts go apart by more shows a mixture

_GONE_PX = 1e6  # where what is not drawn in the other frame goes

Flow = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Paths(NamedTuple):
    """How what each pixel shows moves to another time: flow float32 [H, W, 2], pixels (x to the right, y down), and
    whether it is known, bool [H, W]."""

    flow: Flow
    known: Mask


def scene_motion_mask(spec: ClipSpec, size_wh: tuple[int, int]) -> Floats:
    """Where the scene of a clip moves, float32 [H, W], 0..1: the most of each pixel that can ever change.

    It is 0 where every frame shows the same scene. The person and its shadow are left out: they are where the clip's
    masks say.
    """
    return _scene(spec, size_wh).moving


def clip_flow(
    spec: ClipSpec, times_s: NDArray[np.float64], size_wh: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The motion from each frame of a clip to the next.

    Args:
        spec: the clip.
        times_s: [F] seconds.
        size_wh: (width, height), pixels.

    Returns:
        flow float32 [F-1, H, W, 2], pixels (x to the right, y down): what a pixel of frame k shows is there in frame
        k + 1; 0 where not valid. And bool [F-1, H, W], where that is known and the place is seen in both frames.
    """
    scene = _scene(spec, size_wh)
    person = _Person(stage(spec, times_s, size_wh), size_wh) if spec.person else None
    times = [float(time_s) for time_s in times_s]

    def paths(frame: int, other: int) -> Paths:
        behind = scene_paths(scene, times[frame], times[other])
        return behind if person is None else person.before(behind, frame, other)

    pairs = [meeting(paths(frame, frame + 1), paths(frame + 1, frame)) for frame in range(len(times) - 1)]
    width, height = size_wh
    flow = np.zeros((len(pairs), height, width, 2), np.float32)
    valid = np.zeros(flow.shape[:3], np.bool_)
    for frame, pair in enumerate(pairs):
        flow[frame], valid[frame] = pair
    return flow, valid


def scene_paths(scene: Scene, time_s: float, other_s: float) -> Paths:
    """How the scene of one time moves to another, whether it is still seen there or not."""
    shown = scene.parts(time_s)
    flow = np.zeros((*shown.shape, 2), np.float32)
    for part, path in enumerate(scene.paths, STILL + 1):
        here = shown == part
        if here.any():
            flow[here] = np.broadcast_to(path(time_s, other_s), flow.shape)[here]
    return Paths(flow, shown != UNKNOWN)


def meeting(forth: Paths, back: Paths) -> Paths:
    """The way forth where the way back from there leads to the beginning again; elsewhere 0 and not known."""
    height, width = forth.known.shape
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    x = np.rint(columns + forth.flow[..., 0]).astype(int)
    y = np.rint(rows + forth.flow[..., 1]).astype(int)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    there = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    error = np.hypot(*np.moveaxis(forth.flow + back.flow[there], -1, 0))
    known = forth.known & inside & back.known[there] & (error < AGREE_PX)
    return Paths(np.where(known[..., None], forth.flow, 0), known)


def warped(frame: NDArray[np.uint8], flow: Flow) -> NDArray[np.uint8]:
    """The next frame [H, W, 3] brought back along the flow: what is seen of it where each pixel goes."""
    height, width = frame.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(cv2.remap(frame, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR), np.uint8)


class _Person:
    """Which polygon each pixel of each frame shows, and how the polygons move.

    Args:
        staged: the person.
        size_wh: (width, height) of the frames, pixels.
    """

    def __init__(self, staged: Staged, size_wh: tuple[int, int]) -> None:
        self.size_wh = size_wh
        self.fine = max(2, staged.fine)
        self.blur = 3 + 2 * self.fine // staged.fine  # smoothed edges reach 1.5 drawn pixels to either side
        self.shadows = staged.shadows
        self.corners = [staged.to_pixels(shape.points) for shape in staged.shapes]
        self.shown = [shape.shown for shape in staged.shapes]

    def before(self, scene: Paths, frame: int, other: int) -> Paths:
        """The motion of what one frame shows to another frame, the person being in front of the scene."""
        labels = self._labels(frame)
        steps = self._steps(frame, other)[labels]  # [H * fine, W * fine, 2, 3]
        x, y = ((np.arange(side, dtype=np.float32) + 0.5) / self.fine for side in labels.shape[::-1])
        gone = (steps[..., 0] * x[None, :, None] + steps[..., 1] * y[:, None, None] + steps[..., 2]).astype(np.float32)
        around = np.ones((self.blur, self.blur), np.uint8)
        spread = cv2.dilate(gone, around) - cv2.erode(gone, around)
        drawn = (labels > 0).astype(np.float32)
        whole = self._per_pixel(cv2.erode(drawn, around)) == 1
        free = self._per_pixel(cv2.dilate(drawn, around)) == 0
        coherent = self._per_pixel(np.maximum(spread[..., 0], spread[..., 1])) < SPREAD_PX
        flow = np.where(whole[..., None], self._per_pixel(gone), scene.flow)
        return Paths(flow.astype(np.float32), (whole & coherent) | (free & scene.known & ~self._shaded(frame)))

    def _per_pixel(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Means [H, W, ..] of what is given larger."""
        return np.asarray(cv2.resize(values, self.size_wh, interpolation=cv2.INTER_AREA), np.float32)

    def _labels(self, frame: int) -> NDArray[np.int32]:
        """Which polygon is seen, counted from 1; 0: none. [H * fine, W * fine]."""
        width, height = self.size_wh
        labels = np.zeros((height * self.fine, width * self.fine), np.int32)
        for number, (corners, shown) in enumerate(zip(self.corners, self.shown, strict=True), 1):
            if shown is None or shown[frame]:
                points = np.round((corners[frame] * self.fine - 0.5) * 16).astype(np.int32)
                cv2.fillPoly(labels, [points], number, cv2.LINE_8, 4)
        return labels

    def _steps(self, frame: int, other: int) -> NDArray[np.float32]:
        """For each label the affine map [N + 1, 2, 3] from a point, pixels, to how far it goes."""
        steps = np.zeros((len(self.corners) + 1, 2, 3))
        for number, (corners, shown) in enumerate(zip(self.corners, self.shown, strict=True), 1):
            if shown is not None and not shown[other]:
                steps[number, :, 2] = _GONE_PX
                continue
            now, gone = corners[frame], corners[other] - corners[frame]
            middle = now.mean(0)
            spread = (now - middle).T @ (now - middle)
            turn = np.linalg.solve(spread + (1e-3 * np.trace(spread) + 1e-9) * np.eye(2), (now - middle).T @ gone).T
            steps[number, :, :2], steps[number, :, 2] = turn, gone.mean(0) - turn @ middle
        return steps.astype(np.float32)

    def _shaded(self, frame: int) -> Mask:
        """Where the person's shadow lies."""
        width, height = self.size_wh
        light = np.full((height, width, 3), 255, np.uint8)
        if self.shadows is not None:
            cast_shadow(light, self.shadows[frame])
        return np.asarray(light[..., 0] < 254)


def _scene(spec: ClipSpec, size_wh: tuple[int, int]) -> Scene:
    return build_scene(spec.scene, np.random.default_rng(spec.scene_key), size_wh, spec.loop_s)
