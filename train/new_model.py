"""A small model from nothing, for recipe `image`: what SD1.5 and AnimateDiff are for a model of official size."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import nn

from xdyna.adapters.dynamics import DynamicsAdapter
from xdyna.configs.recipes import ImageConfig
from xdyna.controlnets.pose import PoseControlNet
from xdyna.controlnets.s_face import SFaceControlNet
from xdyna.prompts import StoredPrompt
from xdyna.train.parts import Parts, base_folder, read_vae, silence_motion
from xdyna.unet import XDynaUNet


def build_parts(cfg: ImageConfig) -> Parts:
    """New parts with random weights (torch's global seed decides them) around a trained autoencoder.

    Raises:
        UserError: there is no autoencoder.
    """
    vae = read_vae(cfg.vae or base_folder(cfg.base) / "vae", "vae=")
    channels = vae.config.latent_channels
    down = tuple("CrossAttnDownBlockMotion" if on else "DownBlockMotion" for on in cfg.attention)
    up = tuple("CrossAttnUpBlockMotion" if on else "UpBlockMotion" for on in reversed(cfg.attention))
    unet = XDynaUNet(
        sample_size=max(cfg.world.size_wh) // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=cfg.widths,
        layers_per_block=cfg.layers,
        norm_num_groups=cfg.norm_groups,
        cross_attention_dim=cfg.prompt_dim,
        num_attention_heads=cfg.heads,
        motion_num_attention_heads=cfg.heads,
        motion_norm_num_groups=cfg.norm_groups,
        pool_group_norm=False,
        reference_timestep="zero",
        num_text_tokens=cfg.prompt_tokens,
    )
    silence_motion(unet)
    prompt = StoredPrompt(num_tokens=cfg.prompt_tokens, dim=cfg.prompt_dim)
    nn.init.normal_(prompt.embedding)
    parts = Parts(
        vae=vae,
        unet=unet,
        dynamics_adapter=DynamicsAdapter.from_unet(unet),
        pose_controlnet=PoseControlNet(conditioning_channels=3, **_controlnet_shape(cfg, vae)),
        face_controlnet=SFaceControlNet(**_controlnet_shape(cfg, vae)),
        stored_prompt=prompt,
        scheduler=_scheduler(),
    )
    for part in (parts.pose_controlnet, parts.dynamics_adapter):
        _wake(part)
    return parts


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        steps_offset=0,
        prediction_type="sample",
        timestep_spacing="trailing",
    )


def _controlnet_shape(cfg: ImageConfig, vae: AutoencoderKL) -> dict[str, Any]:
    """A ControlNet without attention whose residuals fit the UNet; its condition comes in at the latents' scale."""
    halvings = len(vae.config.block_out_channels) - 1
    return {
        "in_channels": vae.config.latent_channels,
        "down_block_types": ("DownBlock2D",) * len(cfg.widths),
        "mid_block_type": "UNetMidBlock2D",
        "block_out_channels": cfg.widths,
        "layers_per_block": cfg.layers,
        "norm_num_groups": cfg.norm_groups,
        "cross_attention_dim": cfg.prompt_dim,
        "attention_head_dim": cfg.heads,
        "conditioning_embedding_out_channels": (16, 32, 64, 96)[: halvings + 1],
    }


@torch.no_grad()
def _wake(part: nn.Module) -> None:
    """Let a branch be heard from the first step.

    Layers that start at zero keep a trained host undisturbed; here the host is random too. And torch's default weights
    shrink a signal by about three per convolution and SiLU: of a few thin limbs on black nothing would be left after
    the condition's six. Left so, the UNet learns to do without pose and reference for many hundreds of steps.
    """
    for module in part.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not module.weight.any():
            nn.init.xavier_normal_(module.weight)
    condition = getattr(part, "controlnet_cond_embedding", None)
    if condition is not None:
        for module in condition.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=2.2 / module.weight[0].numel() ** 0.5)
