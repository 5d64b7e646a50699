"""Golden sets recorded from the official code: where they are, what they hold, and the same set through our converter.

A set NAME is a group of files NAME_*: models.json and the stored weights, then inputs and outputs of each model.
`XDYNA_GOLDENS` names their folder. Files without a set's name, and `facts/`, may be missing there; they are then looked
for in the default folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from xdyna.checkpoints import OfficialFiles, convert_official

DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "goldens"
FOLDER = Path(os.environ.get("XDYNA_GOLDENS") or DEFAULT_FOLDER)
MODELS_SUFFIX = "_models.json"

#: Official motion modules have this many heads and groups at every width; the sets' configs do not repeat it.
OFFICIAL_MOTION = {"motion_num_attention_heads": 8, "motion_norm_num_groups": 32}


#: The fixture `check(set, item, errors, tolerance)`: notes the largest error, fails when it is above the tolerance.
Check = Callable[[str, str, dict[str, float], float], None]


def set_names() -> list[Any]:
    """A pytest parameter for each set; one that is skipped, with the reason, when there is none."""
    names = sorted(path.name.removesuffix(MODELS_SUFFIX) for path in FOLDER.glob(f"*{MODELS_SUFFIX}"))
    if not names:
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=f"no *{MODELS_SUFFIX} in {FOLDER}"))]
    return names


def shared_file(name: str) -> Path:
    """A file that belongs to no set.

    Raises:
        Skipped: it is in neither folder.
    """
    for folder in (FOLDER, DEFAULT_FOLDER):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is neither in {FOLDER} nor in {DEFAULT_FOLDER}")


def set_file(name: str, suffix: str) -> Path:
    """A file of a set.

    Raises:
        Skipped: the set has no such file.
    """
    path = FOLDER / f"{name}_{suffix}"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@cache
def tensors(name: str, item: str) -> dict[str, Tensor]:
    return load_file(set_file(name, f"{item}.safetensors"))


@cache
def facts(name: str, item: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(set_file(name, f"{item}.json").read_text())
    return loaded


def read_int8(path: Path) -> dict[str, Tensor]:
    """Weights stored as one byte each: value = q * 2**e + offset, with [e, offset] per tensor in the metadata."""
    with safe_open(path, "pt") as file:
        scales = json.loads(file.metadata()["exp_off"])
        return {key: file.get_tensor(key).float() * 2.0 ** scales[key][0] + scales[key][1] for key in scales}


def official_weights(name: str, model: str) -> dict[str, Tensor]:
    return read_int8(set_file(name, f"weights_{model}.safetensors"))


def official_unet_weights(name: str) -> dict[str, Tensor]:
    """The UNet's stored weights with the positional encodings put back, as an official checkpoint has them."""
    weights = official_weights(name, "unet")
    recorded = tensors(name, "controlnet") if (FOLDER / f"{name}_controlnet.safetensors").is_file() else {}
    for key, tensor in list(weights.items()):
        if key.endswith("attention_blocks.0.to_q.weight"):
            encoding = recorded.get(f"pe.{len(tensor)}")
            if encoding is not None:
                block = key.removesuffix("0.to_q.weight")
                weights |= {f"{block}{i}.pos_encoder.pe": encoding.clone() for i in (0, 1)}
    return weights


def convert_settings(name: str) -> dict[str, Any]:
    """The set's configs as a user would give them to `xdyna convert --config`."""
    config = facts(name, "models")["config"]
    return {
        "unet": {**OFFICIAL_MOTION, **config["unet"]},
        "pose_controlnet": config["controlnet"],
        "face_controlnet": config["controlnet"],
        "image_prompt": config["resampler"],
    }


def converted(name: str, folder: Path) -> Path:
    """A set's weights as official files, through the converter, as a pipeline folder (made once below `folder`)."""
    out = folder / name / "pipeline"
    if out.is_dir():
        return out
    source = folder / name / "official"
    source.mkdir(parents=True)
    unet = {f"module.{key}": value for key, value in official_unet_weights(name).items()}
    torch.save({"epoch": 5, "state_dict": unet}, source / "unet.ckpt")
    del unet
    paths: dict[str, Path] = {"unet": source / "unet.ckpt"}
    for field in ("pose_controlnet", "face_controlnet"):
        kind = field.removesuffix("_controlnet")
        if (FOLDER / f"{name}_weights_controlnet_{kind}.safetensors").is_file():
            paths[field] = source / f"{field}.ckpt"
            torch.save({"state_dict": official_weights(name, f"controlnet_{kind}")}, paths[field])
    paths["ip_adapter"] = source / "ip-adapter-plus_sd15.bin"
    torch.save({"image_proj": official_weights(name, "resampler"), "ip_adapter": {}}, paths["ip_adapter"])
    if (FOLDER / f"{name}_weights_vae.safetensors").is_file():
        vae = source / "sd15" / "vae"
        vae.mkdir(parents=True)
        (vae / "config.json").write_text(json.dumps(facts(name, "pipeline")["vae_config"]))
        save_file(official_weights(name, "vae"), vae / "diffusion_pytorch_model.safetensors")
        paths["sd15"] = vae.parent
    report = convert_official(OfficialFiles(**paths), out, settings=convert_settings(name))
    assert len(report.warnings) == 1  # a set has no text and image encoders
    return out


def worst(got: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; infinite when a value is not a number."""
    assert got.shape == wanted.shape, f"shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    difference = (got.double() - wanted.double()).abs()
    return float(difference.max()) if torch.isfinite(difference).all() else float("inf")
