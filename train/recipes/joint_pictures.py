"""How the joint regressor's training pictures are spoiled, so that it reads generated frames as well as clean ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from xdyna.metrics.joints import MIRRORED

_KERNEL_PX = 9


def moved(pictures: Tensor, points: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the pictures; enlarge, turn and shift all of them a little. Edge pixels fill what is missing.

    Args:
        pictures: float [N, 3, H, W].
        points: joints (x, y) [N, 18, 2], pixels.
        source: of the random numbers.

    Returns:
        Both, moved.
    """
    count, _, height, width = pictures.shape
    scale = 0.85 + 0.35 * torch.rand(count, generator=source)
    angle = 0.3 * (torch.rand(count, generator=source) - 0.5)
    mirror = torch.where(torch.rand(count, generator=source) < 0.5, -1.0, 1.0)
    shift = 0.16 * (torch.rand(count, 2, generator=source) - 0.5)  # of the width
    turn = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], -1).unflatten(
        1, (2, 2)
    )
    forth = scale[:, None, None] * turn  # [N, 2, 2], mirrored pixels to new ones, both from the middle
    middle = torch.tensor([width / 2, height / 2])
    mirrored = torch.stack([mirror, torch.ones(count)], -1)  # [N, 2]
    flipped = torch.where(mirror[:, None, None] < 0, points[:, list(MIRRORED)], points)
    new = torch.einsum("nij,nkj->nki", forth, (flipped - middle) * mirrored[:, None]) + middle + shift[:, None] * width
    # grid_sample wants, for every new pixel, the old place in -1..1.
    back = mirrored[:, :, None] * torch.linalg.inv(forth)
    half = torch.tensor([width / 2, height / 2])
    linear = back * half[None, None, :] / half[None, :, None]
    offset = -torch.einsum("nij,nj->ni", back, shift * width) / half
    grid = F.affine_grid(torch.cat([linear, offset[..., None]], -1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False), new


def recoloured(pictures: Tensor, source: torch.Generator) -> Tensor:
    """Change each channel's contrast and brightness a little."""
    shape = (len(pictures), 3, 1, 1)
    gain = 0.8 + 0.4 * torch.rand(shape, generator=source)
    return pictures * gain + 0.2 * (torch.rand(shape, generator=source) - 0.5)


def blurred(pictures: Tensor, source: torch.Generator) -> Tensor:
    """Blur half of the pictures, each by its own Gaussian of up to 1.6 pixels."""
    count = len(pictures)
    sigma = (0.3 + 1.3 * torch.rand(count, generator=source))[:, None]
    place = (torch.arange(_KERNEL_PX) - _KERNEL_PX // 2)[None]
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # [3N, k]
    flat, groups = pictures.reshape(1, -1, *pictures.shape[2:]), 3 * count
    padded = F.pad(flat, (_KERNEL_PX // 2,) * 4, mode="replicate")
    soft = F.conv2d(F.conv2d(padded, kernel[:, None, None], groups=groups), kernel[:, None, :, None], groups=groups)
    chosen = torch.rand(count, 1, 1, 1, generator=source) < 0.5
    return torch.where(chosen, soft.reshape(pictures.shape), pictures)


def noisy(pictures: Tensor, source: torch.Generator) -> Tensor:
    """Add noise of up to 0.15 (of -1..1) to half of the pictures, then clip all to -1..1."""
    count = len(pictures)
    strength = (
        0.15 * torch.rand(count, 1, 1, 1, generator=source) * (torch.rand(count, 1, 1, 1, generator=source) < 0.5)
    )
    return (pictures + strength * torch.randn(pictures.shape, generator=source)).clamp(-1, 1)


@torch.no_grad()
def through_vae(pictures: Tensor, vae: AutoencoderKL, share: float, source: torch.Generator) -> Tensor:
    """Send a share of the pictures through an autoencoder, with noise of up to 0.4 standard deviations
    on the latents."""
    chosen = torch.randperm(len(pictures), generator=source)[: round(share * len(pictures))]
    if not len(chosen):
        return pictures
    latents = vae.encode(pictures[chosen]).latent_dist.mode()
    strength = 0.4 * torch.rand(len(chosen), 1, 1, 1, generator=source) * latents.std()
    latents = latents + strength * torch.randn(latents.shape, generator=source)
    out = pictures.clone()
    out[chosen] = vae.decode(latents).sample.clamp(-1, 1)
    return out
