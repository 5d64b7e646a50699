"""Where and how a drawn clip moves: truth for what is measured on generated clips."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.clips import ClipSpec
from xdyna.data.synthetic.scenes import Scene, build_scene
from xdyna.data.synthetic.scenes_base import STILL, UNKNOWN, Floats

Flow = NDArray[np.float32]
Mask = NDArray[np.bool_]


def scene_motion_mask(spec: ClipSpec, size_wh: tuple[int, int]) -> Floats:
    """Where the scene of a clip moves, float32 [H, W], 0..1: the most of each pixel that can ever change.

    It is 0 where every frame shows the same scene. The person and its shadow are left out: they are where the clip's
    masks say.
    """
    return build_scene(spec.scene, np.random.default_rng(spec.scene_key), size_wh, spec.loop_s).moving


def scene_flow(scene: Scene, time_s: float, next_s: float) -> tuple[Flow, Mask]:
    """How the scene moves from one time to another.

    Returns:
        flow float32 [H, W, 2], pixels (x to the right, y down): what a pixel shows goes there; 0 where not known;
        and where it is known, bool [H, W]: the pixel shows one part, whose path is known, and still shows where that
        path leads.
    """
    now, after = scene.parts(time_s), scene.parts(next_s)
    flow = np.zeros((*now.shape, 2), np.float32)
    for part, path in enumerate(scene.paths, STILL + 1):
        shown = now == part
        flow[shown] = np.broadcast_to(path(time_s, next_s), flow.shape)[shown]
    known = (now != UNKNOWN) & arrives(now, after, flow)
    return np.where(known[..., None], flow, 0), known


def arrives(now: NDArray[np.integer], after: NDArray[np.integer], flow: Flow) -> Mask:
    """Whether the pixel that each pixel goes to lies in the frame and shows the same part, bool [H, W]."""
    height, width = now.shape
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    x, y = np.rint(columns + flow[..., 0]).astype(int), np.rint(rows + flow[..., 1]).astype(int)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.asarray(inside & (after[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)] == now))


def warped(frame: NDArray[np.uint8], flow: Flow) -> NDArray[np.uint8]:
    """The next frame [H, W, 3] brought back along the flow: what is seen of it where each pixel goes."""
    height, width = frame.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(cv2.remap(frame, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR), np.uint8)
