"""How much a CPU takes at once where frames are small.

Small frames leave a network's weights more to read and to arrange than their numbers take to compute: at latents of 5x5
a convolution of 1280 channels spends half of its time so. Taken together, windows and frames share that.
"""

from __future__ import annotations

from math import ceil, prod
from typing import TYPE_CHECKING, Any

from xdyna.infer.engine.plan import Batches

if TYPE_CHECKING:
    from xdyna.pipeline import XDynaPipeline

#: The UNet's weights may be so many times the largest layer's input before more windows pay, the decoder's likewise;
#: both from single convolutions timed at several sizes (docs/benchmarks/kernels.md).
UNET_RATIO, DECODER_RATIO = 250, 30
MOST = Batches(windows=8, frames=8)


def cpu_batches(pipe: XDynaPipeline, size_wh: tuple[int, int], window: int, *, guided: bool) -> Batches:
    """Windows and frames at once that pay on a CPU; one where frames are large, or the model is small.

    Args:
        pipe: with its weights anywhere.
        size_wh: (width, height) of the frames, pixels.
        window: driving frames of a window.
        guided: both halves of guidance run.
    """
    pixels = prod(size_wh)
    rows = (1 + guided) * (1 + window)
    latents = pixels // pipe.vae_scale_factor**2
    windows = _weights(pipe.unet) / (UNET_RATIO * rows * latents * pipe.unet.config.block_out_channels[0])
    frames = _weights(pipe.vae.decoder) / (DECODER_RATIO * pixels * pipe.vae.config.block_out_channels[0])
    return Batches(min(max(ceil(windows), 1), MOST.windows), min(max(ceil(frames), 1), MOST.frames))


def _weights(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
