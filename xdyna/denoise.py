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

    def condition(self, window: Sequence[int]) -> Tensor:
        """[1, c, F, H, W], 0..1, where the ControlNet runs, wherever its weights lie between its runs."""
        device = getattr(getattr(self.net, "_hf_hook", None), "execution_device", None)
        parts = [clip.window(window, device or self.net.device, self.net.dtype) for clip in self.clips]
        return torch.cat(parts, dim=1)


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
    """What the pipeline calls once a step: `predict_clip`, or something of the same signature that works otherwise."""

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
        latents: noisy driving frames [1, C, F, h, w], scaled for the model (`scheduler.scale_model_input`).
        timestep: of the scheduler, shape [].
        conditioning: reference, text, image tokens and control maps.
        windows: lists of one length, see `xdyna.windows`.
        weights: how much each window counts for each of its frames.
        guidance_scale: of classifier-free guidance; at 1 or less the conditional half alone runs.
        step: index of the step, which decides what ControlNets are on.
        num_steps: number of steps.
        window_batch: windows per call of the networks.

    Returns:
        float32 [1, C, F, h, w].
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

    Args:
        predict: from W windows of one length n to float32 [B, W, C, n, h, w], B the halves of guidance.
        latents: of the clip, [1, C, F, h, w].
        windows, weights, guidance_scale: see `predict_clip`.
        window_batch: W, less in the last group.

    Returns:
        float32 [1, C, F, h, w].
    """
    guided = guidance_scale > 1
    total = torch.zeros(1 + guided, *latents.shape[1:], dtype=torch.float32, device=latents.device)
    for first in range(0, len(windows), window_batch):
        group = windows[first : first + window_batch]
        predicted = predict(group)
        for i, window in enumerate(group):
            weight = torch.from_numpy(weights[first + i]).to(total.device)[:, None, None]
            frames = torch.tensor(window, device=total.device)
            total.index_add_(2, frames, predicted[:, i] * weight)  # a window may show a frame more than once
    if not guided:
        return total
    negative, positive = total.chunk(2)
    return negative.add_(positive.sub_(negative).mul_(guidance_scale))  # in place: each is as large as the clip


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
    rows = torch.cat([latents[:, :, list(window)] for window in group]).to(unet.dtype)  # [W, C, n, h, w]
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


def _window_residuals(
    control: Control, rows: Tensor, timestep: Tensor, text: Tensor, group: Sequence[Sequence[int]]
) -> Residuals:
    """Residuals for all halves; where their text is equal, and so their inputs are, computed once and repeated."""
    net, halves = control.net, len(text)
    computed = 1 if halves == 2 and torch.equal(text[0], text[1]) else halves
    condition = torch.cat([control.condition(window) for window in group])
    residuals = control_residuals(
        net,
        rows.to(net.dtype).repeat(computed, 1, 1, 1, 1),
        timestep,
        text[:computed].to(net.dtype).repeat_interleave(len(rows), dim=0),
        condition.to(rows.device).repeat(computed, 1, 1, 1, 1),
        control.scale,
    )
    if computed == halves:
        return residuals
    down = tuple(residual.repeat(halves, 1, 1, 1, 1) for residual in residuals.down)
    return Residuals(down, residuals.mid.repeat(halves, 1, 1, 1, 1))
