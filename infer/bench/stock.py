"""Diffusers' own AnimateDiff pipeline, put together from our networks, and plans that run it.

It has no reference, no Dynamics-Adapter and no image prompt: whatever it is spared by that is counted in its favour.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AnimateDiffControlNetPipeline, MotionAdapter, UNetMotionModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from torch import Tensor

from xdyna.attention import without_adapter_layers
from xdyna.infer.bench.models import draw_inputs
from xdyna.infer.bench.plans import OnStretch, Work
from xdyna.latents import ConditionMaps, condition_maps, draw_noise
from xdyna.pipeline import XDynaPipeline
from xdyna.unet import XDynaUNet
from xdyna.windows import DEFAULT_OVERLAP, DEFAULT_SIZE

_SHARED_SETTINGS = (
    "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "layers_per_block", "norm_num_groups", "cross_attention_dim", "num_attention_heads", "motion_num_attention_heads",
    "motion_max_seq_length",
)  # fmt: skip


def stock_unet(unet: XDynaUNet) -> UNetMotionModel:
    """Diffusers' UNet on the very tensors of ours; the adapters' layers stay behind."""
    settings = {name: unet.config[name] for name in _SHARED_SETTINGS}
    with torch.device("meta"):
        stock = UNetMotionModel(**settings, use_motion_mid_block=False)
    with without_adapter_layers(unet):
        weights = unet.state_dict()
    stock.load_state_dict(weights, strict=True, assign=True)
    return stock.eval().requires_grad_(False)


def stock_pipeline(pipe: XDynaPipeline) -> AnimateDiffControlNetPipeline:
    """Diffusers' pipeline with one or two ControlNets, as `pipe` has; text comes as embeddings."""
    nets = [net for net in (pipe.pose_controlnet, pipe.face_controlnet) if net is not None]
    with torch.device(pipe.device):
        # It only tells FreeNoise how long a window may be.
        motion = MotionAdapter(
            block_out_channels=(32,),
            motion_layers_per_block=1,
            use_motion_mid_block=False,
            motion_max_seq_length=pipe.unet.config.motion_max_seq_length,
        )
    stock = AnimateDiffControlNetPipeline(
        vae=pipe.vae,
        text_encoder=None,
        tokenizer=None,
        unet=stock_unet(pipe.unet),
        motion_adapter=motion,
        controlnet=MultiControlNetModel(nets) if len(nets) > 1 else nets[0],
        scheduler=pipe.scheduler,
    )
    stock.set_progress_bar_config(disable=True)
    return stock


class DiffusersPlan:
    """Diffusers' pipeline for one window after the other, our list of windows; overlaps are averaged at the end.

    Frames are decoded once each, in the batches that the pipeline would take.
    """

    def __init__(self, pipe: XDynaPipeline, work: Work) -> None:
        self.stock = stock_pipeline(pipe)
        self.networks = [self.stock.unet, self.stock.vae, self.stock.controlnet]
        self.work = work
        self.text = pipe.encode_prompt(None).to(pipe.device, pipe.unet.dtype)
        self.maps = _maps(pipe, work)
        shape = (pipe.unet.config.in_channels, *(side // pipe.vae_scale_factor for side in work.size_wh[::-1]))
        noise = draw_noise(work.num_frames, shape, torch.Generator().manual_seed(0))
        self.noise = noise.to(pipe.device, pipe.unet.dtype)

    def run(self, on_stretch: OnStretch = lambda name: None) -> Tensor:
        windows = self.work.windows()
        total, shown = torch.zeros_like(self.noise), torch.zeros(self.work.num_frames, device=self.noise.device)
        for window in windows:
            frames = torch.tensor(window, device=total.device)
            total.index_add_(2, frames, self._window(window, on_stretch))
            shown.index_add_(0, frames, torch.ones(len(window), device=shown.device))
        latents = total / shown[:, None, None].to(total.dtype)
        with torch.no_grad():
            self.stock.decode_latents(latents, DEFAULT_SIZE)
        on_stretch("decode")
        return latents

    def _window(self, window: list[int], on_stretch: OnStretch) -> Tensor:
        """Final latents [1, C, n, h, w] of some frames."""

        def after_step(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            on_stretch(f"step {step}")
            return {}

        maps = [list(clip_frames(clips, window, self.noise)) for clips in self.maps]
        latents: Tensor = self.stock(
            prompt_embeds=self.text,
            negative_prompt_embeds=self.text,
            num_frames=len(window),
            width=self.work.size_wh[0],
            height=self.work.size_wh[1],
            num_inference_steps=self.work.steps,
            guidance_scale=self.work.guidance,
            conditioning_frames=maps if len(maps) > 1 else maps[0],
            latents=self.noise[:, :, window],
            output_type="latent",
            callback_on_step_end=after_step,
        ).frames
        return latents


class FreeNoisePlan(DiffusersPlan):
    """Diffusers' pipeline with FreeNoise: the clip in one piece, windows inside the motion modules alone."""

    def __init__(self, pipe: XDynaPipeline, work: Work) -> None:
        super().__init__(pipe, work)
        if work.num_frames < DEFAULT_SIZE:
            return  # it cannot take less than a window, and there is nothing to be joined
        self.stock.enable_free_noise(context_length=DEFAULT_SIZE, context_stride=DEFAULT_OVERLAP)
        # FreeNoise insists on a tokenizer, to follow prompts that change; ours stays the same, and is embedded already.
        self.stock._encode_prompt_free_noise = self._text_rows

    def _text_rows(self, num_frames: int, do_classifier_free_guidance: bool, **others: Any) -> tuple[Tensor, Tensor]:
        rows = self.text.repeat(num_frames * (1 + do_classifier_free_guidance), 1, 1)
        return rows, rows

    def run(self, on_stretch: OnStretch = lambda name: None) -> Tensor:
        latents = self._window(list(range(self.work.num_frames)), on_stretch)
        with torch.no_grad():
            self.stock.decode_latents(latents, DEFAULT_SIZE)
        on_stretch("decode")
        return latents


def _maps(pipe: XDynaPipeline, work: Work) -> list[tuple[ConditionMaps, ...]]:
    """For each ControlNet the clips that are joined along channels."""
    inputs = draw_inputs(pipe, work.num_frames, work.size_wh)
    clips: list[tuple[ConditionMaps, ...]] = [(condition_maps(inputs["pose_maps"], work.size_wh),)]
    if "face_maps" in inputs:
        clips.append(tuple(condition_maps(maps, work.size_wh) for maps in inputs["face_maps"]))
    return clips


def clip_frames(clips: tuple[ConditionMaps, ...], window: list[int], like: Tensor) -> Tensor:
    """[n, c, H, W], 0..1, on the device of `like`."""
    return torch.cat([clip.window(window, like.device, torch.float32) for clip in clips], dim=1)[0].transpose(0, 1)
