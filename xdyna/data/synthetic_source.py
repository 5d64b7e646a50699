"""Clips of the drawn world as training samples: a dance, and a reference from another moment of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from xdyna.data.source import Face, TrainingClip
from xdyna.data.synthetic.clips import Clip, ClipSpec, World, clip_spec, render
from xdyna.preprocess.draw import draw_pose_maps
from xdyna.preprocess.face import face_maps

SPAN_S = 6.0  # moments of a clip are drawn from its first seconds


class SyntheticSource:
    """Endless clips of a synthetic world; clip number n of the world is sample number n.

    Args:
        world: what is drawn.
        frames: driving frames per sample.
        consecutive: driving frames follow each other in time; else they are random moments of the clip.
        face: face maps of the clip's own frames, none, or those of another person's face.
    """

    num_clips = None

    def __init__(self, world: World, *, frames: int, consecutive: bool = True, face: Face = False) -> None:
        if frames < 1:
            raise ValueError(f"frames is {frames}, wanted 1 or more")
        self.world, self.frames, self.consecutive, self.face = world, frames, consecutive, face
        described = {"world": asdict(world), "frames": frames, "consecutive": consecutive, "face": face}
        self.fingerprint = "synthetic-" + hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]

    def draw(self, index: int) -> TrainingClip:
        """Sample number `index`: a clip, which moments of it, and one as the reference."""
        spec = clip_spec(self.world, index)
        times_s = self.times_s(index)
        clip = render(spec, times_s, self.world.size_wh, self.world.fps)
        return TrainingClip(
            name=f"synthetic {index}",
            frames=clip.frames,
            masks=clip.masks,
            pose_maps=np.stack(list(draw_pose_maps(clip.tracks, self.world.size_wh))),
            face_maps=self._face_maps(spec, clip, times_s, index) if self.face else None,
            is_scene=False,
        )

    def check(self) -> list[str]:
        """A drawn world has nothing that could be wrong."""
        return []

    def times_s(self, index: int) -> NDArray[np.float64]:
        """The moments of sample `index`: [1+F] seconds, the reference's first."""
        rng = np.random.default_rng([self.world.seed, index, 3])
        if self.consecutive:
            driving = rng.uniform(0, SPAN_S) + np.arange(self.frames) / self.world.fps
        else:
            driving = rng.uniform(0, SPAN_S, self.frames)
        return np.concatenate([rng.uniform(0, SPAN_S, 1), driving])

    def _face_maps(self, spec: ClipSpec, clip: Clip, times_s: NDArray[np.float64], index: int) -> NDArray[np.uint8]:
        """uint8 [1+F, H, W, 6]."""
        return np.stack([np.concatenate(pair, -1) for pair in face_maps(clip.frames, clip.tracks)])
