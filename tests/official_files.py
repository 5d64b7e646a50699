"""Official-looking files of small models, with seeded weights, for tests of the converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_models import SMALL_CONTROLNET, SMALL_RESAMPLER, SMALL_UNET
from torch import Tensor

from xdyna.checkpoints.assemble import sinusoid
from xdyna.checkpoints.convert import unet_components, wanted_shapes
from xdyna.checkpoints.key_maps import RESAMPLER_RULES, UNET_RULES, image_sites, to_official
from xdyna.checkpoints.layout import OfficialFiles
from xdyna.controlnets.pose import PoseControlNet
from xdyna.controlnets.s_face import SFaceControlNet

SMALL_VAE: dict[str, Any] = {
    "block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "sample_size": 16,
}  # fmt: skip
#: What shapes cannot say of the small models.
SETTINGS: dict[str, Any] = {
    "unet": {
        key: SMALL_UNET[key]
        for key in (
            "sample_size", "norm_num_groups", "motion_norm_num_groups", "num_attention_heads",
            "motion_num_attention_heads", "num_text_tokens",
        )
    },
    "pose_controlnet": {"norm_num_groups": 8, "attention_head_dim": 4},
    "face_controlnet": {"norm_num_groups": 8, "attention_head_dim": 4},
    "image_prompt": {"dim_head": SMALL_RESAMPLER["dim_head"]},
}  # fmt: skip


def seeded(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Normal values scaled by fan-in; norm scales about one; positional encodings as they are."""
    generator = torch.Generator().manual_seed(seed)
    out: dict[str, Tensor] = {}
    for key, shape in sorted(shapes.items()):
        if key.endswith(".pe"):
            out[key] = sinusoid(*shape[1:]).clone()
        elif len(shape) > 1:
            out[key] = torch.randn(shape, generator=generator) / torch.Size(shape[1:]).numel() ** 0.5
        else:
            out[key] = torch.randn(shape, generator=generator) * 0.05 + float(key.endswith("weight"))
    return out


def official_shapes(config: dict[str, Any], resampler: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Official names and shapes of the UNet checkpoint and of the Resampler."""
    parts = unet_components(config, {**resampler, "output_dims": config["cross_attention_dim"]})
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for component, part in parts.items():
        for key, shape in wanted_shapes(part).items():
            for shapes, rules in zip(found, (UNET_RULES, RESAMPLER_RULES), strict=True):
                if key.startswith("resampler.") == (rules is RESAMPLER_RULES):
                    for source in to_official(component, key, rules):
                        shapes[source.official] = (source.parts * shape[0], *shape[1:])
    return found


def small_unet(config: dict[str, Any] | None = None, seed: int = 0) -> dict[str, Tensor]:
    return seeded(official_shapes({**SMALL_UNET, **(config or {})}, SMALL_RESAMPLER)[0], seed)


def small_resampler(config: dict[str, Any] | None = None, seed: int = 1) -> dict[str, Tensor]:
    return seeded(official_shapes(SMALL_UNET, {**SMALL_RESAMPLER, **(config or {})})[1], seed)


def small_controlnet(kind: type[Any] = PoseControlNet, seed: int = 2) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = wanted_shapes(kind(**SMALL_CONTROLNET))
    return seeded(shapes, seed)


def is_base(key: str) -> bool:
    """Whether an official UNet key belongs to Stable Diffusion 1.5."""
    return not any(word in key for word in (".motion_modules.", "to_q_ff.", "to_out_ff.", "_ip."))


def numbered_image_layers(unet: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image-prompt layers as an IP-Adapter file numbers them."""
    return {
        f"{2 * i + 1}.{leaf}.weight": unet[f"{site}.{leaf}.weight"]
        for i, site in enumerate(image_sites(unet))
        for leaf in ("to_k_ip", "to_v_ip")
    }


def write_sd15(folder: Path, unet: dict[str, Tensor] | None = None, *, old_names: bool = False) -> Path:
    """A Stable Diffusion folder with a VAE and, if given, a UNet; no text encoder."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        shapes = wanted_shapes(AutoencoderKL(**SMALL_VAE))
    vae = seeded(shapes, 3)
    if old_names:
        pairs = ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn."))
        for new, old in pairs:
            vae = {key.replace(new, old): value for key, value in vae.items()}
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **SMALL_VAE}))
    save_file(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    if unet is not None:
        (folder / "unet").mkdir()
        config = {"attention_head_dim": 4, "norm_num_groups": 8, "sample_size": 8, "act_fn": "silu"}
        (folder / "unet" / "config.json").write_text(json.dumps(config))
        save_file(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


def write_official(folder: Path) -> OfficialFiles:
    """A complete set of small official files (without text and image encoders)."""
    folder.mkdir(parents=True)
    unet = small_unet()
    # As data-parallel training saves it.
    torch.save(
        {"epoch": 5, "state_dict": {f"module.{key}": value for key, value in unet.items()}}, folder / "unet.ckpt"
    )
    torch.save(small_controlnet(), folder / "pose.ckpt")
    torch.save(small_controlnet(SFaceControlNet), folder / "face.ckpt")
    ip_adapter = {"image_proj": small_resampler(), "ip_adapter": numbered_image_layers(unet)}
    torch.save(ip_adapter, folder / "ip-adapter-plus_sd15.bin")
    return OfficialFiles(
        unet=folder / "unet.ckpt",
        pose_controlnet=folder / "pose.ckpt",
        face_controlnet=folder / "face.ckpt",
        ip_adapter=folder / "ip-adapter-plus_sd15.bin",
        sd15=write_sd15(folder / "sd15"),
    )
