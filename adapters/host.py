"""Putting adapter layers and processors on a host's attention sites, and taking them off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, cast

from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from torch import nn

from xdyna.attention import spatial_sites
from xdyna.unet import XDynaUNet


class SiteAdapter(ModelMixin):
    """An adapter with a few layers for each attention site of a UNet, and one strength for all of them.

    Attached, its layers are children of the host's `Attention` (so that the host's `.to()`, peft and data-parallel
    wrappers see them) and the site's processor is exchanged. Detached, the host is bit for bit what it was. The
    weights belong to the adapter either way: the host is saved without them.

    Subclasses set `kind` and `layers` (a `ModuleDict` of `ModuleDict`, by site) and make the processors.
    """

    #: ``attn1`` (self-attention) or ``attn2`` (cross-attention).
    kind: str
    layers: nn.ModuleDict

    def __init__(self) -> None:
        super().__init__()
        self._scale = 1.0
        # Kept out of the module tree: the host is not a part of the adapter.
        self._attached: list[tuple[Attention, object]] = []

    def make_processor(self, site: str) -> Any:
        """The attention processor for one site; it has a `scale` attribute."""
        raise NotImplementedError

    @property
    def scale(self) -> float:
        """Strength; 0 leaves the host's output unchanged bit for bit."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = float(value)
        for attn, _ in self._attached:
            attn.processor.scale = self._scale

    @property
    def is_attached(self) -> bool:
        return bool(self._attached)

    def is_on(self, unet: XDynaUNet) -> bool:
        """Whether this very adapter is attached to `unet`."""
        sites = spatial_sites(unet, self.kind).values()
        return any(attn is self._attached[0][0] for attn in sites) if self._attached else False

    def attach(self, unet: XDynaUNet) -> Self:
        """Put the adapter on every site of `unet`.

        Raises:
            ValueError: already attached, another adapter is on a site, or sites and widths differ from the host's.
        """
        if self.is_attached:
            raise ValueError(f"{type(self).__name__} is already attached; detach it first")
        if not isinstance(unet, XDynaUNet):
            raise ValueError(f"{type(self).__name__} attaches to an XDynaUNet, got {type(unet).__name__}")
        sites = spatial_sites(unet, self.kind)
        self._check_sites(sites)
        for site, attn in sites.items():
            before = attn.processor
            for name, layer in self.site_layers(site).items():
                attn.add_module(name, layer)
            processor = self.make_processor(site)
            processor.scale = self._scale
            attn.set_processor(processor)
            self._attached.append((attn, before))
        return self

    def detach(self) -> None:
        """Take the adapter off; the host is as it was before `attach`. Does nothing when not attached."""
        for attn, before in self._attached:
            attn.set_processor(before)
            for name in self.layer_names:
                delattr(attn, name)
        self._attached = []

    @contextmanager
    def attached(self, unet: XDynaUNet) -> Iterator[Self]:
        """`attach` for the length of a `with` block."""
        self.attach(unet)
        try:
            yield self
        finally:
            self.detach()

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers on one site."""
        return list(cast(nn.ModuleDict, next(iter(self.layers.values()))))

    def site_layers(self, site: str) -> nn.ModuleDict:
        """The layers for one site, by name."""
        return cast(nn.ModuleDict, self.layers[site_key(site)])

    def _check_sites(self, sites: Mapping[str, Attention]) -> None:
        wanted = set(self.layers)
        got = {site_key(site) for site in sites}
        if wanted != got:
            odd = sorted(wanted ^ got)
            raise ValueError(
                f"{type(self).__name__} is for {len(wanted)} sites, the UNet has {len(got)}; first that differs:"
                f" {odd[0].replace('-', '.')}"
            )
        for site, attn in sites.items():
            for name, layer in self.site_layers(site).items():
                if hasattr(attn, name):
                    raise ValueError(f"{site} already has a {name}: another adapter is attached")
                self._check_width(site, attn, cast(nn.Linear, layer))

    def _check_width(self, site: str, attn: Attention, layer: nn.Linear) -> None:
        """Raise ValueError when a layer does not fit its site."""
        raise NotImplementedError


def site_key(site: str) -> str:
    """A module-dictionary key for a dotted name."""
    return site.replace(".", "-")
