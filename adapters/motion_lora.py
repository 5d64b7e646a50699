"""LoRA on the motion modules, the spatial attention or the Dynamics-Adapter, through peft.

Files are in diffusers' own LoRA format, so `pipe.load_lora_weights(file)`, `pipe.set_adapters(..)` and
`pipe.unload_lora_weights()` take what `save_lora` writes; the functions here do the same for a bare UNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from xdyna.unet import XDynaUNet

WEIGHT_NAME = "pytorch_lora_weights.safetensors"

#: What a LoRA may act on: names of projections below each part, as a pattern over dotted names.
PARTS = {
    "motion": r".*motion_modules\..*\.(to_q|to_k|to_v|to_out\.0)",
    "spatial": r".*\.attentions\..*\.(to_q|to_k|to_v|to_out\.0)",
    "dynamics": r".*\.attentions\..*\.(to_q_ref|to_out_ref)",
}


def add_lora(
    unet: XDynaUNet,
    *,
    rank: int = 8,
    alpha: int | None = None,
    parts: Sequence[str] = ("motion",),
    name: str = "default",
) -> list[nn.Parameter]:
    """Add a new LoRA, which changes nothing until it is trained.

    Args:
        unet: its host; stays frozen.
        rank: rank of the update.
        alpha: its scale is alpha / rank; `rank` when not given.
        parts: keys of `PARTS`. `dynamics` needs an attached Dynamics-Adapter.
        name: adapter name, for `set_adapters` and for saving.

    Returns:
        The parameters that train.

    Raises:
        ValueError: an unknown part.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"unknown LoRA part {unknown[0]!r}, wanted some of {', '.join(PARTS)}")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        init_lora_weights="gaussian",
        target_modules="|".join(f"(?:{PARTS[part]})" for part in parts),
    )
    unet.add_adapter(config, adapter_name=name)
    return lora_parameters(unet, name)


def lora_parameters(unet: XDynaUNet, name: str = "default") -> list[nn.Parameter]:
    """The parameters of one LoRA, in module order."""
    return [p for key, p in unet.named_parameters() if ".lora_" in key and f".{name}." in key]


def save_lora(unet: XDynaUNet, folder: str | Path, name: str = "default") -> Path:
    """Write one LoRA as `pytorch_lora_weights.safetensors` in `folder`; returns the file."""
    layers = get_peft_model_state_dict(unet, adapter_name=name)
    config = {"unet": unet.peft_config[name]}
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        str(folder),
        unet_lora_layers=layers,
        weight_name=WEIGHT_NAME,
        unet_lora_adapter_metadata={key: value for key, value in config["unet"].to_dict().items() if value is not None},
    )
    return Path(folder) / WEIGHT_NAME


def load_lora(unet: XDynaUNet, path: str | Path, name: str = "default") -> None:
    """Load a LoRA file (or folder) in diffusers' format on a bare UNet."""
    path = Path(path)
    folder, file = (path, WEIGHT_NAME) if path.is_dir() else (path.parent, path.name)
    state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(folder), weight_name=file, unet_config=unet.config, use_safetensors=True, return_lora_metadata=True
    )
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(
        state, network_alphas=alphas, unet=unet, adapter_name=name, metadata=metadata
    )


def scale_lora(unet: XDynaUNet, scales: dict[str, float]) -> None:
    """Set the strength of each named LoRA; those not named are off."""
    unet.set_adapters(list(scales), list(scales.values()))


def unload_lora(unet: XDynaUNet) -> None:
    """Take every LoRA off; the UNet is bit for bit what it was."""
    unet.unload_lora()
