"""LoRA on the motion modules, the spatial attention or the Dynamics-Adapter, through peft.

Files are in diffusers' own LoRA format, so `pipe.load_lora_weights(file)`, `pipe.set_adapters(..)` and
`pipe.unload_lora_weights()` take what `save_lora` writes; the functions here do the same for a bare UNet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from xdyna.adapters.host import site_key
from xdyna.errors import UserError
from xdyna.unet import XDynaUNet

WEIGHT_NAME = "pytorch_lora_weights.safetensors"

#: Projections of an attention, by the names that diffusers gives them.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")

#: What a LoRA may act on: where each part's attention lies, as a pattern over dotted names, and its projections.
PARTS = {
    "motion": (r".*motion_modules\..*", TARGETS),
    "spatial": (r".*\.attentions\..*", TARGETS),
    "dynamics": (r".*\.attentions\..*", ("to_q_ref", "to_out_ref")),
}


def add_lora(
    unet: XDynaUNet,
    *,
    rank: int = 8,
    alpha: float | None = None,
    parts: Sequence[str] = ("motion",),
    targets: Sequence[str] = TARGETS,
    name: str = "default",
) -> list[nn.Parameter]:
    """Add a new LoRA, which changes nothing until it is trained.

    Args:
        unet: its host; stays frozen.
        rank: rank of the update.
        alpha: its scale is alpha / rank; `rank` when not given.
        parts: keys of `PARTS`. `dynamics` needs an attached Dynamics-Adapter.
        targets: projections of the parts `motion` and `spatial` that get an update.
        name: adapter name, for `set_adapters` and for saving.

    Returns:
        The parameters that train.

    Raises:
        ValueError: an unknown part or target.
    """
    for given, known, what in ((parts, PARTS, "part"), (targets, TARGETS, "target")):
        unknown = sorted(set(given) - set(known))
        if unknown or not given:
            raise ValueError(f"unknown LoRA {what} {(unknown or [''])[0]!r}, wanted some of {', '.join(known)}")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        init_lora_weights="gaussian",
        target_modules="|".join(_pattern(part, targets) for part in parts),
    )
    unet.add_adapter(config, adapter_name=name)
    return lora_parameters(unet, name)


def _pattern(part: str, targets: Sequence[str]) -> str:
    where, own = PARTS[part]
    names = [re.escape(name) for name in own if name in targets or own != TARGETS]
    return f"(?:{where}\\.({'|'.join(names)}))"


def lora_layers(unet: XDynaUNet, name: str = "default") -> nn.ModuleDict:
    """The layers of one LoRA as a module of their own, which shares their weights: what a checkpoint has to hold."""
    layers = nn.ModuleDict()
    for site, module in unet.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            layers[site_key(site)] = nn.ModuleDict({"down": module.lora_A[name], "up": module.lora_B[name]})
    return layers


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
    path = Path(folder) / WEIGHT_NAME
    path.chmod(0o644)  # safetensors writes files that nobody else may read
    return path


def fill_lora(unet: XDynaUNet, path: str | Path, name: str = "default") -> None:
    """Give a LoRA that is on the UNet the weights of a file, for training it further.

    Raises:
        UserError: no such file, or a LoRA of another rank, strength or place.
    """
    path = Path(path)
    path = path / WEIGHT_NAME if path.is_dir() else path
    try:
        values = {key.removeprefix("unet."): value for key, value in load_file(path).items()}
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except Exception as error:  # safetensors has an exception of its own for what is no safetensors file
        raise UserError(f"--init {path}: cannot be read as a LoRA: {error}") from None
    wanted = {key: value.shape for key, value in get_peft_model_state_dict(unet, adapter_name=name).items()}
    got = {key: value.shape for key, value in values.items()}
    if got != wanted:
        odd = sorted(key for key in got.keys() | wanted.keys() if got.get(key) != wanted.get(key))[0]
        shapes = [list(shapes[odd]) if odd in shapes else "nothing" for shapes in (got, wanted)]
        raise UserError(
            f"--init {path}: a LoRA of another rank or place; {odd}: got {shapes[0]}, wanted {shapes[1]}; set rank and"
            " targets as they were"
        )
    was, now = metadata.get("unet.lora_alpha"), unet.peft_config[name].lora_alpha
    if was is not None and was != now:
        raise UserError(f"--init {path}: was trained with alpha {was:g}, got {now:g}; set alpha={was:g}")
    set_peft_model_state_dict(unet, values, adapter_name=name)


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
