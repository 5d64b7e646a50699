"""The parts of a model as a recipe handles them: build, load, freeze, save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, DDIMScheduler, ModelMixin
from torch import Tensor, nn

from xdyna.adapters.dynamics import DynamicsAdapter
from xdyna.configs.train import BringUpConfig, Part
from xdyna.controlnets.pose import PoseControlNet
from xdyna.controlnets.s_face import SFaceControlNet
from xdyna.errors import UserError
from xdyna.prompts import StoredPrompt
from xdyna.unet import XDynaUNet


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything a small model consists of; the adapter is attached to the UNet. Names are the pipeline's."""

    vae: AutoencoderKL
    unet: XDynaUNet
    dynamics_adapter: DynamicsAdapter
    pose_controlnet: PoseControlNet
    face_controlnet: SFaceControlNet
    stored_prompt: StoredPrompt
    scheduler: DDIMScheduler

    def modules(self) -> dict[str, nn.Module]:
        """All parts with weights, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    def save(self, folder: Path) -> None:
        """One sub-folder per part, as a pipeline folder has them."""
        for field in fields(self):
            getattr(self, field.name).save_pretrained(folder / field.name)


_CLASSES: dict[str, type[Any]] = {
    "vae": AutoencoderKL,
    "unet": XDynaUNet,
    "dynamics_adapter": DynamicsAdapter,
    "pose_controlnet": PoseControlNet,
    "face_controlnet": SFaceControlNet,
    "stored_prompt": StoredPrompt,
    "scheduler": DDIMScheduler,
}


def load_parts(folder: Path) -> Parts:
    """Read a model's parts in float32.

    Raises:
        UserError: a part is missing.
    """
    loaded: dict[str, Any] = {}
    for name, kind in _CLASSES.items():
        if not (folder / name).is_dir():
            raise UserError(f"{folder}: has no {name}/; wanted a model folder with {', '.join(_CLASSES)}")
        part: ConfigMixin = kind.from_pretrained(folder / name)
        loaded[name] = part.float() if isinstance(part, ModelMixin) else part
    return _assemble(loaded)


def build_parts(cfg: BringUpConfig) -> Parts:
    """New parts with random weights (torch's global seed decides them) around a trained autoencoder."""
    if cfg.vae is None or not (cfg.vae / "config.json").is_file():
        raise UserError(
            f"vae={cfg.vae}: not the folder of an autoencoder; train one with `xdyna train vae`, or set init"
        )
    vae = AutoencoderKL.from_pretrained(cfg.vae)
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
    for module in motion_modules(unet):  # untrained motion modules change nothing
        for parameter in module.get_submodule("proj_out").parameters():
            nn.init.zeros_(parameter)
    prompt = StoredPrompt(num_tokens=cfg.prompt_tokens, dim=cfg.prompt_dim)
    nn.init.normal_(prompt.embedding)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=cfg.beta_end,
        beta_schedule="linear",
        clip_sample=False,
        steps_offset=0,
        prediction_type="sample",
        timestep_spacing="trailing",
    )
    loaded = {
        "vae": vae,
        "unet": unet,
        "dynamics_adapter": DynamicsAdapter.from_unet(unet),
        "pose_controlnet": PoseControlNet(conditioning_channels=3, **_controlnet_shape(cfg, vae)),
        "face_controlnet": SFaceControlNet(**_controlnet_shape(cfg, vae)),
        "stored_prompt": prompt,
        "scheduler": scheduler,
    }
    for name in ("pose_controlnet", "dynamics_adapter"):
        _wake(loaded[name])
    return _assemble(loaded)


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


def _controlnet_shape(cfg: BringUpConfig, vae: AutoencoderKL) -> dict[str, Any]:
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


def _assemble(loaded: dict[str, Any]) -> Parts:
    parts = Parts(**loaded)
    for module in parts.modules().values():
        module.requires_grad_(False)
    parts.dynamics_adapter.attach(parts.unet)
    return parts


def motion_modules(unet: XDynaUNet) -> Iterator[nn.Module]:
    """The motion modules in module order."""
    for block in [*unet.down_blocks, *unet.up_blocks]:
        yield from block.motion_modules


def thaw(parts: Parts, trains: Sequence[Part]) -> list[nn.Parameter]:
    """Let the named parts train; return their parameters in a fixed order."""
    motion = {id(p) for module in motion_modules(parts.unet) for p in module.parameters()}
    own = {id(p) for p in parts.dynamics_adapter.parameters()}
    chosen: list[nn.Parameter] = []
    for part in trains:
        if part in ("unet", "motion"):
            wanted = (
                p for p in parts.unet.parameters() if id(p) not in own and (id(p) in motion) == (part == "motion")
            )
        else:
            wanted = getattr(parts, part).parameters()
        chosen += list(wanted)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


class _Through(nn.Module):
    """Stands in for a motion module and does nothing."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


@contextmanager
def without_motion(unet: XDynaUNet) -> Iterator[None]:
    """Inside this block the UNet has no motion modules: frames do not see each other."""
    blocks = [*unet.down_blocks, *unet.up_blocks]
    taken = [block.motion_modules for block in blocks]
    for block, modules in zip(blocks, taken, strict=True):
        block.motion_modules = nn.ModuleList(_Through() for _ in modules)
    try:
        yield
    finally:
        for block, modules in zip(blocks, taken, strict=True):
            block.motion_modules = modules


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """[N, 3, H, W] in -1..1 -> scaled latents [N, C, h, w] (the distribution's mode)."""
    return vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents [N, C, h, w] -> uint8 [N, H, W, 3]."""
    pictures = vae.decode(latents / vae.config.scaling_factor).sample
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()
