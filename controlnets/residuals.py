"""What ControlNets add to the UNet: computed frame by frame, summed, and absent on the reference frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from diffusers import ControlNetModel
from torch import Tensor

from xdyna.attention import FrameAttnProcessor, spatial_sites
from xdyna.fork import fork_in_block, repeat_rows
from xdyna.unet import fold, unfold


@dataclass(frozen=True)
class Residuals:
    """Residuals of one or several ControlNets.

    Attributes:
        down: [B, C_i, F, h_i, w_i] for each skip connection of the UNet.
        mid: [B, C, F, h, w] for the output of its middle block.
    """

    down: tuple[Tensor, ...]
    mid: Tensor

    def with_reference(self) -> Residuals:
        """Prepend a zero frame: nothing controls the reference."""
        return Residuals(tuple(_prepend_zero(r) for r in self.down), _prepend_zero(self.mid))


def control_residuals(
    controlnet: ControlNetModel,
    latents: Tensor,
    timestep: Tensor | float,
    text: Tensor,
    condition: Tensor,
    scale: float = 1.0,
) -> Residuals:
    """Run a ControlNet on every driving frame.

    Args:
        controlnet: its inputs are single frames.
        latents: noisy driving frames [B, C, F, h, w], without the reference.
        timestep: one number or [B].
        text: text tokens [B, T, D] (no image tokens).
        condition: [B or 1, c, F, H, W], 0..1.
        scale: strength.

    Raises:
        ValueError: channels or frame counts that do not fit.
    """
    batch, _, num_frames = latents.shape[:3]
    channels = controlnet.config.conditioning_channels
    if condition.ndim != 5 or condition.shape[1] != channels or condition.shape[2] != num_frames:
        raise ValueError(
            f"condition has shape {list(condition.shape)}, wanted [B, {channels}, {num_frames}, height, width]"
        )
    if isinstance(timestep, Tensor) and timestep.ndim:  # a timestep per clip becomes one per frame
        timestep = timestep.repeat_interleave(num_frames)
    down, mid = controlnet(
        fold(latents),
        timestep,
        encoder_hidden_states=_text_for_frames(controlnet, text, num_frames),
        controlnet_cond=fold(condition.expand(batch, -1, -1, -1, -1)),
        conditioning_scale=scale,
        return_dict=False,
    )
    return Residuals(tuple(unfold(r, batch) for r in down), unfold(mid, batch))


def condition_features(controlnet: ControlNetModel, condition: Tensor) -> Tensor:
    """What a ControlNet adds to its first convolution's output for maps [N, c, H, W], 0..1: [N, C, h, w]."""
    features: Tensor = controlnet.controlnet_cond_embedding(condition)
    return features


def frame_residuals(
    controlnet: ControlNetModel, latents: Tensor, timestep: Tensor, text: Tensor, features: Tensor, scale: float = 1.0
) -> list[Tensor]:
    """The residuals of single frames whose condition has been embedded before; `control_residuals` in other clothes.

    Args:
        controlnet: conditioned on timestep, text and maps alone, as those of SD1.5 are.
        latents: noisy frames [N, C, h, w].
        timestep: shape [].
        text: [k, T, D]: every frame is seen under k texts, and what does not depend on them is computed once.
        features: [N, C_0, h, w] of `condition_features`.
        scale: strength.

    Returns:
        [k*N, C_i, h_i, w_i] for each skip connection, then for the middle block; one text after the other.

    Raises:
        ValueError: a ControlNet that is conditioned on more, or pools its maps.
    """
    config, halves = controlnet.config, len(text)
    if config.class_embed_type or config.addition_embed_type or config.global_pool_conditions:
        raise ValueError("this ControlNet is conditioned on more than timestep, text and maps; use control_residuals")
    temb = controlnet.time_embedding(controlnet.time_proj(timestep.expand(len(latents))).to(latents.dtype))
    attention = {"encoder_hidden_states": _text_for_frames(controlnet, text, len(latents))}
    forked = halves  # how often rows are still to be repeated
    x = controlnet.conv_in(latents) + features
    outputs = [x]
    for block in controlnet.down_blocks:
        if not getattr(block, "has_cross_attention", False):
            x, own = block(hidden_states=x, temb=temb)
        elif forked > 1:
            x, own = fork_in_block(block, x, temb, attention, forked)
            temb, forked = repeat_rows(temb, forked), 1
        else:
            x, own = block(hidden_states=x, temb=temb, **attention)
        outputs += own
    if getattr(controlnet.mid_block, "has_cross_attention", False):
        outputs.append(controlnet.mid_block(repeat_rows(x, forked), repeat_rows(temb, forked), **attention))
    else:
        outputs.append(controlnet.mid_block(x, temb))
    heads = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    rows = halves * len(latents)
    return [repeat_rows(head(x) * scale, rows // len(x)) for head, x in zip(heads, outputs, strict=True)]


def _text_for_frames(controlnet: ControlNetModel, text: Tensor, num_frames: int) -> Tensor:
    """Text [B, T, D] as it is where the ControlNet's attention shares it among frames, else once for each frame."""
    shared = all(isinstance(attn.processor, FrameAttnProcessor) for attn in spatial_sites(controlnet, "attn2").values())
    return text if shared else text.repeat_interleave(num_frames, dim=0)


def sum_residuals(parts: Sequence[Residuals]) -> Residuals:
    """Add the residuals of several ControlNets.

    Raises:
        ValueError: none given, or different numbers of residuals.
    """
    if not parts:
        raise ValueError("no residuals to sum")
    total = parts[0]
    for part in parts[1:]:
        pairs = zip(total.down, part.down, strict=True)
        total = Residuals(tuple(a + b for a, b in pairs), total.mid + part.mid)
    return total


def _prepend_zero(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 1, 0))
