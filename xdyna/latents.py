"""Where denoising starts and what it is told: initial latents, and condition maps for the ControlNets.

All random numbers are drawn frame by frame from generators that are passed in, so they depend neither on how the work
is batched nor on how long the clip is: a longer clip begins with the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xdyna.maps import MapClip
from xdyna.stepping import STEP_FRAMES

BLUR_SIZE = 9
BLUR_SIGMA = 18.0
#: Reflect padding by half the kernel needs sides longer than that half.
MIN_LATENT_SIDE = BLUR_SIZE // 2 + 1


def split_generator(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """New CPU generators seeded by one draw from `generator`, for streams of numbers that must not shift each other."""
    seeds = torch.randint(0, 2**63 - 1, (count,), generator=generator, device=generator.device)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def noise_frames(shape_chw: Sequence[int], generator: torch.Generator, *, shared: bool = False) -> Iterator[Tensor]:
    """The noise of frame after frame, without end, each float32 [C, h, w] on the CPU; `shared`: always the same."""
    if shared:
        yield from repeat(torch.randn(*shape_chw, generator=generator))
    while True:
        yield torch.randn(*shape_chw, generator=generator)


def mask_frames(
    shape_chw: Sequence[int], generator: torch.Generator, keep: float = 0.5, *, shared: bool = False
) -> Iterator[Tensor]:
    """The mask of one frame after the other, as `noise_frames`: true with probability `keep` per element."""
    if shared:
        yield from repeat(torch.rand(*shape_chw, generator=generator) >= 1 - keep)
    while True:
        yield torch.rand(*shape_chw, generator=generator) >= 1 - keep


def draw_noise(num_driving_frames: int, shape_chw: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal noise [1, C, F, h, w], float32 on the CPU, one draw per frame in frame order."""
    return torch.stack(list(islice(noise_frames(shape_chw, generator), num_driving_frames)), dim=1)[None]


def draw_mask(
    num_driving_frames: int, shape_chw: Sequence[int], generator: torch.Generator, keep: float = 0.5
) -> Tensor:
    """True with probability `keep` per element, bool [1, C, F, h, w] on the CPU, one draw per frame in frame order."""
    return torch.stack(list(islice(mask_frames(shape_chw, generator, keep), num_driving_frames)), dim=1)[None]


def gaussian_blur(latents: Tensor, size: int = BLUR_SIZE, sigma: float = BLUR_SIGMA) -> Tensor:
    """Blur [N, C, h, w] with a Gaussian kernel, reflecting at the edges.

    Raises:
        ValueError: a side not longer than half the kernel.
    """
    pad = size // 2
    if min(latents.shape[-2:]) <= pad:
        raise ValueError(f"latents of {list(latents.shape[-2:])} are too small to blur, wanted sides of {pad + 1} up")
    steps = torch.arange(size, dtype=torch.float32, device=latents.device) - pad
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    kernel = torch.outer(kernel, kernel).to(latents.dtype).expand(latents.shape[1], 1, size, size)
    return F.conv2d(F.pad(latents, (pad, pad, pad, pad), mode="reflect"), kernel, groups=latents.shape[1])


def downgrade_input(reference_latents: Tensor, mask: Tensor) -> Tensor:
    """The reference's latents for every frame, about half of the elements taken from their blur.

    Args:
        reference_latents: [1, C, 1, h, w].
        mask: [1, C, F, h, w]; true keeps, false takes the blur.

    Returns:
        [1, C, F, h, w].
    """
    blurred = gaussian_blur(reference_latents[:, :, 0]).unsqueeze(2)
    return torch.where(mask.to(reference_latents.device).bool(), reference_latents, blurred)


def initial_latents(reference_latents: Tensor, noise: Tensor, mask: Tensor, scheduler: Any, timestep: Tensor) -> Tensor:
    """Noisy driving frames at the first timestep: not pure noise, the reference shines through as in training.

    Args:
        reference_latents: clean, [1, C, 1, h, w].
        noise: [1, C, F, h, w], standard normal.
        mask: [1, C, F, h, w], see `downgrade_input`.
        scheduler: any diffusers scheduler with `add_noise`, its timesteps set.
        timestep: the first of its timesteps, shape [] or [1].

    Returns:
        [1, C, F, h, w], in the scheduler's own scale (before `scale_model_input`).
    """
    clean = downgrade_input(reference_latents, mask)
    noisy: Tensor = scheduler.add_noise(clean, noise.to(clean), timestep.reshape(1))
    return noisy


