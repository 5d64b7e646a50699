"""Clips for the texture network: what was done to each, drawn from its number, and how pictures are spoiled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xdyna.data.source import TrainingClip
from xdyna.data.synthetic.clips import Clip, ClipSpec, World, clip_spec, render
from xdyna.metrics.textures import ORDERS, SCENES, WINDOW

SPAN_S = 6.0  # clips begin in the first seconds of a world's clips
PACES = (0.4, 2.5)
#: Largest amounts: noise of every frame and flicker of its brightness in units of -1..1, blur and shifts in pixels.
NOISE, BLUR_PX, FLICKER, SHAKE_PX = 0.3, 2.5, 0.3, 3.0
SPOILED = 0.25  # share of the clips that get each of them

Shown = Literal["all", "fg", "bg"]


@dataclass(frozen=True)
class Treatment:
    """What was done to a clip.

    Attributes:
        scene: its kind, a place in `SCENES`.
        person: somebody is in it.
        order: what became of the order of the frames, a place in `ORDERS`.
        pace: frames were taken this much faster than they should.
        scene_alone: a person's own frames stayed in order.
        shown: the rest was painted grey, as metrics of a region have it.
        start_s: the first moment.
    """

    scene: int
    person: bool
    order: int
    pace: float
    scene_alone: bool
    shown: Shown
    start_s: float

    @property
    def scene_known(self) -> bool:
        """Whether the scene can be seen."""
        return self.shown != "fg"

    @property
    def scene_moves(self) -> bool:
        """Whether something other than a person moves, and is seen."""
        return self.scene_known and SCENES[self.scene] != "studio"

    @property
    def order_known(self) -> bool:
        """Whether anything is to be seen whose order was changed (or kept)."""
        moves = self.person and self.shown != "bg" and not self.scene_alone
        return self.scene_moves or moves


class TextureSource:
    """Scenes with and without people at random paces, in order and out of it; a function of the sample's number.

    Args:
        world: what is drawn.
        loops_s: clips come in turn from worlds that repeat after so many seconds; 0 for one that does not.
    """

    num_clips: int | None = None

    def __init__(self, world: World, loops_s: Sequence[float]) -> None:
        self.worlds = [replace(world, loop_s=loop_s) for loop_s in loops_s]
        described = repr((self.worlds, WINDOW, PACES))
        self.fingerprint = "textures-" + hashlib.sha256(described.encode()).hexdigest()[:16]

    def spec(self, index: int) -> ClipSpec:
        """Clip number `index` before anything is done to it."""
        return clip_spec(self.worlds[index % len(self.worlds)], index)

    def treatment(self, name: str) -> Treatment:
        """What was done to the sample of that name (which tells its number)."""
        index = int(name.rpartition(" ")[2])
        return self._treatment(self.spec(index), index)

    def draw(self, index: int) -> TrainingClip:
        """Sample number `index`; it has no maps worth the name."""
        spec = self.spec(index)
        done, rng = self._treatment(spec, index), np.random.default_rng([self.worlds[0].seed, index, 12])
        world = self.worlds[0]
        times_s = done.start_s + np.arange(WINDOW, dtype=np.float64) * (done.pace / world.fps)
        clip = render(spec, times_s, world.size_wh, world.fps)
        order = reordered(ORDERS[done.order], rng)
        if done.scene_alone:
            scene = render(replace(spec, person=False), times_s, world.size_wh, world.fps).frames
            frames, masks = before_other(clip, scene, scene[order]), clip.masks
        else:
            frames, masks = clip.frames[order], clip.masks[order]
        return TrainingClip(f"textures {index}", frames, masks, np.zeros_like(frames), None, not spec.person)

    def check(self) -> list[str]:
        """A drawn world has nothing that could be wrong."""
        return []

    def _treatment(self, spec: ClipSpec, index: int) -> Treatment:
        rng = np.random.default_rng([self.worlds[0].seed, index, 11])
        order = 0 if rng.random() < 0.3 else int(rng.integers(1, len(ORDERS)))
        pace = 1.0 if rng.random() < 0.3 else float(np.exp(rng.uniform(*np.log(PACES))))
        alone, shown, start_s = rng.random() < 0.4, rng.random(), float(rng.uniform(0, SPAN_S))
        seen: Shown = "all" if shown < 0.4 or not spec.person else "bg" if shown < 0.8 else "fg"
        scene_alone = spec.person and alone and seen != "fg"
        return Treatment(SCENES.index(spec.scene), spec.person, order, pace, scene_alone, seen, start_s)


def reordered(order: str, rng: np.random.Generator, length: int = WINDOW) -> NDArray[np.int64]:
    """Which frame is shown when, [length]: one of `ORDERS`."""
    steps = np.arange(length)
    if order == "natural":
        return steps
    if order == "reversed":
        return steps[::-1].copy()
    if order == "frozen":
        return np.zeros_like(steps)
    if order == "shuffled":
        return rng.permutation(length)
    if order == "held":
        times = int(rng.integers(2, 5))
        return steps // times * times
    if order == "paused":
        return np.minimum(steps, int(rng.integers(length // 4, 3 * length // 4)))
    raise ValueError(f"order is {order!r}, wanted one of {list(ORDERS)}")


def before_other(clip: Clip, scene: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The people of a clip before other pictures of their scene; a shadow on the ground stays theirs."""
    through = 1 - clip.masks[..., None].astype(np.float32) / 255
    frames = clip.frames + through * (other.astype(np.float32) - scene)
    return np.clip(np.round(frames), 0, 255).astype(np.uint8)


