"""Plans: ways of getting a clip out of the same networks. A plan is made once and run as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xdyna import windows as clip_windows
from xdyna.configs.animate import AnimateConfig
from xdyna.controlnets.residuals import control_residuals, sum_residuals
from xdyna.denoise import Conditioning
from xdyna.infer.bench.models import draw_inputs
from xdyna.pipeline import XDynaPipeline
from xdyna.unet import XDynaUNet

#: Called with the name of the stretch of work that has just ended: `step 0`, `step 1` .. and `decode`. What a plan does
#: before its first step counts to that.
OnStretch = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """What is asked of every plan.

    Attributes:
        num_frames: driving frames.
        size_wh: (width, height), pixels.
        steps: denoising steps.
        guidance: scale of classifier-free guidance; 1 for none.
        schedule: `open` or `closed`.
    """

    num_frames: int
    size_wh: tuple[int, int]
    steps: int
    guidance: float
    schedule: str

    def windows(self) -> list[list[int]]:
        """The windows of a step whose offset is 0."""
        return clip_windows.make_windows(self.schedule, self.num_frames)


class Plan(Protocol):
    """A way to a clip.

    Attributes:
        work: what is asked of it.
        networks: what it runs.
    """

    work: Work
    networks: list[nn.Module]

    def run(self, on_stretch: OnStretch = ...) -> Tensor:
        """Denoise and decode; returns the final latents [1, C, F, h, w]."""


class OfficialPredictor:
    """One step as the official code goes about it.

    A window at a time; in each, both ControlNets see every frame again, once for either half of the guidance, although
    the halves' text is the same by default.
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
        """As `xdyna.denoise.predict_clip`; `window_batch` is not used."""
        text, image_tokens = conditioning.halves(guidance_scale > 1)
        context = torch.cat([text, image_tokens], dim=1).to(unet.dtype)
        total = torch.zeros(len(text), *latents.shape[1:], dtype=torch.float32, device=latents.device)
        for window, weight in zip(windows, weights, strict=True):
            rows = latents[:, :, list(window)].to(unet.dtype).repeat(len(text), 1, 1, 1, 1)
            residuals = [
                control_residuals(
                    control.net,
                    rows.to(control.net.dtype),
                    timestep,
                    text.to(control.net.dtype),
                    control.condition(window, rows.device),
                    control.scale,
                )
                for control in conditioning.controls
                if control.is_on(step, num_steps)
            ]
            added = sum_residuals(residuals).with_reference() if residuals else None
            reference = conditioning.reference_latents.to(rows).expand(len(rows), -1, -1, -1, -1)
            predicted = unet(
                torch.cat([reference, rows], dim=2),
                timestep,
                encoder_hidden_states=context,
                down_block_additional_residuals=added.down if added else None,
                mid_block_additional_residual=added.mid if added else None,
            ).sample[:, :, 1:]
            share = torch.from_numpy(weight).to(total.device)[:, None, None]
            total.index_add_(2, torch.tensor(window, device=total.device), predicted.float() * share)
        if len(text) == 1:
            return total
        negative, positive = total.chunk(2)
        return negative + guidance_scale * (positive - negative)


class _OwnPipeline:
    """A plan through `XDynaPipeline`: it differs in the predictor and in how frames are decoded."""

    def __init__(self, pipe: XDynaPipeline, work: Work) -> None:
        self.pipe = pipe
        self.work = work
        parts = (pipe.unet, pipe.vae, pipe.pose_controlnet, pipe.face_controlnet)
        self.networks = [part for part in parts if part is not None]
        self.inputs = draw_inputs(pipe, work.num_frames, work.size_wh)

    def _denoise(self, predictor: Any, on_stretch: OnStretch, **settings: Any) -> Tensor:
        def after_step(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            on_stretch(f"step {step}")
            return {}

        pipe: Any = self.pipe
        latents: Tensor = pipe(
            **self.inputs,
            num_inference_steps=self.work.steps,
            guidance_scale=self.work.guidance,
            schedule=self.work.schedule,
            generator=torch.Generator().manual_seed(0),
            predictor=predictor,
            output_type="latent",
            callback_on_step_end=after_step,
            **settings,
        ).frames
        return latents


class OfficialPlan(_OwnPipeline):
    """The official code's order of work: `OfficialPredictor`, the VAE a frame at a time, the whole clip in memory."""

    predictor: type[OfficialPredictor] = OfficialPredictor

    def run(self, on_stretch: OnStretch = lambda name: None) -> Tensor:
        latents = self._denoise(self.predictor(), on_stretch)
        torch.cat(list(self.pipe.decode_frames(latents, 1)))
        on_stretch("decode")
        return latents


class _WithPlainFormulas(OfficialPredictor):
    """The same with the formulas that calls with gradients take, which the work on kernels and layout replaced."""

    def __call__(self, *arguments: Any, **settings: Any) -> Tensor:
        with torch.enable_grad():  # no weight wants a gradient: only the formulas are others
            return super().__call__(*arguments, **settings)


class OfficialPlainPlan(OfficialPlan):
    """`OfficialPlan` without the work on kernels and layout, which it shares with ours otherwise."""

    predictor = _WithPlainFormulas

    def __init__(self, pipe: XDynaPipeline, work: Work) -> None:
        super().__init__(pipe, work)
        for network in self.networks:
            network.requires_grad_(False)


class OurPlan(_OwnPipeline):
    """Ours: the engine's exact mode, its batches by what memory is free, frames passed on as they are decoded."""

    def run(self, on_stretch: OnStretch = lambda name: None) -> Tensor:
        from xdyna.infer.engine.plan import plan_batches
        from xdyna.infer.engine.predict import ExactPredictor

        config = AnimateConfig(
            size=self.work.size_wh,
            steps=self.work.steps,
            guidance=self.work.guidance,
            window=clip_windows.DEFAULT_SIZE,
            overlap=clip_windows.DEFAULT_OVERLAP,
        )
        batches = plan_batches(config, self.pipe)
        latents = self._denoise(ExactPredictor(), on_stretch, window_batch=batches.windows)
        for frames in self.pipe.decode_frames(latents, batches.frames):
            _to_pictures(frames)
        on_stretch("decode")
        return latents


def _to_pictures(frames: Tensor) -> Tensor:
    """[n, 3, H, W] in 0..1 -> uint8: what a writer takes from here."""
    return (frames * 255).round().to(torch.uint8)


def make_plan(name: str, pipe: XDynaPipeline, work: Work) -> Plan:
    """A plan by name, ready to run."""
    from xdyna.infer.bench.stock import DiffusersPlan, FreeNoisePlan

    plans: dict[str, Callable[[XDynaPipeline, Work], Plan]] = {
        "official": OfficialPlan,
        "official-plain": OfficialPlainPlan,
        "diffusers": DiffusersPlan,
        "freenoise": FreeNoisePlan,
        "ours": OurPlan,
        "ours-open": lambda pipe, work: OurPlan(pipe, replace(work, schedule="open")),
    }
    return plans[name](pipe, work)
