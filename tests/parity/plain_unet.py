"""The official UNet restated as formulas over a dictionary of its weights: slow, short, and sharing no code with ours.

It reads official names. B clips, F frames of which frame 0 is the reference, N = h*w tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class PlainUNet:
    """Weights, and the numbers that they do not show.

    Attributes:
        weights: official names.
        heads: of the spatial attention.
        groups: of every norm outside the motion modules.
        motion_heads: of the temporal attention.
        motion_groups: of the motion modules' norm.
        num_text_tokens: text tokens, before the image tokens.
    """

    weights: dict[str, Tensor]
    heads: int = 8
    groups: int = 32
    motion_heads: int = 8
    motion_groups: int = 32
    num_text_tokens: int = 77

    def __call__(self, sample: Tensor, timestep: int, context: Tensor, residuals: list[Tensor] | None = None) -> Tensor:
        """[B, 4, F, h, w], [B, T + n, D], residuals of all skips and of the middle (last) -> [B, 4, F, h, w]."""
        time = self.time_embedding(timestep).expand(len(sample), -1)
        x = self.conv("conv_in", sample)
        skips = [x]
        for level in range(self.count("down_blocks")):
            block = f"down_blocks.{level}"
            for i in range(self.count(f"{block}.resnets")):
                x = self.layer(block, i, x, time, context)
                skips.append(x)
            if self.has(f"{block}.downsamplers.0.conv.weight"):
                x = self.conv(f"{block}.downsamplers.0.conv", x, stride=2)
                skips.append(x)
        x = self.resnet("mid_block.resnets.0", x, time)
        x = self.transformer("mid_block.attentions.0", x, context)
        x = self.resnet("mid_block.resnets.1", x, time)
        if residuals is not None:
            assert len(residuals) == len(skips) + 1
            skips = [skip + residual for skip, residual in zip(skips, residuals[:-1], strict=True)]
            x = x + residuals[-1]
        for level in range(self.count("up_blocks")):
            block = f"up_blocks.{level}"
            for i in range(self.count(f"{block}.resnets")):
                x = self.layer(block, i, torch.cat([x, skips.pop()], dim=1), time, context)
            if self.has(f"{block}.upsamplers.0.conv.weight"):
                frames = F.interpolate(fold(x), size=skips[-1].shape[-2:], mode="nearest")
                x = self.conv(f"{block}.upsamplers.0.conv", unfold(frames, len(x)))
        return self.conv("conv_out", F.silu(self.pooled_norm("conv_norm_out", x)))

    def layer(self, block: str, i: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """ResNet, spatial transformer where there is one, motion module."""
        x = self.resnet(f"{block}.resnets.{i}", x, time)
        if self.has(f"{block}.attentions.{i}.norm.weight"):
            x = self.transformer(f"{block}.attentions.{i}", x, context)
        return self.motion(f"{block}.motion_modules.{i}.temporal_transformer", x)

    def time_embedding(self, timestep: int) -> Tensor:
        half = self.weights["time_embedding.linear_1.weight"].shape[1] // 2
        angles = timestep * torch.exp(-math.log(10000) * torch.arange(half) / half)
        waves = torch.cat([angles.cos(), angles.sin()])[None]
        return self.linear("time_embedding.linear_2", F.silu(self.linear("time_embedding.linear_1", waves)))

    def resnet(self, name: str, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", F.silu(self.pooled_norm(f"{name}.norm1", x)))
        h = h + self.linear(f"{name}.time_emb_proj", F.silu(time))[:, :, None, None, None]
        h = self.conv(f"{name}.conv2", F.silu(self.pooled_norm(f"{name}.norm2", h)))
        if self.has(f"{name}.conv_shortcut.weight"):
            x = self.conv(f"{name}.conv_shortcut", x)
        return x + h

    def transformer(self, name: str, x: Tensor, context: Tensor) -> Tensor:
        """Per-frame norm, self-attention with the read of frame 0, text and image cross-attention, GEGLU."""
        batch, _, num_frames, height, width = x.shape
        h = self.frame_norm(f"{name}.norm", fold(x), self.groups)
        h = F.conv2d(h, self.weights[f"{name}.proj_in.weight"], self.weights[f"{name}.proj_in.bias"])
        h = h.flatten(2).transpose(1, 2)
        block = f"{name}.transformer_blocks.0"

        own = f"{block}.attn1"
        normed = self.layer_norm(f"{block}.norm1", h)
        key, value = self.linear(f"{own}.to_k", normed), self.linear(f"{own}.to_v", normed)
        first = [row * num_frames for row in range(batch) for _ in range(num_frames)]  # frame 0 of each frame's clip
        mixed = attention(self.linear(f"{own}.to_q", normed), key, value, self.heads)
        read = attention(self.linear(f"{own}.to_q_ff", normed), key[first], value[first], self.heads)
        h = h + self.linear(f"{own}.to_out.0", mixed) + self.linear(f"{own}.to_out_ff", read)

        cross = f"{block}.attn2"
        query = self.linear(f"{cross}.to_q", self.layer_norm(f"{block}.norm2", h))
        context = context.repeat_interleave(num_frames, dim=0)
        total = torch.zeros_like(query)
        for tokens, suffix in (
            (context[:, : self.num_text_tokens], ""),
            (context[:, self.num_text_tokens :], "_ip"),
        ):
            key, value = self.linear(f"{cross}.to_k{suffix}", tokens), self.linear(f"{cross}.to_v{suffix}", tokens)
            total = total + attention(query, key, value, self.heads)
        h = h + self.linear(f"{cross}.to_out.0", total)

        h = h + self.feed_forward(f"{block}.ff", self.layer_norm(f"{block}.norm3", h))
        h = h.transpose(1, 2).unflatten(2, (height, width))
        h = F.conv2d(h, self.weights[f"{name}.proj_out.weight"], self.weights[f"{name}.proj_out.bias"])
        return x + unfold(h, batch)

    def motion(self, name: str, x: Tensor) -> Tensor:
        """Temporal attention along every pixel of the driving frames; the reference frame passes by."""
        batch, _, _, height, width = x.shape
        driving = x[:, :, 1:]
        num_frames = driving.shape[2]
        h = unfold(self.frame_norm(f"{name}.norm", fold(driving), self.motion_groups), batch)
        h = h.permute(0, 3, 4, 2, 1).flatten(0, 2)  # [B*h*w, F, C]
        h = self.linear(f"{name}.proj_in", h)
        block = f"{name}.transformer_blocks.0"
        for i in (0, 1):
            attn = f"{block}.attention_blocks.{i}"
            normed = self.layer_norm(f"{block}.norms.{i}", h) + position(num_frames, h.shape[-1])
            query, key, value = (self.linear(f"{attn}.to_{word}", normed) for word in "qkv")
            h = h + self.linear(f"{attn}.to_out.0", attention(query, key, value, self.motion_heads))
        h = h + self.feed_forward(f"{block}.ff", self.layer_norm(f"{block}.ff_norm", h))
        h = self.linear(f"{name}.proj_out", h)
        h = h.unflatten(0, (batch, height, width)).permute(0, 4, 3, 1, 2)
        return torch.cat([x[:, :, :1], driving + h], dim=2)

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        value, gate = self.linear(f"{name}.net.0.proj", x).chunk(2, dim=-1)
        return self.linear(f"{name}.net.2", value * 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))))

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if self.has(f"{name}.bias") else out

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        frames = F.conv2d(fold(x), weight, self.weights[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)
        return unfold(frames, len(x))

    def pooled_norm(self, name: str, x: Tensor) -> Tensor:
        """Statistics over a group's channels, all frames and pixels of a clip."""
        groups = x.unflatten(1, (self.groups, -1))
        dims = (2, 3, 4, 5)
        mean, var = groups.mean(dims, keepdim=True), groups.var(dims, correction=0, keepdim=True)
        normed = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return normed * weight[:, None, None, None] + bias[:, None, None, None]

    def frame_norm(self, name: str, frames: Tensor, groups: int) -> Tensor:
        """Statistics over a group's channels and the pixels of one frame; [B*F, C, h, w]."""
        x = frames.unflatten(1, (groups, -1))
        dims = (2, 3, 4)
        mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
        normed = ((x - mean) / (var + 1e-6).sqrt()).flatten(1, 2)
        return normed * self.weights[f"{name}.weight"][:, None, None] + self.weights[f"{name}.bias"][:, None, None]

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def has(self, name: str) -> bool:
        return name in self.weights

    def count(self, prefix: str) -> int:
        numbers = {key[len(prefix) + 1 :].split(".")[0] for key in self.weights if key.startswith(f"{prefix}.")}
        return len(numbers)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, head by head; [B, N, C]."""
    out = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out, dim=-1)


def position(length: int, channels: int) -> Tensor:
    """[length, channels]: sine in even channels, cosine in odd ones, the frequency falling from 1 to 1/10000."""
    angle = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, channels, 2) / channels)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def fold(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def unfold(frames: Tensor, batch: int) -> Tensor:
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)
