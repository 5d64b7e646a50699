"""One step of the method: what the networks predict for a clip of any length, window by window.

This is the plain form: a window at a time, ControlNets evaluated anew in every window that covers a frame. What gives
the same numbers with less work is in `xdyna.infer.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from diffusers import ControlNetModel
from numpy.typing import NDArray
from torch import Tensor

from xdyna.controlnets.residuals import Residuals, control_residuals, sum_residuals
from xdyna.latents import ConditionMaps
from xdyna.unet import XDynaUNet


@dataclass
class Control:
    """A ControlNet with what it looks at.

    Attributes:
        net: the ControlNet.
        clips: maps that are joined along channels.
        scale: strength.
        start: fraction of the steps before which it is off.
        end: fraction of the steps after which it is off.
    """

    net: ControlNetModel
    clips: tuple[ConditionMaps, ...]
    scale: float
    start: float
    end: float

    def is_on(self, step: int, num_steps: int) -> bool:
        return self.scale != 0 and step / num_steps >= self.start and (step + 1) / num_steps <= self.end

    def condition(self, window: Sequence[int], device: torch.device) -> Tensor:
        """[1, c, F, H, W], 0..1, on the device where the ControlNet runs, wherever its weights lie between its runs."""
        return torch.cat([clip.window(window, device, self.net.dtype) for clip in self.clips], dim=1)


@dataclass
class Conditioning:
    """Everything but the noisy latents that a prediction depends on.

    Attributes:
        reference_latents: clean, [1, C, 1, h, w].
        text: [1, T, D].
        negative_text: [1, T, D]; None without guidance.
        image_tokens: [1, n, D], n may be 0.
        negative_image_tokens: likewise; None without guidance.
        controls: ControlNets with their maps.
    """

    reference_latents: Tensor
    text: Tensor
    negative_text: Tensor | None
    image_tokens: Tensor
    negative_image_tokens: Tensor | None
    controls: list[Control]

    def halves(self, guided: bool) -> tuple[Tensor, Tensor]:
        """Text [B, T, D] and image tokens [B, n, D]: B is 2, unconditional first, when guided, else 1."""
        if not guided:
            return self.text, self.image_tokens
        if self.negative_text is None or self.negative_image_tokens is None:
            raise ValueError("guidance needs negative text and image tokens")
        text = torch.cat([self.negative_text, self.text])
        return text, torch.cat([self.negative_image_tokens, self.image_tokens])


class Predictor(Protocol):
    """What the pipeline calls once a step: `predict_clip`, or something of the same signature that works otherwise.

    The clip may lie on another device than the networks: latents go to them window by window, and what is returned lies
    where the latents lie. It belongs to the pipeline, which overwrites it.
    """

    def __call__(
        self,
        unet: XDynaUNet,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        windows: Sequence[Sequence[int]],
        weights: Sequence[NDArray[np.float32]],
        guidance_scale: float,
        *,
        step: int = 0,
        num_steps: int = 1,
        window_batch: int = 1,
    ) -> Tensor:
        """See `predict_clip`."""
        ...


def predict_clip(
    unet: XDynaUNet,
    latents: Tensor,
    timestep: Tensor,
    conditioning: Conditioning,
    windows: Sequence[Sequence[int]],
    weights: Sequence[NDArray[np.float32]],
    guidance_scale: float,
    *,
    step: int = 0,
    num_steps: int = 1,
    window_batch: int = 1,
) -> Tensor:
    """The guided prediction for every driving frame.

    Args:
        unet: with its adapters attached.
        latents: noisy driving frames [1, C, F, h, w], scaled for the model (`scheduler.scale_model_input`), on any
            device.
        timestep: of the scheduler, shape [].
        conditioning: reference, text, image tokens and control maps.
        windows: lists of one length, see `xdyna.windows`.
        weights: how much each window counts for each of its frames.
        guidance_scale: of classifier-free guidance; at 1 or less the conditional half alone runs.
        step: index of the step, which decides what ControlNets are on.
        num_steps: number of steps.
        window_batch: windows per call of the networks.

    Returns:
        float32 [1, C, F, h, w], on the latents' device.
    """
    guided = guidance_scale > 1

    def predict(group: Sequence[Sequence[int]]) -> Tensor:
        return predict_windows(unet, latents, timestep, conditioning, group, guided, step, num_steps)

    return blend_windows(predict, latents, windows, weights, guidance_scale, window_batch)


def blend_windows(
    predict: Callable[[Sequence[Sequence[int]]], Tensor],
    latents: Tensor,
    windows: Sequence[Sequence[int]],
    weights: Sequence[NDArray[np.float32]],
    guidance_scale: float,
    window_batch: int,
) -> Tensor:
    """Predict group after group of windows, add them up by their weights, and guide.

    What is added up is held for frames that a later window shows as well, and for no others.

    Args:
        predict: from W windows of one length n to float32 [B, W, C, n, h, w], B the halves of guidance.
        latents: of the clip, [1, C, F, h, w].
        windows, weights, guidance_scale: see `predict_clip`.
        window_batch: W, less in the last group.

    Returns:
        float32 [1, C, F, h, w], on the latents' device.
    """
    groups = [windows[first : first + window_batch] for first in range(0, len(windows), window_batch)]
    blended = torch.zeros(latents.shape, dtype=torch.float32, device=latents.device)
    sums: dict[int, Tensor] = {}  # [B, C, h, w] by frame
    for number, (group, later) in enumerate(zip(groups, shown_later(groups), strict=True)):
        predicted = predict(group)
        for i, window in enumerate(group):
            for place, (frame, weight) in enumerate(zip(window, weights[number * window_batch + i], strict=True)):
                if frame not in sums:
                    sums[frame] = torch.zeros_like(predicted[:, 0, :, 0])
                sums[frame].add_(predicted[:, i, :, place] * float(weight))  # a window may show a frame twice
        finished = [frame for frame in sums if frame not in later]
        if finished:
            done = torch.stack([_guided(sums.pop(frame), guidance_scale) for frame in finished], dim=1)
            blended[0, :, finished] = done.to(blended.device)
    return blended


def _guided(halves: Tensor, guidance_scale: float) -> Tensor:
    """[B, C, h, w], overwritten, to [C, h, w]."""
    if len(halves) == 1:
        return halves[0]
    negative, positive = halves
    guided: Tensor = negative.add_(positive.sub_(negative).mul_(guidance_scale))
    return guided


class Later:
    """Frames that windows after one group show.

    Args:
        last: the last group that shows each frame.
        group: number of that one.
    """

    def __init__(self, last: dict[int, int], group: int) -> None:
        self._last, self._group = last, group

    def __contains__(self, frame: object) -> bool:
        return isinstance(frame, int) and self._last.get(frame, -1) > self._group


def shown_later(groups: Sequence[Sequence[Sequence[int]]]) -> list[Later]:
    """For each group of windows, the frames that groups after it show."""
    last = {frame: number for number, group in enumerate(groups) for window in group for frame in window}
    return [Later(last, number) for number in range(len(groups))]


def predict_windows(
    unet: XDynaUNet,
    latents: Tensor,
    timestep: Tensor,
    conditioning: Conditioning,
    group: Sequence[Sequence[int]],
    guided: bool,
    step: int = 0,
    num_steps: int = 1,
) -> Tensor:
    """Predictions for W windows of one length n: float32 [B, W, C, n, h, w], B the halves of guidance."""
    text, image_tokens = conditioning.halves(guided)
    rows = take_windows(latents, group).to(conditioning.reference_latents.device, unet.dtype)  # [W, C, n, h, w]
    controls = [control for control in conditioning.controls if control.is_on(step, num_steps)]
    parts = [_window_residuals(control, rows, timestep, text, group) for control in controls]
    residuals = sum_residuals(parts).with_reference() if parts else None
    # The clean reference joins here, after the scheduler's scaling, and is never scaled.
    reference = conditioning.reference_latents.to(rows).expand(len(rows), -1, -1, -1, -1)
    predicted = unet(
        torch.cat([reference, rows], dim=2).repeat(len(text), 1, 1, 1, 1),
        timestep,
        encoder_hidden_states=torch.cat([text, image_tokens], dim=1).to(rows).repeat_interleave(len(rows), dim=0),
        down_block_additional_residuals=residuals.down if residuals else None,
        mid_block_additional_residual=residuals.mid if residuals else None,
    ).sample
    driving: Tensor = predicted[:, :, 1:].float()
    return driving.reshape(len(text), len(rows), *driving.shape[1:])


def take_windows(latents: Tensor, group: Sequence[Sequence[int]]) -> Tensor:
    """[1, C, F, h, w] to [W, C, n, h, w]."""
    return torch.cat([latents[:, :, list(window)] for window in group])


def _window_residuals(
    control: Control, rows: Tensor, timestep: Tensor, text: Tensor, group: Sequence[Sequence[int]]
) -> Residuals:
    """Residuals for all halves; where their text is equal, and so their inputs are, computed once and repeated."""
    net, halves = control.net, len(text)
    computed = 1 if halves == 2 and torch.equal(text[0], text[1]) else halves
    condition = torch.cat([control.condition(window, rows.device) for window in group])
    residuals = control_residuals(
        net,
        rows.to(net.dtype).repeat(computed, 1, 1, 1, 1),
        timestep,
        text[:computed].to(net.dtype).repeat_interleave(len(rows), dim=0),
        condition.repeat(computed, 1, 1, 1, 1),
        control.scale,
    )
    if computed == halves:
        return residuals
    down = tuple(residual.repeat(halves, 1, 1, 1, 1) for residual in residuals.down)
    return Residuals(down, residuals.mid.repeat(halves, 1, 1, 1, 1))
