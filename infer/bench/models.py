"""Models to measure on: random weights at some size, written once as a folder, or a model that is there; and inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from numpy.typing import NDArray
from torch import Tensor, nn

from xdyna.adapters.dynamics import DynamicsAdapter
from xdyna.adapters.image_prompt import ImagePromptAdapter
from xdyna.attention import spatial_sites
from xdyna.configs.animate import AnimateConfig
from xdyna.configs.bench import RANDOM_MODELS
from xdyna.controlnets.pose import PoseControlNet
from xdyna.controlnets.s_face import SFaceControlNet
from xdyna.infer.load import ModelChoice, load_pipeline
from xdyna.pipeline import XDynaPipeline
from xdyna.prompts import StoredPrompt
from xdyna.unet import XDynaUNet

_SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "steps_offset": 1, "clip_sample": False,
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Settings of the networks of a random model.

    Attributes:
        unet: of `XDynaUNet`.
        controlnet: of both ControlNets.
        vae: of `AutoencoderKL`.
        resampler: of the image prompt.
        size_wh: (width, height) that is measured by default, pixels.
    """

    unet: dict[str, Any]
    controlnet: dict[str, Any]
    vae: dict[str, Any]
    resampler: dict[str, Any]
    size_wh: tuple[int, int]


SMALL = Sizes(
    unet={
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "motion_norm_num_groups": 8,
        "cross_attention_dim": 32,
        "num_attention_heads": 4,
        "motion_num_attention_heads": 4,
        "num_text_tokens": 8,
    },
    controlnet={
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "conditioning_embedding_out_channels": (8, 16),
    },
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
    },
    resampler={"embed_dims": 16, "hidden_dims": 16, "depth": 1, "dim_head": 8, "heads": 2, "num_queries": 4},
    size_wh=(16, 24),
)

SD15 = Sizes(
    unet={},
    controlnet={"cross_attention_dim": 768},
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 512,
    },
    resampler={},
    size_wh=(64, 64),
)

RANDOM_SIZES = dict(zip(RANDOM_MODELS, (SMALL, SD15), strict=True))


# --- models ------------------------------------------------------------------------------------------------------


def filled(module: nn.Module, seed: int) -> Any:
    """Fill every parameter from a seed: matrices with std fan_in^-0.5, vectors a little off their usual value.

    Nothing stays zero, so no work of the networks is without effect on the result.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        parameter.data.normal_(generator=generator)
        if parameter.ndim > 1:
            parameter.data /= parameter[0].numel() ** 0.5
        else:
            parameter.data.mul_(0.05).add_(float(name.endswith("weight")))
    return module.eval().requires_grad_(False)


def _parts(sizes: Sizes) -> dict[str, Callable[[], nn.Module]]:
    """How each part of a random pipeline is made; the adapters need nothing of the UNet but its shape."""
    with torch.device("meta"):
        unet = XDynaUNet(**sizes.unet)
        image_prompt = ImagePromptAdapter.from_unet(unet, sizes.resampler)
    sites = {site: attn.to_q.in_features for site, attn in spatial_sites(unet, DynamicsAdapter.kind).items()}
    prompt = (unet.config.num_text_tokens, unet.config.cross_attention_dim)
    return {
        "unet": lambda: XDynaUNet(**sizes.unet),
        "vae": lambda: AutoencoderKL(**sizes.vae),
        "pose_controlnet": lambda: PoseControlNet(**sizes.controlnet),
        "face_controlnet": lambda: SFaceControlNet(**sizes.controlnet),
        "dynamics_adapter": lambda: DynamicsAdapter(sites=sites),
        "image_prompt": lambda: ImagePromptAdapter(image_prompt.config.sites, image_prompt.config.resampler_config),
        "stored_prompt": lambda: StoredPrompt(*prompt),
    }


def write_random_model(name: str, folder: Path, dtype: torch.dtype) -> None:
    """Write a model of random weights, a part at a time, so that never more than one is in memory.

    Args:
        name: a key of `RANDOM_SIZES`.
        folder: where to; in the layout of `XDynaPipeline.save_pretrained`.
        dtype: of the weights.
    """
    parts = _parts(RANDOM_SIZES[name])
    for seed, (part, make) in enumerate(parts.items()):
        module = filled(make(), seed)
        nn.Module.to(module, dtype)  # past diffusers' warning, which lists no modules
        module.save_pretrained(folder / part)
    empty_model(name).save_config(folder)
    DDIMScheduler(**_SCHEDULER).save_pretrained(folder / "scheduler")


def empty_model(name: str) -> XDynaPipeline:
    """A random model without its values, on torch's meta device: good for counting, and for its configuration."""
    with torch.device("meta"):
        parts: dict[str, Any] = {
            part: make().eval().requires_grad_(False) for part, make in _parts(RANDOM_SIZES[name]).items()
        }
    pipe = XDynaPipeline(**parts, scheduler=DDIMScheduler(**_SCHEDULER), schedule="closed")
    pipe.set_progress_bar_config(disable=True)
    return pipe


class StillScheduler(DDIMScheduler):  # type: ignore[misc] # diffusers is untyped
    """For counting: as many timesteps as are asked for, and latents that stay as they are."""

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        self.timesteps = torch.zeros(num_inference_steps, dtype=torch.int64, device=device)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return original_samples

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **others: Any) -> DDIMSchedulerOutput:
        return DDIMSchedulerOutput(prev_sample=sample)


def emptied(pipe: XDynaPipeline) -> XDynaPipeline:
    """The same pipeline with its networks moved to the meta device, where shapes are followed and nothing computed."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to("meta")
    pipe.scheduler = StillScheduler()
    return pipe


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> XDynaPipeline:
    """A model from its folder. On a CPU the weights are the files' own pages, which processes share."""
    choice = ModelChoice(folder.name, folder, "to be measured", "infer/x-dyna")
    pipe = load_pipeline(choice, AnimateConfig(), device, dtype)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    return pipe


# --- inputs ------------------------------------------------------------------------------------------------------


def draw_inputs(pipe: XDynaPipeline, num_frames: int, size_wh: tuple[int, int]) -> dict[str, Any]:
    """Noise in the place of a photo, of maps and of image tokens: keyword arguments of a pipeline call.

    For a pipeline on the meta device the maps take no memory; what is in them is not read there.
    """
    empty = pipe.device.type == "meta"
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "reference": _noise_clip(rng, 1, size_wh, False)[0],
        "height": size_wh[1],
        "width": size_wh[0],
    }
    inputs["pose_maps"] = _noise_clip(rng, num_frames, size_wh, empty)
    if pipe.face_controlnet is not None:
        inputs["face_maps"] = tuple(_noise_clip(rng, num_frames, size_wh, empty) for _ in range(2))
    if pipe.unet.num_image_tokens:
        shape = (1, pipe.unet.num_image_tokens, pipe.unet.config.cross_attention_dim)
        for name in ("image_tokens", "negative_image_tokens"):
            inputs[name] = torch.from_numpy(rng.standard_normal(shape, np.float32))
    return inputs


def _noise_clip(
    rng: np.random.Generator, num_frames: int, size_wh: tuple[int, int], empty: bool
) -> NDArray[np.uint8] | Tensor:
    """uint8 [F, H, W, 3]."""
    width, height = size_wh
    if empty:
        return torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(num_frames, height, width, 3)
    return rng.integers(0, 256, (num_frames, height, width, 3), np.uint8)
