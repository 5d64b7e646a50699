"""Clips of the drawn world as training samples: a dance, and a reference from another moment of it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from xdyna.data.source import Face, TrainingClip
from xdyna.data.synthetic.clips import Clip, ClipSpec, World, clip_spec, face_swapped, render
from xdyna.preprocess.draw import draw_pose_maps
from xdyna.preprocess.face import face_maps

SPAN_S = 6.0  # moments of a clip are drawn from its first seconds
LOOPS_S = 20.0  # and from so many, where they have to be whole loops apart


class SyntheticSource:
    """Endless clips of a synthetic world; clip number n of the world is sample number n.

    In a world whose scenes repeat, the reference of consecutive frames shows the scene exactly one frame before the
    first driving frame, a whole number of loops away: the motion goes on from the reference while the dance does not.
    Random moments are whole loops apart there: the scene stands still, and only the dancer differs.

    Args:
        world: what is drawn.
        frames: driving frames per sample.
        consecutive: driving frames follow each other in time; else they are random moments of the clip.
        face: face maps of the clip's own frames, none, or those of another person's face.
    """

    num_clips: int | None = None

    def __init__(self, world: World, *, frames: int, consecutive: bool = True, face: Face = False) -> None:
        if frames < 1:
            raise ValueError(f"frames is {frames}, wanted 1 or more")
        self.world, self.frames, self.consecutive, self.face = world, frames, consecutive, face
        described = {"world": asdict(world), "frames": frames, "consecutive": consecutive, "face": face}
        self.fingerprint = "synthetic-" + hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Sizes (width, height) that samples come in, pixels."""
        return (self.world.size_wh,)

    def draw(self, index: int) -> TrainingClip:
        """Sample number `index`: a clip, which moments of it, and one as the reference."""
        spec = clip_spec(self.world, index)
        times_s = self.times_s(index)
        clip = render(spec, times_s, self.world.size_wh, self.world.fps)
        return TrainingClip(
            name=f"synthetic {index}" if spec.person else f"synthetic scene {index}",
            frames=clip.frames,
            masks=clip.masks,
            pose_maps=np.stack(list(draw_pose_maps(clip.tracks, self.world.size_wh))),
            face_maps=self._face_maps(spec, clip, times_s, index) if self.face else None,
            is_scene=not spec.person,
        )

    def check(self) -> list[str]:
        """A drawn world has nothing that could be wrong."""
        return []

    def times_s(self, index: int) -> NDArray[np.float64]:
        """The moments of sample `index`: [1+F] seconds, the reference's first."""
        rng = np.random.default_rng([self.world.seed, index, 3])
        if not self.consecutive:
            moments_s = np.roll(rng.uniform(0, SPAN_S, self.frames + 1), 1)
            if self.world.loop_s > 0:
                loops = max(math.ceil(LOOPS_S / self.world.loop_s), self.frames + 1)
                chosen = rng.choice(loops, self.frames + 1, replace=False)
                moments_s = moments_s[0] % self.world.loop_s + self.world.loop_s * chosen
            return moments_s
        start_s = rng.uniform(0, SPAN_S)
        before_s = start_s - 1 / self.world.fps
        if self.world.loop_s > 0:
            reference_s = before_s - self.world.loop_s * self._loops(before_s, rng)
        else:
            reference_s = rng.uniform(0, SPAN_S)
        return np.concatenate([[reference_s], start_s + np.arange(self.frames) / self.world.fps])

    def _loops(self, moment_s: float, rng: np.random.Generator) -> int:
        """How many whole loops of the scene to step back (or, negative, on) within the span.

        The scene then looks the same as at `moment_s` while the dance is elsewhere. 0 only where the span has no room.
        """
        least = math.ceil((moment_s - SPAN_S) / self.world.loop_s)
        most = math.floor(moment_s / self.world.loop_s)
        return int(rng.choice([loops for loops in range(least, most + 1) if loops] or [0]))

    def _face_maps(self, spec: ClipSpec, clip: Clip, times_s: NDArray[np.float64], index: int) -> NDArray[np.uint8]:
        """uint8 [1+F, H, W, 6]."""
        if self.face == "swapped":
            swapped = face_swapped(spec, np.random.default_rng([self.world.seed, index, 4]))
            clip = render(swapped, times_s, self.world.size_wh, self.world.fps)
        return np.stack([np.concatenate(pair, -1) for pair in face_maps(clip.frames, clip.tracks)])
