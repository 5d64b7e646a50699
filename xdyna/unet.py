"""The video UNet: diffusers' `UNetMotionModel` with a clean reference frame in front of the driving frames.

What differs from the stock model, each a switch or a module put in place once, in `__init__`:

* frame 0 of every clip is the reference: it bypasses the motion modules, so temporal positions start at the first
  driving frame;
* ResNets and the output norm take GroupNorm statistics over all frames of a clip (`pool_group_norm`, the official
  model) or over each frame (stock AnimateDiff);
* the motion modules' norm is per frame and has its own number of groups;
* text is given once per clip, and image tokens may follow it.

Nothing in the model remembers anything between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, UNetMotionModel, UNetMotionOutput
from torch import Tensor, nn

from xdyna.attention import (
    FrameLayout,
    Record,
    ReferenceCache,
    spatial_sites,
    use_frame_attention,
    without_adapter_layers,
)
from xdyna.fork import fork_in_block, repeat_rows

#: A clip of one driving frame without a reference.
ONE_FRAME = FrameLayout(reference=0, driving=1)


class ClipGroupNorm(nn.GroupNorm):
    """GroupNorm of frames folded into the batch, with statistics over each clip's frames together."""

    def forward(self, x: Tensor, batch: int = 1) -> Tensor:
        """[B*F, C, h, w] of `batch` clips -> the same, contiguous."""
        # The kernel's statistics have no gradient, and in half precision the second rounding would show.
        if torch.is_grad_enabled() or x.dtype != torch.float32 or self.weight.dtype != torch.float32:
            clips = x.unflatten(0, (batch, -1)).transpose(1, 2)
            return super().forward(clips).transpose(1, 2).flatten(0, 1)
        # Each frame is normed where it lies, then led from its own statistics to those of the clip: no frame moves.
        rows, channels, groups = *x.shape[:2], self.num_groups
        out, mean, inverse = torch.native_group_norm(
            x.contiguous(), None, None, rows, channels, x[0, 0].numel(), groups, self.eps
        )
        means, inverses = mean.unflatten(0, (batch, -1)), inverse.unflatten(0, (batch, -1))  # [B, F, G]
        pooled_mean = means.mean(1, keepdim=True)
        pooled_inverse = (inverses.pow(-2).mean(1, keepdim=True) + means.var(1, correction=0, keepdim=True)).rsqrt()
        weight, bias = self.weight.view(groups, -1), self.bias.view(groups, -1)
        scale = weight * (pooled_inverse / inverses)[..., None]  # [B, F, G, C / G]
        shift = bias + weight * ((means - pooled_mean) * pooled_inverse)[..., None]
        return torch.addcmul(shift.view(rows, channels, 1, 1), out, scale.view(rows, channels, 1, 1), out=out)


def pooling(norm: nn.GroupNorm) -> ClipGroupNorm:
    """A new norm of the same size."""
    return ClipGroupNorm(norm.num_groups, norm.num_channels, norm.eps)


def norm_clips(norm: nn.GroupNorm, x: Tensor, batch: int) -> Tensor:
    """[B*F, C, h, w] of `batch` clips through a norm that pools their frames, or through one that does not."""
    normed: Tensor = norm(x, batch) if isinstance(norm, ClipGroupNorm) else norm(x)
    return normed