def start_clip(
    reference_latents: Tensor,
    noise: Iterator[Tensor],
    mask: Iterator[Tensor],
    scheduler: Any,
    timestep: Tensor,
    num_driving_frames: int,
    device: torch.device,
) -> Tensor:
    """`initial_latents` of a clip of any length, a few frames at a time.

    Args:
        reference_latents: clean, [1, C, 1, h, w], where the arithmetic is done.
        noise: of each frame, [C, h, w].
        mask: of each frame, likewise.
        scheduler: see `initial_latents`.
        timestep: see `initial_latents`.
        num_driving_frames: F.
        device: where the result lies.

    Returns:
        float32 [1, C, F, h, w].

    Raises:
        ValueError: noise or mask of fewer frames.
    """
    one, channels, _, height, width = reference_latents.shape
    clip = torch.empty(one, channels, num_driving_frames, height, width, device=device)
    for first in range(0, num_driving_frames, STEP_FRAMES):
        count = min(STEP_FRAMES, num_driving_frames - first)
        drawn = [list(islice(frames, count)) for frames in (noise, mask)]
        if min(map(len, drawn)) < count:
            raise ValueError(f"noise or mask of {first + min(map(len, drawn))} frames, wanted {num_driving_frames}")
        part, keep = (torch.stack(frames, dim=1)[None] for frames in drawn)
        started = initial_latents(reference_latents, part, keep, scheduler, timestep)
        clip[:, :, first : first + count] = started.to(device, torch.float32)
    return clip


def to_clean(kind: str, predicted: Tensor, shown: Tensor, signal: Tensor | float, noise: Tensor | float) -> Tensor:
    """The clean latents that a prediction stands for.

    Args:
        kind: the scheduler's `prediction_type`: `epsilon`, `v_prediction` or `sample`.
        predicted: by the model.
        shown: the noisy latents, signal * clean + noise * noise drawn.
        signal: amplitude of the clean latents in it.
        noise: amplitude of the noise in it.

    Raises:
        ValueError: another kind.
    """
    if kind == "sample":
        return predicted
    if kind == "epsilon":
        return (shown - noise * predicted) / signal
    if kind == "v_prediction":
        return signal * shown - noise * predicted
    raise ValueError(f"prediction_type is {kind!r}, wanted epsilon, v_prediction or sample")


