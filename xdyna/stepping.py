"""A scheduler's step over a clip of any length, a few frames at a time.

A scheduler computes element by element, with temporaries as large as what it is given. Given a few frames after the
other it makes the same numbers, and beside the clip itself needs memory for those few. So the clip may lie on the host
while the steps are computed where the networks run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Frames that go through the scheduler together.
STEP_FRAMES = 16
#: Attribute of tensors that a scheduler keeps and that were made here.
_OURS = "_xdyna_kept"


def scale_clip(scheduler: Any, latents: Tensor, timestep: Tensor, device: torch.device) -> Tensor:
    """What the model is shown of a clip: `scheduler.scale_model_input`, a few frames at a time.

    Args:
        scheduler: any of diffusers'.
        latents: [1, C, F, h, w], on any device.
        timestep: of the step.
        device: computes.

    Returns:
        `latents` itself where the scheduler scales nothing, else as many where they lie.
    """
    scaled = latents
    for frames in _runs(latents.shape[2], STEP_FRAMES):
        part = latents[:, :, frames].to(device)
        shown = scheduler.scale_model_input(part, timestep)
        if shown is part:
            return latents
        if scaled is latents:
            scaled = torch.empty_like(latents)
        scaled[:, :, frames] = shown.to(latents.device)
    return scaled


def step_clip(
    scheduler: Any, predicted: Tensor, timestep: Tensor, latents: Tensor, device: torch.device, **extra: Any
) -> Tensor:
    """`scheduler.step(..).prev_sample` for a clip, with the numbers that it gives for the whole clip at once.

    Random numbers are drawn for the whole clip, as the scheduler would. Of what it keeps for later steps, tensors as
    large as the clip lie where the latents lie.

    Args:
        scheduler: any of diffusers', its timesteps set.
        predicted: by the model, float32 [1, C, F, h, w], where the latents lie. It is overwritten.
        timestep: of the step.
        latents: [1, C, F, h, w]; left as they are.
        device: computes.
        **extra: keywords of the scheduler's `step`.

    Returns:
        [1, C, F, h, w], where the latents lie.
    """
    # Dynamic thresholds are taken over the whole clip.
    count = latents.shape[2] if getattr(scheduler, "config", {}).get("thresholding") else STEP_FRAMES
    before = dict(vars(scheduler))
    clip = _Clip(latents, predicted)
    with _DrawnForAll(latents.shape) as draws:
        for frames in _runs(latents.shape[2], count):
            draws.frames = frames
            clip.look_at(frames, device)
            _set_state(scheduler, {name: clip.part(value) for name, value in before.items()})
            stepped = scheduler.step(clip.part(predicted), timestep, clip.part(latents), **extra).prev_sample
            after = clip.take(stepped, dict(vars(scheduler)))
    _set_state(scheduler, after)
    out: Tensor = clip.out
    return out


class _Clip:
    """Tensors of a clip, of which a scheduler is shown a few frames.

    Attributes:
        out: what the frames become.
    """

    def __init__(self, latents: Tensor, predicted: Tensor) -> None:
        self.out: Any = None
        self._latents, self._predicted = latents, predicted
        self._made: dict[str, Tensor] = {}
        self._free: list[Tensor] = []
        self._frames, self._device = slice(0, 0), latents.device
        self._shown: dict[int, tuple[Tensor, Tensor]] = {}  # by id of a part: it, and what it is of
        self._parts: dict[int, Tensor] = {}  # by id of the whole

    def look_at(self, frames: slice, device: torch.device) -> None:
        """Go on to some frames."""
        self._frames, self._device = frames, device
        self._shown, self._parts = {}, {}

    def part(self, value: Any) -> Any:
        """Of a tensor as large as the clip, these frames; of a list, a list; other values as they are."""
        if isinstance(value, list):
            return [self.part(item) for item in value]
        if not isinstance(value, Tensor) or value.shape != self._latents.shape:
            return value
        if id(value) not in self._parts:
            part = value[:, :, self._frames].to(self._device)
            self._parts[id(value)], self._shown[id(part)] = part, (part, value)
        return self._parts[id(value)]

    def take(self, stepped: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """What became of these frames, and the scheduler's state after them for the whole clip."""
        if self.out is None:
            kept = {id(self._shown[key][1]) for key in map(id, _tensors(state)) if key in self._shown}
            usable = self._predicted.is_contiguous() and id(self._predicted) not in kept
            usable = usable and self._predicted.device == self._latents.device
            usable = usable and self._predicted.dtype == stepped.dtype
            self.out = self._predicted if usable else self._room(stepped)
            # What the scheduler drops has room for what it keeps from now on, if nobody else can have seen it.
            self._free = [of for _, of in self._shown.values() if hasattr(of, _OURS) and id(of) not in kept]
        after = {name: self._whole(value, name) for name, value in state.items()}
        self.out[:, :, self._frames] = stepped.to(self.out.device)
        return after

    def _whole(self, value: Any, name: str) -> Any:
        """The other way from `part`."""
        if isinstance(value, list):
            return [self._whole(item, f"{name}.{number}") for number, item in enumerate(value)]
        one, channels, _, height, width = self._latents.shape
        count = self._frames.stop - self._frames.start
        if not isinstance(value, Tensor) or value.shape != (one, channels, count, height, width):
            return value
        if id(value) not in self._shown:
            if name not in self._made:
                fits = self._free and self._free[-1].dtype == value.dtype
                self._made[name] = self._free.pop() if fits else self._room(value)
                setattr(self._made[name], _OURS, True)
            self._shown[id(value)] = value, self._made[name]  # it may be kept under another name as well
            self._made[name][:, :, self._frames] = value.to(self._latents.device)
        _, of = self._shown[id(value)]
        if of.device != value.device and of is not self._latents:
            of[:, :, self._frames] = value.to(of.device)  # it may have been changed in place
        return of

    def _room(self, value: Tensor) -> Tensor:
        """For the whole clip."""
        return torch.empty(self._latents.shape, dtype=value.dtype, device=self._latents.device)


class _DrawnForAll(TorchFunctionMode):
    """Lets `torch.randn` of some frames of a clip give their part of what it draws for all frames at once.

    Args:
        shape: of the clip, [1, C, F, h, w].
    Attributes:
        frames: those that are stepped now.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self._shape, self._draws = shape, []  # type: ignore[var-annotated]
        self._frames, self._number = slice(0, 0), 0

    @property
    def frames(self) -> slice:
        return self._frames

    @frames.setter
    def frames(self, frames: slice) -> None:
        self._frames, self._number = frames, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        count = self.frames.stop - self.frames.start
        wanted = (*self._shape[:2], count, *self._shape[3:])
        if func is not torch.randn or not args or not isinstance(args[0], tuple) or tuple(args[0]) != wanted:
            return func(*args, **(kwargs or {}))
        if self._number == len(self._draws):
            self._draws.append(torch.randn(self._shape, **(kwargs or {})))
        self._number += 1
        return self._draws[self._number - 1][:, :, self._frames]


def _runs(num_frames: int, count: int) -> Iterator[slice]:
    """Neighbouring frames, up to `count` at a time."""
    for first in range(0, num_frames, count):
        yield slice(first, min(first + count, num_frames))


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a scheduler's state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _set_state(scheduler: Any, state: dict[str, Any]) -> None:
    vars(scheduler).clear()
    vars(scheduler).update(state)
