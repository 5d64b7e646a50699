"""One run for both halves of guidance up to the place where they part: the first cross-attention.

The halves differ in their text and image tokens alone. What comes before those are first read (the first convolution,
blocks without attention, a ResNet, the first spatial self-attention, which has the most tokens of all) is the same for
both. Rows of a batch are ordered half by half: ``[unconditional clips, conditional clips]``.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from xdyna.attention import FrameLayout


def repeat_rows(x: Tensor, halves: int) -> Tensor:
    """[N, ..] -> [halves * N, ..], one half after the other; `x` itself where there is nothing to repeat."""
    return x if halves == 1 else x.repeat(halves, *(1 for _ in x.shape[1:]))


def fork_in_block(
    block: Any, x: Tensor, temb: Tensor, attention: dict[str, Any], halves: int, layout: FrameLayout | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a down block with cross-attention whose input is common to all halves.

    Args:
        block: `CrossAttnDownBlockMotion` or `CrossAttnDownBlock2D`, which have no type in common.
        x: [N, C, h, w].
        temb: time embedding, with one row for each of the `N / frames` clips (or N frames) of one half.
        attention: the block's keywords `encoder_hidden_states`, one row for so many neighbours of the `halves * N`
            as share a text, and `cross_attention_kwargs`.
        halves: how often the rows are repeated.
        layout: of the frames, for a block with motion modules.

    Returns:
        Output and skip connections, all with `halves * N` rows.
    """
    skips = []
    for i, (resnet, transformer) in enumerate(zip(block.resnets, block.attentions, strict=True)):
        x = resnet(x, temb)
        if i == 0:
            x = _fork_in_transformer(transformer, x, attention, halves)
            temb = repeat_rows(temb, halves)
        else:
            x = transformer(x, return_dict=False, **attention)[0]
        if layout is not None:
            x = block.motion_modules[i](x, num_frames=layout)
        skips.append(x)
    for downsampler in block.downsamplers or ():
        x = downsampler(x)
        skips.append(x)
    return x, tuple(skips)


def _fork_in_transformer(transformer: Transformer2DModel, x: Tensor, attention: dict[str, Any], halves: int) -> Tensor:
    """[N, C, h, w] -> [halves * N, C, h, w], forked before the first block's cross-attention."""
    first, *others = transformer.transformer_blocks
    tokens, width = transformer._operate_on_continuous_inputs(x)
    tokens = _fork_in_layer(first, tokens, attention, halves)
    for layer in others:
        tokens = layer(tokens, **attention)
    out: Tensor = transformer._get_output_for_continuous_inputs(
        tokens, repeat_rows(x, halves), len(tokens), *x.shape[-2:], inner_dim=width
    )
    return out


def _fork_in_layer(layer: BasicTransformerBlock, tokens: Tensor, attention: dict[str, Any], halves: int) -> Tensor:
    """Self-attention of [N, T, C], then cross-attention and feed-forward of [halves * N, T, C]."""
    keywords = attention.get("cross_attention_kwargs") or {}
    tokens = tokens + layer.attn1(layer.norm1(tokens), **keywords)
    tokens = repeat_rows(tokens, halves)
    context = attention["encoder_hidden_states"]
    tokens = tokens + layer.attn2(layer.norm2(tokens), encoder_hidden_states=context, **keywords)
    forward: Tensor = layer.ff(layer.norm3(tokens))
    return tokens + forward
