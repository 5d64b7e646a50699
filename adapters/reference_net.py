"""A reference network: a trained copy of the UNet's spatial half that looks at the reference in the frames' stead.

The baseline that the Dynamics-Adapter is measured against (as in Animate Anyone, arXiv 2311.17117, and MagicAnimate,
arXiv 2311.16498): where that adapter adds two layers to each self-attention, here a second network as large as the
first gives each of them further keys and values.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers import ConfigMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_motion_model import UNetMotionOutput
from torch import Tensor, nn

from xdyna.adapters.host import SiteAdapter, site_key
from xdyna.attention import FrameAttnProcessor, FrameLayout, ReferenceCache, attend, project_out, spatial_sites
from xdyna.fork import repeat_rows
from xdyna.unet import XDynaUNet

#: What the network takes over from its host's config under the same name.
_SHARED = ("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
           "cross_attention_dim")  # fmt: skip


class JoinedAttnProcessor:
    """Spatial self-attention over a frame's own tokens and the reference network's, in one softmax.

    Args:
        site: dotted name of the attention, the key of its entry in a reference cache.
        scale: factor on the softmax weight of the reference's tokens.
    """

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
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if self.scale == 0:
            return project_out(attn, attend(query, key, value, attn.heads, attention_mask))
        if self.scale < 0:
            raise ValueError(f"{self.site}: scale is {self.scale}, wanted 0 or more: it is a factor on a weight")
        if frames is None or reference_cache is None:
            raise ValueError(f"{self.site}: a reference network works within a call of the UNet it is attached to")
        mask = None
        if self.scale != 1:  # exp(x + log s) = s exp(x)
            mask = query.new_zeros(1, 2 * key.shape[1])
            mask[:, key.shape[1] :] = math.log(self.scale)
        more = [x.to(key).repeat_interleave(frames.total, dim=0) for x in reference_cache[self.site]]
        key, value = torch.cat([key, more[0]], dim=1), torch.cat([value, more[1]], dim=1)
        return project_out(attn, attend(query, key, value, attn.heads, mask))


class RecordingAttnProcessor:
    """Self-attention of the reference network; leaves its keys and values in `record`.

    Args:
        site: the key under which it leaves them.
        last: nothing of the network behind this site is read: only keys and values are computed.
    """

    def __init__(self, site: str, last: bool) -> None:
        self.site = site
        self.last = last

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        record: ReferenceCache | None = None,
    ) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if record is not None:
            record[self.site] = (key, value)
        if self.last:
            return hidden_states
        return project_out(attn, attend(attn.to_q(hidden_states), key, value, attn.heads, attention_mask))


class ReferenceNet(SiteAdapter, ConfigMixin):
    """The whole spatial UNet once more, trained; its keys and values join the host's in every self-attention.

    Attached, it takes the reference frame out of the clips that the host is called with, looks at it at timestep 0
    and hands keys and values on; the host itself then sees driving frames only. Who calls the host notices nothing, so
    it works wherever a Dynamics-Adapter does, the pipeline included. Unlike that one it changes the output from the
    start: the keys of an untrained copy compete with the frame's own.

    Args:
        net_config: keyword arguments of `UNet2DConditionModel`.
    """

    kind = "attn1"
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, net_config: dict[str, Any]) -> None:
        super().__init__()
        self.net = UNet2DConditionModel(**net_config)
        self.num_text_tokens = 0
        self._hooks: list[Any] = []
        sites = spatial_sites(self.net, self.kind)
        last = [site for site in sites if site.startswith("up_blocks.")][-1]  # diffusers registers the middle after it
        for site, attn in sites.items():
            attn.set_processor(RecordingAttnProcessor(site, last=site == last))
        for attn in spatial_sites(self.net, "attn2").values():
            attn.set_processor(FrameAttnProcessor())
        _drop_unread(self.net, last)
        self.layers = nn.ModuleDict({site_key(site): nn.ModuleDict() for site in sites})

    @classmethod
    def from_unet(cls, unet: XDynaUNet) -> ReferenceNet:
        """A copy of the spatial layers of `unet`, not yet trained."""
        config = unet.config
        types = ("down_block_types", "up_block_types")
        shape = {name: config[name] for name in _SHARED}
        shape |= {name: tuple(kind.replace("Motion", "2D") for kind in config[name]) for name in types}
        shape["attention_head_dim"] = config.num_attention_heads  # diffusers' historical name for the number of heads
        net = cls(net_config=shape)
        net.net.load_state_dict({key: unet.get_parameter(key) for key in net.net.state_dict()})
        return net.to(unet.device)

    def forward(self, reference: Tensor, encoder_hidden_states: Tensor) -> ReferenceCache:
        """Keys and values [B, N, C] of each self-attention for clean latents [B, C, h, w] and text [B, T, D]."""
        record: ReferenceCache = {}
        self.net(
            reference.to(self.net.dtype),
            torch.zeros(len(reference), dtype=torch.long, device=reference.device),
            encoder_hidden_states.to(self.net.dtype),
            cross_attention_kwargs={"record": record},
        )
        return record

    def attach(self, unet: XDynaUNet) -> Self:
        """Put the network in front of `unet`; see `SiteAdapter.attach`."""
        super().attach(unet)
        self.num_text_tokens = unet.config.num_text_tokens
        self._hooks = [
            unet.register_forward_pre_hook(self._take_reference, with_kwargs=True),
            unet.register_forward_hook(self._put_back_a_frame),
        ]
        return self

    def detach(self) -> None:
        super().detach()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def make_processor(self, site: str) -> JoinedAttnProcessor:
        return JoinedAttnProcessor(site)

    def _check_sites(self, sites: Mapping[str, Attention]) -> None:
        super()._check_sites(sites)
        own = spatial_sites(self.net, self.kind)
        for site, attn in sites.items():
            if not isinstance(attn.processor, FrameAttnProcessor):
                raise ValueError(f"{site} has a {type(attn.processor).__name__}: another adapter is attached")
            got, wanted = own[site].to_k.out_features, attn.to_k.out_features
            if got != wanted:
                raise ValueError(f"{site}: the reference network is {got} wide, the UNet {wanted}")

    def _take_reference(self, unet: XDynaUNet, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Turn a call with the reference in frame 0 into one with driving frames and a reference cache."""
        call = inspect.signature(XDynaUNet.forward).bind(unet, *args, **kwargs).arguments
        del call["self"]
        if self.scale == 0 or call.get("reference_cache") is not None:
            return (), call
        text = call["encoder_hidden_states"][:, : self.num_text_tokens]  # image tokens, if any, are the host's alone
        # Unlike the host's own self-attention, this network's keys know the text: halves of guidance part at once.
        sample = repeat_rows(call["sample"], max(1, len(text) // len(call["sample"])))
        call["reference_cache"] = self(sample[:, :, 0], text)
        call["sample"] = sample[:, :, 1:]
        if (down := call.get("down_block_additional_residuals")) is not None:
            call["down_block_additional_residuals"] = [residual[:, :, 1:] for residual in down]
        if (mid := call.get("mid_block_additional_residual")) is not None:
            call["mid_block_additional_residual"] = mid[:, :, 1:]
        return (), call

    def _put_back_a_frame(self, unet: XDynaUNet, args: tuple[Any, ...], out: Any) -> Any:
        """Prepend a frame of zeros, which stands where the host's output for the reference is otherwise."""
        if self.scale == 0:
            return out
        sample = out[0]
        sample = torch.cat([torch.zeros_like(sample[:, :, :1]), sample], dim=2)
        return UNetMotionOutput(sample=sample) if isinstance(out, UNetMotionOutput) else (sample,)


def _drop_unread(net: UNet2DConditionModel, last: str) -> None:
    """Take out what lies behind the last self-attention's keys and values: nothing reads it, so nothing trains it."""
    index = max(i for i, block in enumerate(net.up_blocks) if hasattr(block, "attentions"))
    net.up_blocks = net.up_blocks[: index + 1]
    net.up_blocks[index].upsamplers = None
    net.up_blocks[index].attentions[-1].proj_out = nn.Identity()
    block = net.get_submodule(last.removesuffix(".attn1"))
    block.attn1.to_q, block.attn1.to_out = nn.Identity(), nn.ModuleList()
    block.attn2, block.norm2 = None, None
    block.norm3, block.ff = nn.Identity(), nn.Identity()
    net.conv_norm_out, net.conv_out = None, nn.Identity()
