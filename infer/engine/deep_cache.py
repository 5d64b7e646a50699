"""The video UNet's outermost layers alone, on what its deeper ones put out in an earlier step.

From one step to the next the deep layers, which see much and carry little detail, change least (DeepCache,
arXiv 2312.00858). Here the outermost layers keep their motion modules, so that frames are still matched in every step.
`depth` counts the layers (ResNet, attention, motion module) of the last up block that run; they read the first
convolution's output and that of the first `depth - 1` layers of the first down block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from xdyna.attention import FrameLayout, ReferenceCache
from xdyna.fork import repeat_rows
from xdyna.unet import XDynaUNet, add_residuals, fold, norm_clips, silu_over, unfold


def most_depth(unet: XDynaUNet) -> int:
    """Layers of the outermost level: more than these cannot run alone."""
    return len(unet.up_blocks[-1].resnets)


@contextmanager
def deep_output(unet: XDynaUNet, depth: int) -> Iterator[list[Tensor]]:
    """Catch what the last `depth` layers get from deeper ones in the calls of a `with` block: [k*B*F, C, h, w] each."""
    found: list[Tensor] = []
    skip_channels = unet.config.block_out_channels[0]

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        joined = args[0] if args else kwargs["input_tensor"]
        found.append(joined[:, : joined.shape[1] - skip_channels].clone())

    first = unet.up_blocks[-1].resnets[-depth]
    handle = first.register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def run_outermost(
    unet: XDynaUNet,
    sample: Tensor,
    timestep: Tensor,
    context: Tensor,
    deep: Tensor,
    depth: int,
    residuals: Sequence[Tensor] | None = None,
    reference_cache: ReferenceCache | None = None,
    record: ReferenceCache | None = None,
) -> Tensor:
    """As `XDynaUNet.forward`, its deeper layers replaced by their earlier output.

    Args:
        unet: with its adapters attached.
        sample: [B, C, F, h, w].
        timestep: shape [].
        context: text and image tokens [k*B, T + n, D].
        deep: of `deep_output` for the same clips, [k*B*F, C, h, w].
        depth: layers that run.
        residuals: of the ControlNets for the first `depth` skip connections.
        reference_cache, record: see `XDynaUNet.forward`.

    Returns:
        [k*B, C, F, h, w].
    """
    frames = sample.shape[2]
    layout = FrameLayout(0, frames) if reference_cache is not None else FrameLayout(1, frames - 1)
    keywords = {"frames": layout, "reference_cache": reference_cache, "record": record}
    attention: dict[str, Any] = {
        "encoder_hidden_states": context.repeat_interleave(frames, dim=0), "cross_attention_kwargs": keywords
    }  # fmt: skip
    halves = len(context) // len(sample)
    temb = unet._embed_time(timestep, sample, layout)
    x = unet.conv_in(fold(sample))
    skips = [x]
    for i in range(depth - 1):
        rows = len(attention["encoder_hidden_states"]) // len(x) if hasattr(unet.down_blocks[0], "attentions") else 1
        x, temb = repeat_rows(x, rows), repeat_rows(temb, rows)
        x = _layer(unet.down_blocks[0], i, x, temb, attention, layout)
        skips.append(x)
    if residuals is not None:
        skips = add_residuals(skips, residuals)
    temb = repeat_rows(temb, halves * len(sample) // len(temb))
    x, block = deep, unet.up_blocks[-1]
    for i in range(len(block.resnets) - depth, len(block.resnets)):
        skip = skips.pop()
        x = torch.cat([x, repeat_rows(skip, len(x) // len(skip))], dim=1)
        x = _layer(block, i, x, temb, attention, layout)
    x = silu_over(norm_clips(unet.conv_norm_out, x, len(temb)))
    return unfold(unet.conv_out(x), len(temb))


def _layer(block: Any, i: int, x: Tensor, temb: Tensor, attention: dict[str, Any], layout: FrameLayout) -> Tensor:
    """One ResNet with its attention, if it has one, and its motion module."""
    x = block.resnets[i](x, temb)
    if hasattr(block, "attentions"):
        x = block.attentions[i](x, return_dict=False, **attention)[0]
    moved: Tensor = block.motion_modules[i](x, num_frames=layout)
    return moved


def outermost_residuals(
    net: ControlNetModel,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    features: Tensor,
    scale: float,
    depth: int,
) -> list[Tensor]:
    """The first `depth` of `xdyna.controlnets.residuals.frame_residuals`, without the work for the others.

    Returns:
        [k*N, C, h, w] each, k the number of texts.
    """
    temb = net.time_embedding(net.time_proj(timestep.expand(len(latents))).to(latents.dtype))
    context = text.repeat_interleave(len(latents), dim=0)
    x = net.conv_in(latents) + features
    outputs = [x]
    block = net.down_blocks[0]
    for i in range(depth - 1):
        if hasattr(block, "attentions"):
            rows = len(context) // len(x)
            x, temb = repeat_rows(x, rows), repeat_rows(temb, rows)
            x = block.attentions[i](block.resnets[i](x, temb), encoder_hidden_states=context, return_dict=False)[0]
        else:
            x = block.resnets[i](x, temb)
        outputs.append(x)
    heads = list(net.controlnet_down_blocks)[:depth]
    levels = [head(out) * scale for head, out in zip(heads, outputs, strict=True)]
    return [repeat_rows(level, len(context) // len(level)) for level in levels]
