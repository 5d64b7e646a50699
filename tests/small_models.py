"""Small models with seeded weights in which nothing is zero, so that every part shows in the output."""

from typing import Any, TypeVar

import torch
from diffusers import ControlNetModel
from torch import nn

from xdyna import XDynaUNet

Module = TypeVar("Module", bound=nn.Module)

SMALL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "motion_norm_num_groups": 16,
    "cross_attention_dim": 16,
    "num_attention_heads": 4,
    "motion_num_attention_heads": 4,
    "num_text_tokens": 4,
}
SMALL_CONTROLNET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "conditioning_embedding_out_channels": (8, 16),
}
SMALL_RESAMPLER: dict[str, Any] = {
    "embed_dims": 24, "hidden_dims": 16, "depth": 2, "dim_head": 8, "heads": 3, "num_queries": 3, "ffn_ratio": 2,
}  # fmt: skip


def randomised(module: Module, seed: int) -> Module:
    """Fill every parameter from a seed: matrices with std fan_in^-0.5, vectors a little off their usual value."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / parameter[0].numel() ** 0.5
        else:
            parameter.data = noise * 0.05 + float(name.endswith("weight"))
    return module.eval()


def small_unet(seed: int = 0, **overrides: Any) -> XDynaUNet:
    """A two-level UNet of 0.6 M parameters."""
    return randomised(XDynaUNet(**{**SMALL_UNET, **overrides}), seed)


def small_controlnet(cls: type[ControlNetModel], seed: int = 1, **overrides: Any) -> Any:
    """A ControlNet that fits `small_unet`."""
    return randomised(cls(**{**SMALL_CONTROLNET, **overrides}), seed)
