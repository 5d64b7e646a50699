"""The Dynamics-Adapter: every frame's spatial self-attention also reads the reference frame.

X-Dyna (arXiv 2501.10021), section 3.2. The reference encoder is the frozen UNet itself: the reference is frame 0 of
the clip, or was run before (`XDynaUNet.encode_reference`); its keys and values come from the host's own projections.
Only a second query and a second output projection train.
"""

from __future__ import annotations

from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from xdyna.adapters.host import SiteAdapter, site_key
from xdyna.attention import FrameLayout, ReferenceCache, attend, project_out, spatial_sites
from xdyna.unet import XDynaUNet


class DynamicsAttnProcessor:
    """Spatial self-attention plus a trained read of the reference frame; keeps nothing between calls.

    B clips, F frames, N = h*w tokens. Frame 0 reads itself, as in the official model.

    Args:
        site: dotted name of the attention, the key of its entry in a reference cache.
        scale: strength of the read.
    """

    reads_reference = True  # also from a cache

    def __init__(self, site: str, scale: float = 1.0) -> None:
        self.site = site
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
        """[B*F, N, C] -> [B*F, N, C]."""
        if frames is None:
            raise ValueError(f"{self.site}: a Dynamics-Adapter needs the frame layout that XDynaUNet passes")
        key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        own = project_out(attn, attend(attn.to_q(hidden_states), key, value, attn.heads, attention_mask))
        if record is not None:
            record[self.site] = (key[:: frames.total], value[:: frames.total])
        if self.scale == 0:
            return own
        if reference_cache is not None:
            key, value = reference_cache[self.site]
        else:
            key, value = key[:: frames.total], value[:: frames.total]
        read = attend(attn.to_q_ref(hidden_states), key, value, attn.heads)  # all frames of a clip share one key
        return own + self.scale * attn.to_out_ref(read)


class DynamicsAdapter(SiteAdapter, ConfigMixin):
    """`to_q_ref` and `to_out_ref` for every spatial self-attention; 24.8 M parameters at SD1.5 size.

    Untrained it changes nothing: the output projection starts at zero.

    Args:
        sites: width of each self-attention by dotted name, e.g.
            `down_blocks.0.attentions.0.transformer_blocks.0.attn1`.
    """

    kind = "attn1"

    @register_to_config
    def __init__(self, sites: dict[str, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for site, channels in sites.items():
            out = nn.Linear(channels, channels)
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
            query = nn.Linear(channels, channels, bias=False)
            self.layers[site_key(site)] = nn.ModuleDict({"to_q_ref": query, "to_out_ref": out})

    @classmethod
    def from_unet(cls, unet: XDynaUNet) -> DynamicsAdapter:
        """A new, untrained adapter for `unet`, its queries copied from the host's as upstream does."""
        sites = spatial_sites(unet, cls.kind)
        adapter = cls(sites={site: attn.to_q.in_features for site, attn in sites.items()})
        for site, attn in sites.items():
            adapter.site_layers(site)["to_q_ref"].weight.data.copy_(attn.to_q.weight.data)
        return adapter.to(unet.device)

    def make_processor(self, site: str) -> DynamicsAttnProcessor:
        return DynamicsAttnProcessor(site)

    def _check_width(self, site: str, attn: Attention, layer: nn.Linear) -> None:
        if layer.in_features != attn.to_q.in_features:
            raise ValueError(f"{site}: the adapter is {layer.in_features} wide, the UNet {attn.to_q.in_features}")
