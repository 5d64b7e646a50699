"""A small decoder in the VAE's place: for previews, and where decoding is what takes the time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xdyna.errors import UserError
from xdyna.infer.load import quiet_diffusers

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

    from xdyna.pipeline import XDynaPipeline


def load_small_decoder(folder: Path, pipe: XDynaPipeline, option: str = "--small-decoder") -> AutoencoderTiny:
    """A diffusers `AutoencoderTiny` of a folder, such as TAESD, on the pipeline's device.

    Args:
        folder: with `config.json` and safetensors weights.
        pipe: whose latents it is to decode.
        option: that named the folder, for messages.
    Raises:
        UserError: no such folder, files of something else, other latents than the model's, weights that are NaN.
    """
    from diffusers import AutoencoderTiny

    if not (folder / "config.json").is_file():
        raise UserError(f"{option} {folder}: has no config.json, wanted the folder of an AutoencoderTiny")
    try:
        with quiet_diffusers():
            decoder: AutoencoderTiny = AutoencoderTiny.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
    except Exception as error:
        # Whatever lies in a user's folder can make diffusers fail in any way; the folder is what to name.
        first = str(error).strip().splitlines()[:1]
        raise UserError(f"{option} {folder}: cannot be loaded: {''.join(first)[:300]}") from error
    config = decoder.config
    factor = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
    got = config.latent_channels, factor
    wanted = pipe.unet.config.in_channels, pipe.vae_scale_factor
    if got != wanted:
        raise UserError(
            f"{option} {folder}: decodes {got[0]} channels to {got[1]} times the size,"
            f" wanted {wanted[0]} channels and {wanted[1]} times for this model"
        )
    if not all(weight.isfinite().all() for weight in decoder.parameters()):
        raise UserError(f"{option} {folder}: holds NaN or infinite weights; the file is damaged")
    # Where weights wait on the host, the VAE's own device is not the one that latents are decoded on.
    with quiet_diffusers():
        return decoder.to(pipe._execution_device, pipe.vae.dtype).eval().requires_grad_(False)