@dataclass(frozen=True, eq=False)
class ConditionMaps:
    """Maps of a whole clip, stretched to 0..1 by the clip's own extremes when a window asks for them.

    Kept in the type they came in (a byte per value for pictures), because a float copy of a long clip is large; a clip
    that lies on disk stays there.

    Attributes:
        frames: uint8 or float32 [F, c, H, W], or a clip that is read as windows ask for it.
        low: least value of the clip, over all frames, channels and pixels together.
        high: greatest value.
    """

    frames: Tensor | MapClip
    low: float
    high: float

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    @property
    def size_wh(self) -> tuple[int, int]:
        if isinstance(self.frames, Tensor):
            return self.frames.shape[3], self.frames.shape[2]
        return self.frames.size_wh

    def window(self, indices: Sequence[int], device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Some frames as a ControlNet takes them: [1, c, len(indices), H, W], 0..1.

        A clip of one single value gives zeros (the official code divides by zero there).
        """
        frames = self._read(indices).to(device=device, dtype=torch.float32)
        span = (self.high - self.low) or 1.0
        return ((frames - self.low) / span).transpose(0, 1)[None].to(dtype)

    def part(self, indices: Sequence[int]) -> ConditionMaps:
        """Some frames as a clip of their own, which keeps the range of the whole."""
        return replace(self, frames=self._read(indices))

    def _read(self, indices: Sequence[int]) -> Tensor:
        if isinstance(self.frames, Tensor):
            return self.frames[torch.as_tensor(indices)]
        return torch.from_numpy(self.frames.frames(indices)).permute(0, 3, 1, 2)


def condition_maps(maps: Any, size_wh: tuple[int, int], name: str = "pose_maps") -> ConditionMaps:
    """Bring a clip of maps to a size and find its range.

    Args:
        maps: pictures: uint8 [F, H, W, 3] (numpy or torch) or a list of PIL images, resized by Lanczos where they
            differ in size; or float values [F, 3, H, W] (torch) or [F, H, W, 3] (numpy), of that size already; or a
            `MapClip`, which is not read as a whole: neither held nor copied; or what this function made, of that size.
        size_wh: width and height, pixels.
        name: of the argument, for messages.

    Raises:
        ValueError: another shape or type, another size in floats, a value that is not finite.
    """
    if isinstance(maps, ConditionMaps) and maps.size_wh == size_wh:
        return maps
    if _is_lazy(maps, name):
        clip = maps if maps.size_wh == tuple(size_wh) else _Resized(maps, size_wh)
        low, high = clip.extremes()
        return ConditionMaps(clip, float(low), float(high))
    frames = _frames_first(maps, name)
    if frames.dtype == torch.uint8:
        if (frames.shape[3], frames.shape[2]) != size_wh:
            frames = _resize_pictures(frames, size_wh)
    else:
        if (frames.shape[3], frames.shape[2]) != size_wh:
            got = (frames.shape[3], frames.shape[2])
            raise ValueError(f"{name} are floats of width, height {got}, wanted {size_wh}: only uint8 maps are resized")
        if not torch.isfinite(frames).all():
            raise ValueError(f"{name} hold values that are not finite")
    return ConditionMaps(frames, float(frames.min()), float(frames.max()))


def clip_size(maps: Any, name: str = "pose_maps") -> tuple[int, tuple[int, int]]:
    """(number of frames, (width, height)) of a clip in any form that `condition_maps` takes.

    Raises:
        ValueError: a form it does not take.
    """
    if isinstance(maps, ConditionMaps):
        return maps.num_frames, maps.size_wh
    if isinstance(maps, (list, tuple)) and len(maps) and isinstance(maps[0], Image.Image):
        return len(maps), maps[0].size
    if _is_lazy(maps, name):
        return len(maps), maps.size_wh
    frames = _frames_first(maps, name)
    return len(frames), (frames.shape[3], frames.shape[2])


def _is_lazy(maps: Any, name: str) -> bool:
    if isinstance(maps, (np.ndarray, Tensor, list, tuple)) or not isinstance(maps, MapClip):
        return False
    if not len(maps):
        raise ValueError(f"{name} is empty; wanted a frame at least")
    return True


class _Resized:
    """A `MapClip` of another size."""

    def __init__(self, clip: MapClip, size_wh: tuple[int, int]) -> None:
        self.size_wh = size_wh
        self._clip = clip

    def __len__(self) -> int:
        return len(self._clip)

    def frames(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        pictures = torch.from_numpy(self._clip.frames(indices)).permute(0, 3, 1, 2)
        return _resize_pictures(pictures, self.size_wh).permute(0, 2, 3, 1).numpy()

    def extremes(self) -> tuple[int, int]:
        ends = [(int(frame.min()), int(frame.max())) for frame in (self.frames([i]) for i in range(len(self)))]
        return min(low for low, _ in ends), max(high for _, high in ends)


def _frames_first(maps: Any, name: str) -> Tensor:
    """Any accepted form -> uint8 or float32 [F, 3, H, W]."""
    wanted = "wanted uint8 [F, H, W, 3], a list of PIL images, or a float tensor [F, 3, H, W]"
    if isinstance(maps, (list, tuple)):
        if not maps:
            raise ValueError(f"{name} is empty; {wanted}")
        pictures = [_as_picture(item, name, wanted) for item in maps]
        if len({picture.shape for picture in pictures}) > 1:
            raise ValueError(
                f"{name} lists pictures of several shapes: {sorted({p.shape for p in pictures})}; {wanted}"
            )
        maps = np.stack(pictures)
    if not isinstance(maps, (np.ndarray, Tensor)):
        raise ValueError(f"{name} is a {type(maps).__name__}; {wanted}")
    got = f"{name} has shape {list(maps.shape)} and type {maps.dtype}; {wanted}"
    if isinstance(maps, np.ndarray) and maps.dtype.kind not in "uif":
        raise ValueError(got)
    channels_last = isinstance(maps, np.ndarray) or maps.dtype == torch.uint8
    # torch takes over neither reversed nor read-only arrays as they are.
    frames = maps if isinstance(maps, Tensor) else torch.from_numpy(np.require(maps, requirements=["C", "W"]))
    if frames.ndim != 4 or 0 in frames.shape or frames.shape[3 if channels_last else 1] != 3:
        raise ValueError(got)
    if channels_last:
        frames = frames.permute(0, 3, 1, 2)
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        raise ValueError(got)
    return frames.float()


def _as_picture(item: Any, name: str, wanted: str) -> NDArray[np.uint8]:
    if isinstance(item, Image.Image):
        return np.asarray(item.convert("RGB"))
    if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim == 3:
        return item
    raise ValueError(f"{name} lists a {type(item).__name__}; {wanted}")


def _resize_pictures(frames: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """uint8 [F, 3, H, W] -> uint8 [F, 3, height, width]."""
    resized = torch.empty(len(frames), 3, size_wh[1], size_wh[0], dtype=torch.uint8)
    for i, frame in enumerate(frames):
        picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
        resized[i] = torch.from_numpy(np.array(picture.resize(size_wh, Image.Resampling.LANCZOS))).permute(2, 0, 1)
    return resized