def spoiled(clips: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change colours of all clips a little; blur, flicker, shake and noise, each on a quarter of them.

    Args:
        clips: float [N, 3, F, H, W], -1..1.
        source: of the random numbers.

    Returns:
        The clips, and the amounts [N, 4] of noise, blur, flicker and shake, 0..1.
    """
    count, _, length, height, width = clips.shape
    amounts = torch.rand(count, 4, generator=source) * (torch.rand(count, 4, generator=source) < SPOILED)
    noise, blur, flicker, shake = amounts.unbind(1)
    gain = 0.8 + 0.4 * torch.rand(count, 3, 1, 1, 1, generator=source)
    clips = clips * gain + 0.2 * (torch.rand(count, 3, 1, 1, 1, generator=source) - 0.5)
    clips = _blurred(clips, BLUR_PX * blur)
    offsets = SHAKE_PX * shake[:, None, None] * torch.randn(count, length, 2, generator=source)
    clips = torch.stack([_shifted(clip, by) if by.any() else clip for clip, by in zip(clips, offsets, strict=True)])
    clips = clips + FLICKER * (flicker[:, None] * torch.randn(count, length, generator=source))[:, None, :, None, None]
    noised = noise.nonzero()[:, 0]
    grain = torch.randn(len(noised), 3, length, height, width, generator=source)
    clips[noised] += NOISE * noise[noised, None, None, None, None] * grain
    return clips.clamp(-1, 1), amounts


def _blurred(clips: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur of each clip by its own amount; none under a tenth of a pixel."""
    out = clips.clone()
    for index, sigma in enumerate(sigma_px.tolist()):
        if sigma < 0.1:
            continue
        reach = int(np.ceil(3 * sigma))
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        kernel = (kernel / kernel.sum()).repeat(3, 1)
        frames = F.pad(clips[index].transpose(0, 1), (reach,) * 4, mode="replicate")
        frames = F.conv2d(frames, kernel[:, None, None], groups=3)
        out[index] = F.conv2d(frames, kernel[:, None, :, None], groups=3).transpose(0, 1)
    return out


def _shifted(clip: Tensor, by_px: Tensor) -> Tensor:
    """Each frame of a clip [3, F, H, W] shifted by (x, y) pixels [F, 2]; edge pixels fill what is missing."""
    frames = clip.transpose(0, 1)
    linear = torch.eye(2).expand(len(frames), 2, 2)
    size = torch.tensor([frames.shape[3], frames.shape[2]])
    matrix = torch.cat([linear, (-2 * by_px / size)[..., None]], -1)
    grid = F.affine_grid(matrix, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False).transpose(0, 1)
