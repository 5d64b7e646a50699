"""How much is computed at once, from what memory is free."""

from __future__ import annotations

from typing import NamedTuple

import torch

from xdyna.configs.animate import AnimateConfig
from xdyna.pipeline import XDynaPipeline

MOST_WINDOWS, MOST_FRAMES = 8, 8
#: Share of the free memory that a batch may fill.
MEMORY_SHARE = 0.5
#: Feature maps of the finest level that are alive at once for each frame, counted from the layers and rounded up.
UNET_MAPS, VAE_MAPS = 32, 12


class Batches(NamedTuple):
    """What goes through the networks together.

    Attributes:
        windows: windows per call of the UNet.
        frames: frames per call of the VAE.
    """

    windows: int
    frames: int


def plan_batches(config: AnimateConfig, pipe: XDynaPipeline) -> Batches:
    """The batches of a config, with `auto` decided.

    On a CPU and on MPS, auto is 1: larger batches gain nothing there, or the free memory is not known. On CUDA it is
    what fits into half of the memory that is free, at most 8.

    Args:
        config: with the model's defaults filled in.
        pipe: on its device.
    """
    device = pipe.unet.device
    if device.type != "cuda":
        auto = Batches(1, 1)
    else:
        free, _ = torch.cuda.mem_get_info(device)
        window, frame = batch_bytes(config, pipe)
        budget = free * MEMORY_SHARE
        auto = Batches(max(1, min(MOST_WINDOWS, int(budget // window))), max(1, min(MOST_FRAMES, int(budget // frame))))
    windows = auto.windows if config.window_batch == "auto" else config.window_batch
    frames = auto.frames if config.vae_batch == "auto" else config.vae_batch
    return Batches(windows, frames)


def batch_bytes(config: AnimateConfig, pipe: XDynaPipeline) -> tuple[int, int]:
    """Estimated bytes of activations for one window in the UNet, and for one frame in the VAE."""
    sampling = config.sampling()
    pixels = sampling.size_wh[0] * sampling.size_wh[1]
    halves = 2 if sampling.guidance > 1 else 1
    map_bytes = pixels // pipe.vae_scale_factor**2 * pipe.unet.config.block_out_channels[0] * pipe.unet.dtype.itemsize
    frame_bytes = pixels * pipe.vae.config.block_out_channels[0] * pipe.vae.dtype.itemsize
    return halves * (sampling.window + 1) * map_bytes * UNET_MAPS, frame_bytes * VAE_MAPS
