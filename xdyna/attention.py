"""Attention over a clip's frames: the layout of a batch, the arithmetic, and where adapters may attach.

This is a leaf module: the UNet and the adapters both build on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

#: Names under which adapters put their own layers on a host's `Attention`; they are never saved with the host.
ADAPTER_LAYERS = ("to_q_ref", "to_out_ref", "to_k_image", "to_v_image")

#: Keys and values [B, N, C] of the reference frame, by the name of the attention site.
ReferenceCache = dict[str, tuple[Tensor, Tensor]]


class Record(ReferenceCache):
    """A `ReferenceCache` that a call fills.

    Offloading hooks hand a call copies of the dictionaries among its arguments, with what they hold on the device. What
    has a method `to` is asked instead, and this one stays what it is.
    """

    def to(self, *_: Any, **__: Any) -> Record:
        return self


class FrameLayout(NamedTuple):
    """How the frames of one clip lie in the batch: the reference first, if it is there, then the driving frames.

    Diffusers' blocks hand `num_frames` to the motion modules untouched; the UNet passes this in its place, so that
    no module has to remember anything between calls.
    """

    reference: int
    driving: int

    @property
    def total(self) -> int:
        return self.reference + self.driving


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] -> [B, heads, N, C / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of [B, N, C] queries on [b, M, C] keys and values -> [B, N, C].

    Where there are fewer rows of keys than of queries, each `B / b` neighbouring rows (the frames of a clip) share one.
    They become the queries of one attention, so that no key is repeated.
    """
    shared = query.reshape(len(key), -1, query.shape[-1])
    out = F.scaled_dot_product_attention(
        split_heads(shared, heads), split_heads(key, heads), split_heads(value, heads), attn_mask=mask
    )
    return out.transpose(1, 2).reshape(query.shape)


class FrameAttnProcessor:
    """Stock attention that knows the keywords the video UNet passes; what a site has when no adapter is on it.

    Unlike the stock one it takes a text once for all frames of a clip.
    """

    # Every keyword must be declared: diffusers drops, with a warning per layer, what a signature lacks.
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
        """[B*F, N, C] -> [B*F, N, C]; attends to `encoder_hidden_states` [B, M, D] when given, else to itself."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        out = attend(attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context), attn.heads, attention_mask)
        return project_out(attn, out)


def use_frame_attention(host: nn.Module) -> None:
    """Put a `FrameAttnProcessor` on every spatial attention of `host`."""
    processor = FrameAttnProcessor()
    for kind in ("attn1", "attn2"):
        for attn in spatial_sites(host, kind).values():
            attn.set_processor(processor)


def project_out(attn: Attention, x: Tensor) -> Tensor:
    """The host's output projection and dropout."""
    return attn.to_out[1](attn.to_out[0](x))


def spatial_sites(host: nn.Module, kind: str) -> dict[str, Attention]:
    """Spatial attention of a UNet by dotted name, in module order; motion modules are left out.

    Args:
        host: the UNet.
        kind: ``attn1`` for self-attention, ``attn2`` for cross-attention.
    """
    return {
        name: module
        for name, module in host.named_modules()
        if isinstance(module, Attention) and name.endswith(f".{kind}") and ".attentions." in name
    }


@contextmanager
def without_adapter_layers(host: nn.Module) -> Iterator[None]:
    """Take attached layers out of the module tree for the duration, e.g. while the host is saved."""
    taken: list[tuple[nn.Module, str, nn.Module]] = []
    for module in host.modules():
        if isinstance(module, Attention):
            taken += [(module, name, module._modules.pop(name)) for name in ADAPTER_LAYERS if name in module._modules]
    try:
        yield
    finally:
        for module, name, layer in taken:
            module.add_module(name, layer)
