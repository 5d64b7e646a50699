"""Where and how a drawn clip moves: truth for what is measured on generated clips."""

from __future__ import annotations

import numpy as np

from xdyna.data.synthetic.clips import ClipSpec
from xdyna.data.synthetic.scenes import build_scene
from xdyna.data.synthetic.scenes_base import Floats


def scene_motion_mask(spec: ClipSpec, size_wh: tuple[int, int]) -> Floats:
    """Where the scene of a clip moves, float32 [H, W], 0..1: the most of each pixel that can ever change.

    It is 0 where every frame shows the same scene. The person and its shadow are left out: they are where the clip's
    masks say.
    """
    return build_scene(spec.scene, np.random.default_rng(spec.scene_key), size_wh, spec.loop_s).moving