def silu_over(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else reads, in its own memory where no gradient is wanted."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ClipResnetBlock(ResnetBlock2D):
    """A ResNet block on frames folded into the batch.

    It learns how many clips there are from the time embedding, which has one row per clip.

    Args:
        pooled: GroupNorm statistics over each clip's frames together, not over each frame.
        **kwargs: of `ResnetBlock2D`.
    """

    norm1: nn.GroupNorm
    norm2: nn.GroupNorm

    def __init__(self, *, pooled: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if pooled:
            self.norm1, self.norm2 = pooling(self.norm1), pooling(self.norm2)

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        """[B*F, C, h, w] and time embedding [B, 1 or F, T] -> [B*F, C', h, w]."""
        batch = len(temb)
        x = self.conv1(silu_over(norm_clips(self.norm1, input_tensor, batch)))
        shift = self.time_emb_proj(self.nonlinearity(temb))[..., None, None]
        x = (x.unflatten(0, (batch, -1)) + shift).flatten(0, 1)
        x = self.conv2(self.dropout(silu_over(norm_clips(self.norm2, x, batch))))
        residual = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return (residual + x) / self.output_scale_factor


class DrivingMotionModule(AnimateDiffTransformer3D):
    """A motion module that leaves the reference frame untouched and norms each frame on its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gradient_checkpointing = False  # the host's `enable_gradient_checkpointing()` looks for this name

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        num_frames: FrameLayout = ONE_FRAME,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """[B*F, C, h, w] -> [B*F, C, h, w]; the other arguments are diffusers' and unused."""
        if num_frames.driving == 0:
            return hidden_states
        clips = hidden_states.unflatten(0, (-1, num_frames.total))
        driving = clips[:, num_frames.reference :]
        change = self._mix_over_time(driving)
        if torch.is_grad_enabled():  # which an `out` argument rules out
            return torch.cat([clips[:, : num_frames.reference], driving + change], dim=1).flatten(0, 1)
        out = torch.empty_like(clips, dtype=torch.result_type(driving, change))
        out[:, : num_frames.reference] = clips[:, : num_frames.reference]
        torch.add(driving, change, out=out[:, num_frames.reference :])
        return out.flatten(0, 1)

    def _mix_over_time(self, x: Tensor) -> Tensor:
        """[B, F, C, h, w] -> [B, F, C, h, w]: each pixel attends along its own F frames."""
        batch, num_frames, _, height, width = x.shape
        # Contiguous: torch 2.13's GroupNorm crashes in its backward pass on channels-last input that needs no gradient.
        tokens = self.norm(x.flatten(0, 1).contiguous()).unflatten(0, (batch, num_frames))
        tokens = tokens.permute(0, 3, 4, 1, 2).flatten(0, 2)  # [B*h*w, F, C]
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens)
            else:
                tokens = block(tokens)
        tokens = self.proj_out(tokens)
        return tokens.unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2)


