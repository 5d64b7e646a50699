"""Image tokens in the cross-attention (IP-Adapter-Plus): what the reference looks like as a whole.

A Resampler turns the image encoder's penultimate hidden states into n tokens; each cross-attention reads them with a
key and a value projection of its own, and the two reads are added before the output projection.
"""

from __future__ import annotations

from typing import Any

from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor, nn

from xdyna.adapters.host import SiteAdapter, site_key
from xdyna.attention import FrameLayout, ReferenceCache, attend, project_out, spatial_sites
from xdyna.unet import XDynaUNet

#: Shape of the Resampler in `ip-adapter-plus_sd15.bin` (CLIP ViT-H in, 16 tokens out).
SD15_RESAMPLER = {
    "embed_dims": 1280, "output_dims": 768, "hidden_dims": 768, "depth": 4,
    "dim_head": 64, "heads": 12, "num_queries": 16, "ffn_ratio": 4,
}  # fmt: skip


class ImagePromptAttnProcessor:
    """Cross-attention to text tokens and, with keys and values of their own, to the n image tokens behind them.

    Args:
        num_image_tokens: n.
        scale: strength of the image tokens.
    """

    def __init__(self, num_image_tokens: int, scale: float = 1.0) -> None:
        self.num_image_tokens = num_image_tokens
        self.scale = scale

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
        """[B*F, N, C] with context [B, T + n, D] -> [B*F, N, C]."""
        if encoder_hidden_states is None:
            raise ValueError("image tokens belong to a cross-attention, got a call without context")
        text = encoder_hidden_states[:, : -self.num_image_tokens]
        image = encoder_hidden_states[:, -self.num_image_tokens :]
        query = attn.to_q(hidden_states)
        out = attend(query, attn.to_k(text), attn.to_v(text), attn.heads, attention_mask)
        if self.scale != 0:
            out = out + self.scale * attend(query, attn.to_k_image(image), attn.to_v_image(image), attn.heads)
        return project_out(attn, out)


class ImagePromptAdapter(SiteAdapter, ConfigMixin):
    """The Resampler and `to_k_image`, `to_v_image` for every spatial cross-attention (IP-Adapter-Plus).

    Args:
        sites: (width of the attention, width of the tokens) of each cross-attention by dotted name.
        resampler_config: keyword arguments of `IPAdapterPlusImageProjection`.
    """

    kind = "attn2"

    @register_to_config
    def __init__(self, sites: dict[str, tuple[int, int]], resampler_config: dict[str, Any]) -> None:
        super().__init__()
        self.resampler = IPAdapterPlusImageProjection(**resampler_config)
        self.layers = nn.ModuleDict()
        for site, (channels, token_dim) in sites.items():
            self.layers[site_key(site)] = nn.ModuleDict(
                {name: nn.Linear(token_dim, channels, bias=False) for name in ("to_k_image", "to_v_image")}
            )

    @classmethod
    def from_unet(cls, unet: XDynaUNet, resampler: dict[str, Any] | None = None) -> ImagePromptAdapter:
        """A new, untrained adapter for `unet`."""
        sites = spatial_sites(unet, cls.kind)
        return cls(
            sites={site: (attn.to_k.out_features, attn.to_k.in_features) for site, attn in sites.items()},
            resampler_config={**SD15_RESAMPLER, "output_dims": unet.config.cross_attention_dim, **(resampler or {})},
        ).to(unet.device)

    @property
    def num_image_tokens(self) -> int:
        """n, tokens per image."""
        return int(self.resampler.latents.shape[1])

    def encode(self, image_embeds: Tensor) -> Tensor:
        """Penultimate hidden states [B, S, E] of the image encoder -> image tokens [B, n, D]."""
        return self.resampler(image_embeds)

    forward = encode

    def make_processor(self, site: str) -> ImagePromptAttnProcessor:
        return ImagePromptAttnProcessor(self.num_image_tokens)

    def _check_width(self, site: str, attn: Attention, layer: nn.Linear) -> None:
        got, wanted = (layer.in_features, layer.out_features), (attn.to_k.in_features, attn.to_k.out_features)
        if got != wanted:
            raise ValueError(
                f"{site}: the image prompt projects {got[0]} to {got[1]}, the UNet {wanted[0]} to {wanted[1]}"
            )
