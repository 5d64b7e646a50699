"""Self-attention on fewer tokens: alike ones are averaged before it and share its result (ToMe, arXiv 2303.17604).

Only the level with the most tokens merges: attention's cost grows with the square of their number. Of every 2x2 pixels
of a frame the first keeps its token; of the others, those most like one of these are merged into it. Every frame keeps
equally many, so adapters, which wrap the same processor, need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from xdyna.attention import FrameLayout, ReferenceCache, spatial_sites
from xdyna.unet import XDynaUNet

#: Frames whose tokens are compared at once.
FRAMES = 4


def merging_sites(unet: XDynaUNet) -> tuple[dict[str, Attention], int]:
    """Self-attentions with the most tokens, and how often their level was halved."""
    levels = [hasattr(block, "attentions") for block in unet.down_blocks]
    if True not in levels:
        return {}, 0
    level = levels.index(True)
    blocks = (f"down_blocks.{level}.", f"up_blocks.{len(levels) - 1 - level}.")
    return {name: attn for name, attn in spatial_sites(unet, "attn1").items() if name.startswith(blocks)}, level


@contextmanager
def merged_tokens(unet: XDynaUNet, share: float, size_hw: tuple[int, int]) -> Iterator[None]:
    """Merge tokens for the length of a `with` block.

    Args:
        unet: with its adapters attached.
        share: of the tokens that are merged into others, 0 (none) to 0.75.
        size_hw: (height, width) of the latents.
    """
    sites, level = merging_sites(unet) if share > 0 else ({}, 0)
    grid_hw = size_hw
    for _ in range(level):
        grid_hw = (grid_hw[0] + 1) // 2, (grid_hw[1] + 1) // 2
    before = {attn: attn.processor for attn in sites.values()}
    for attn, processor in before.items():
        attn.processor = MergingProcessor(processor, share, grid_hw)
    try:
        yield
    finally:
        for attn, processor in before.items():
            attn.processor = processor


class MergingProcessor:
    """Another processor on merged tokens.

    Args:
        inner: the processor.
        share: of the tokens that are merged into others.
        grid_hw: (height, width) that the tokens fill, row by row.
    """

    def __init__(self, inner: Any, share: float, grid_hw: tuple[int, int]) -> None:
        self.inner, self.share, self.grid_hw = inner, share, grid_hw
        self.reads_reference = getattr(inner, "reads_reference", False)
        self.scale = getattr(inner, "scale", 1.0)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        frames: FrameLayout | None = None,
        reference_cache: ReferenceCache | None = None,
        record: ReferenceCache | None = None,
    ) -> Tensor:
        """[B*F, N, C] -> [B*F, N, C]."""
        merge, unmerge = match(hidden_states, self.share, self.grid_hw)
        keywords = {"frames": frames, "reference_cache": reference_cache, "record": record}
        return unmerge(self.inner(attn, merge(hidden_states), **keywords))


def match(
    tokens: Tensor, share: float, grid_hw: tuple[int, int]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Find what to merge in each row, and return what does it, [B, N, C] -> [B, M, C], and what undoes it.

    Raises:
        ValueError: tokens that do not fill the grid.
    """
    (height, width), (batch, count, _) = grid_hw, tokens.shape
    if height * width != count:
        raise ValueError(f"{count} tokens, wanted {height} x {width}")
    # On the CPU: how many there are must be known without waiting for a GPU.
    corner = torch.zeros(height, width, dtype=torch.bool)
    corner[::2, ::2] = True
    target, source = (torch.arange(count)[mask.flatten()].to(tokens.device) for mask in (corner, ~corner))
    num_merged = min(int(share * count), len(source))
    best, nearest = _nearest(tokens[:, source], tokens[:, target])
    order = best.argsort(dim=1, descending=True, stable=True)
    merged, own = order[:, :num_merged], order[:, num_merged:].sort(dim=1).values  # [B, ..], of the sources
    into = nearest.gather(1, merged)

    def pick(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))

    def merge(x: Tensor) -> Tensor:
        others = x[:, source]
        spread = into[..., None].expand(-1, -1, x.shape[-1])
        means = x[:, target].scatter_reduce(1, spread, pick(others, merged), "mean", include_self=True)
        return torch.cat([pick(others, own), means], dim=1)

    def unmerge(x: Tensor) -> Tensor:
        alone, means = x[:, : own.shape[1]], x[:, own.shape[1] :]
        others = x.new_empty(batch, len(source), x.shape[-1])
        others.scatter_(1, own[..., None].expand_as(alone), alone)
        others.scatter_(1, merged[..., None].expand(-1, -1, x.shape[-1]), pick(means, into))
        whole = x.new_empty(batch, count, x.shape[-1])
        whole[:, target], whole[:, source] = means, others
        return whole

    return merge, unmerge


def _nearest(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine similarity [B, S] of each source to the target most like it, and that target's number."""
    parts = [
        (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(1, 2)).max(dim=2)
        for a, b in zip(torch.split(source, FRAMES), torch.split(target, FRAMES), strict=True)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