class XDynaUNet(UNetMotionModel):
    """The frozen video UNet. Every parameter is built with `requires_grad=False`: a recipe thaws what it trains.

    Args:
        sample_size: latent side the model was made for; informative only.
        in_channels: latent channels.
        out_channels: latent channels.
        down_block_types: `CrossAttnDownBlockMotion` or `DownBlockMotion`, one per level.
        up_block_types: `CrossAttnUpBlockMotion` or `UpBlockMotion`, one per level.
        block_out_channels: widths, one per level.
        layers_per_block: ResNets per level (one more on the way up).
        norm_num_groups: groups of the ResNets', transformers' and output norms.
        cross_attention_dim: D, width of text and image tokens.
        num_attention_heads: heads of the spatial attention (a number of heads, not a head's width).
        motion_num_attention_heads: heads of the temporal attention.
        motion_max_seq_length: driving frames a window may have.
        motion_norm_num_groups: groups of the motion modules' norm, whatever `norm_num_groups` is.
        pool_group_norm: GroupNorm statistics over all frames of a clip, reference included (official), or per frame.
        reference_timestep: `same` gives the reference frame the driving frames' timestep (official); `zero` gives it
            timestep 0, which makes its keys and values constant over a job.
        num_text_tokens: T, text tokens per clip; image tokens come after them.
    """

    # What `compile_repeated_blocks()` compiles. ResNets are left out: SD1.5 has more widths of them than torch will
    # recompile one piece of code for.
    _repeated_blocks: ClassVar[list[str]] = ["BasicTransformerBlock"]

    conv_norm_out: nn.GroupNorm

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = 64,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: Sequence[str] = ("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",),
        up_block_types: Sequence[str] = ("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * 3,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        cross_attention_dim: int = 768,
        num_attention_heads: int = 8,
        motion_num_attention_heads: int = 8,
        motion_max_seq_length: int = 24,
        motion_norm_num_groups: int = 32,
        pool_group_norm: bool = True,
        reference_timestep: Literal["same", "zero"] = "same",
        num_text_tokens: int = 77,
    ) -> None:
        if reference_timestep not in ("same", "zero"):
            raise ValueError(f"reference_timestep is {reference_timestep!r}, wanted 'same' or 'zero'")
        # The undecorated parent: the decorated one would add two dozen options, unused here, to the saved config.
        UNetMotionModel.__init__.__wrapped__(
            self,
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down_block_types),
            up_block_types=tuple(up_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            num_attention_heads=num_attention_heads,
            motion_num_attention_heads=motion_num_attention_heads,
            motion_max_seq_length=motion_max_seq_length,
            use_motion_mid_block=False,
        )
        self._replace_resnets(pool_group_norm)
        if pool_group_norm:
            self.conv_norm_out = pooling(self.conv_norm_out)
        self._replace_motion_modules(motion_num_attention_heads, motion_max_seq_length, motion_norm_num_groups)
        use_frame_attention(self)
        self.requires_grad_(False)

    def _replace_resnets(self, pooled: bool) -> None:
        for block in [*self.down_blocks, self.mid_block, *self.up_blocks]:
            for i, old in enumerate(block.resnets):
                block.resnets[i] = ClipResnetBlock(
                    pooled=pooled,
                    in_channels=old.in_channels,
                    out_channels=old.out_channels,
                    temb_channels=old.time_emb_proj.in_features,
                    groups=old.norm1.num_groups,
                    eps=old.norm1.eps,
                    output_scale_factor=old.output_scale_factor,
                )

    def _replace_motion_modules(self, heads: int, max_frames: int, groups: int) -> None:
        for block in [*self.down_blocks, *self.up_blocks]:
            for i, old in enumerate(block.motion_modules):
                block.motion_modules[i] = DrivingMotionModule(
                    num_attention_heads=heads,
                    attention_head_dim=old.in_channels // heads,
                    in_channels=old.in_channels,
                    norm_num_groups=groups,
                    positional_embeddings="sinusoidal",
                    num_positional_embeddings=max_frames,
                )

    @classmethod
    def from_unet2d(cls, *args: Any, **kwargs: Any) -> XDynaUNet:
        """Not offered: `xdyna convert` assembles a UNet from SD1.5, AnimateDiff and X-Dyna files."""
        raise NotImplementedError("XDynaUNet is assembled by `xdyna convert` (xdyna.checkpoints), not from_unet2d")

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the UNet alone; layers of attached adapters belong to the adapters' own files."""
        with without_adapter_layers(self):
            super().save_pretrained(save_directory, **kwargs)

    @property
    def num_image_tokens(self) -> int:
        """Image tokens that the attached image prompt expects after the text tokens; 0 without one."""
        return max(getattr(attn.processor, "num_image_tokens", 0) for attn in spatial_sites(self, "attn2").values())

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        reference_cache: ReferenceCache | None = None,
        return_dict: bool = True,
        record: ReferenceCache | None = None,
    ) -> UNetMotionOutput | tuple[Tensor]:
        """Predict for every frame of B clips.

        Args:
            sample: [B, C, F, h, w] latents: frame 0 the clean reference, then noisy driving frames; driving frames
                only when `reference_cache` is given.
            timestep: one number, or [B]; 0..999.
            encoder_hidden_states: [k*B, T + n, D], text tokens then image tokens, once per clip. Where k is more than
                1, every clip is predicted under k texts (the halves of guidance, one after the other), and what does
                not depend on the text is computed once.
            down_block_additional_residuals: ControlNet residuals [B or k*B, C_i, F, h_i, w_i], one for each skip
                connection.
            mid_block_additional_residual: [B or k*B, C_mid, F, h_mid, w_mid].
            reference_cache: from `encode_reference` of one clip, which all B share, under the same k texts.
            return_dict: an output object, else a tuple.
            record: is filled with the keys and values of the reference frames, [B or k*B, N, C] for each site.

        Returns:
            `.sample` [k*B, C, F, h, w]; what it says of the reference frame has no use.

        Raises:
            ValueError: shapes that do not fit each other or the model.
        """
        layout = FrameLayout(0, sample.shape[2]) if reference_cache is not None else FrameLayout(1, sample.shape[2] - 1)
        out = self._run(
            sample,
            timestep,
            encoder_hidden_states,
            layout,
            down_block_additional_residuals,
            mid_block_additional_residual,
            reference_cache=reference_cache,
            record=record,
        )
        return UNetMotionOutput(sample=out) if return_dict else (out,)

    def encode_reference(
        self, reference: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor
    ) -> ReferenceCache:
        """Run the reference frame on its own and keep the keys and values that driving frames read.

        Exact when GroupNorm is per frame: nothing then flows from driving frames to the reference.

        Args:
            reference: clean latents [B, C, h, w].
            timestep: that of the driving frames (not used where `reference_timestep` is `zero`).
            encoder_hidden_states: [k*B, T + n, D].

        Raises:
            ValueError: the model pools GroupNorm over the clip, or no Dynamics-Adapter is attached.
        """
        if self.config.pool_group_norm:
            raise ValueError("a reference cannot be encoded alone: this model pools GroupNorm over the whole clip")
        record = Record()
        self(reference.unsqueeze(2), timestep, encoder_hidden_states, record=record)
        if not record:
            raise ValueError("no Dynamics-Adapter is attached: nothing reads the reference")
        return record

    def _run(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        layout: FrameLayout,
        down_residuals: Sequence[Tensor] | None = None,
        mid_residual: Tensor | None = None,
        reference_cache: ReferenceCache | None = None,
        record: ReferenceCache | None = None,
    ) -> Tensor:
        halves = self._check(sample, encoder_hidden_states, layout)
        temb = self._embed_time(timestep, sample, layout)
        attention: dict[str, Any] = {
            "encoder_hidden_states": encoder_hidden_states,
            "cross_attention_kwargs": {"frames": layout, "reference_cache": reference_cache, "record": record},
        }
        forked = halves  # how often rows are still to be repeated

        x = self.conv_in(fold(sample))
        skips = [x]
        for block in self.down_blocks:
            if not hasattr(block, "attentions"):
                x, outputs = block(hidden_states=x, temb=temb, num_frames=layout)
            elif forked > 1:
                x, outputs = fork_in_block(block, x, temb, attention, forked, layout)
                temb, forked = repeat_rows(temb, forked), 1
            else:
                x, outputs = block(hidden_states=x, temb=temb, num_frames=layout, **attention)
            skips += outputs
        if down_residuals is not None:
            skips = add_residuals(skips, down_residuals)

        x, temb = repeat_rows(x, forked), repeat_rows(temb, forked)  # no block on the way down has attention
        x = self.mid_block(x, temb, **attention)
        if mid_residual is not None:
            x = x + _as_many_rows(fold(mid_residual), x)

        for block in self.up_blocks:
            own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            # Sizes that do not halve evenly: the next skip connection says how large to grow.
            size = skips[-1].shape[2:] if skips else None
            extra = attention if hasattr(block, "attentions") else {}
            own = [_as_many_rows(skip, x) for skip in own]
            x = block(x, res_hidden_states_tuple=tuple(own), temb=temb, num_frames=layout, upsample_size=size, **extra)

        batch = len(temb)
        return unfold(self.conv_out(silu_over(norm_clips(self.conv_norm_out, x, batch))), batch)

    def _embed_time(self, timestep: Tensor | float, sample: Tensor, layout: FrameLayout) -> Tensor:
        """[B, 1, T] when all frames share a timestep, else [B, F, T]."""
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1, 1)
        timesteps = timesteps.expand(len(sample), -1)
        if layout.reference and self.config.reference_timestep == "zero":
            zero = torch.zeros_like(timesteps)
            timesteps = torch.cat([zero, timesteps.expand(-1, layout.driving)], dim=1)
        embedded = self.time_proj(timesteps.flatten()).to(sample.dtype)
        return self.time_embedding(embedded).unflatten(0, timesteps.shape)

    def _check(self, sample: Tensor, encoder_hidden_states: Tensor, layout: FrameLayout) -> int:
        """Shapes that fit; how many texts every clip is predicted under."""
        if sample.ndim != 5 or sample.shape[1] != self.config.in_channels:
            raise ValueError(
                f"sample has shape {list(sample.shape)}, wanted [B, {self.config.in_channels}, frames, height, width]"
            )
        if layout.driving > self.config.motion_max_seq_length:
            raise ValueError(
                f"{layout.driving} driving frames in one window, at most {self.config.motion_max_seq_length} fit the"
                " motion modules"
            )
        tokens = self.config.num_text_tokens + self.num_image_tokens
        halves = max(1, len(encoder_hidden_states) // len(sample))
        wanted = (halves * len(sample), tokens, self.config.cross_attention_dim)
        if tuple(encoder_hidden_states.shape) != wanted:
            raise ValueError(
                f"encoder_hidden_states has shape {list(encoder_hidden_states.shape)}, wanted {list(wanted)}:"
                f" {self.config.num_text_tokens} text tokens then {self.num_image_tokens} image tokens for each clip"
            )
        return halves


def _as_many_rows(x: Tensor, other: Tensor) -> Tensor:
    """The rows of `x`, repeated where `other` has been forked and `x` has not."""
    return repeat_rows(x, max(1, len(other) // len(x)))


def fold(clips: Tensor) -> Tensor:
    """[B, C, F, h, w] -> [B*F, C, h, w]."""
    return clips.transpose(1, 2).flatten(0, 1)


def unfold(frames: Tensor, batch: int) -> Tensor:
    """[B*F, C, h, w] -> [B, C, F, h, w]."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def add_residuals(skips: Sequence[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    """Add [B, C, F, h, w] residuals to [k*B*F, C, h, w] skip connections, one to one.

    A skip connection from before the halves part may have fewer rows than its residual.
    """
    if len(residuals) != len(skips):
        raise ValueError(f"{len(residuals)} ControlNet residuals for {len(skips)} skip connections")
    folded = [fold(residual) for residual in residuals]
    return [_as_many_rows(skip, r) + _as_many_rows(r, skip) for skip, r in zip(skips, folded, strict=True)]
