"""From a run's parts to a folder that `xdyna animate --model` takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version
from torch import nn

from xdyna.configs import PRESETS
from xdyna.configs.clips import ClipConfig
from xdyna.configs.recipes import ImageConfig
from xdyna.files import written_whole
from xdyna.infer.load import EMBEDDED, INDEX, OWN_PRESET
from xdyna.pipeline import XDynaPipeline
from xdyna.train.parts import Parts, count_parameters, load_base
from xdyna.train.system import ClipSystem

#: What the embedded model takes: everything from its own size to twice that.
SIZE_LIMITS: dict[str, Any] = {"min_wh": [64, 96], "max_wh": [128, 192], "multiple": 8}
#: What a pipeline folder says about how its model is used.
SETTINGS = ("size_limits", "schedule", "shared_noise", "start_keep")
#: Files of the base above this size are linked, not copied.
LINKED_BYTES = 64 << 20


def save_model(system: ClipSystem, folder: Path) -> None:
    """Write a pipeline folder: what trained from the system, everything else from its base.

    Each part that trained or was made anew is a folder of its own, in float32. Large files of the base are linked, so
    the folder needs its base; a model without a base is written whole.

    Args:
        system: with the final weights in place.
        folder: to write into.
    """
    parts, base = system.parts, system.parts.folder
    written = changed_parts(parts, {*system.trains, *system.cfg.renew})
    if base:
        _take_over(base, folder, written)
    for name in written:
        getattr(parts, name).save_pretrained(folder / name)
    if base is None or system.objective.scheduler.config != parts.scheduler.config:
        system.objective.scheduler.save_pretrained(folder / "scheduler")
        written = {*written, "scheduler"}
    _write_index(folder, parts, written, system.cfg)
    _write_preset(folder, base, system.cfg)
    _forget_origin(folder)


def changed_parts(parts: Parts, trains: Collection[str]) -> set[str]:
    """Names of the parts that differ from the base's: what trained, and new ones that every pipeline needs."""
    if parts.folder is None:
        return {name for name, part in vars(parts).items() if isinstance(part, nn.Module)}
    names = {"unet" if name == "motion" else name for name in trains} | (parts.new & {"vae", "pose_controlnet"})
    return names & set(parts.modules())


def _take_over(base: Path, folder: Path, written: Collection[str]) -> None:
    """Copy the base's small files and link its large ones, but for the parts that are written anew."""
    for source in sorted(base.rglob("*")):
        place = source.relative_to(base)
        if not source.is_file() or place.parts[0] in written or any(part.startswith(".") for part in place.parts):
            continue
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_size > LINKED_BYTES:
            target.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, target)


def _write_index(folder: Path, parts: Parts, written: Collection[str], cfg: ClipConfig) -> None:
    """`model_index.json`: the base's, with the class of every part that was written."""
    index: dict[str, Any] = {"_class_name": XDynaPipeline.__name__, "_diffusers_version": diffusers_version}
    path = folder / INDEX
    if path.is_file():
        index |= json.loads(path.read_text(encoding="utf-8"))
    elif isinstance(cfg, ImageConfig):
        least = cfg.world.size_wh
        index["size_limits"] = {**SIZE_LIMITS, "min_wh": [*least], "max_wh": [2 * side for side in least]}
    for name in sorted(written):
        kind = type(getattr(parts, name))
        index[name] = [kind.__module__.partition(".")[0], kind.__name__]
    index |= {"shared_noise": cfg.shared_noise, "start_keep": cfg.start_keep}
    with written_whole(path) as part:
        part.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_preset(folder: Path, base: Path | None, cfg: ClipConfig) -> None:
    """`animate.yaml`: the base's own came along; the embedded model's, which lies elsewhere, stands for a new one's."""
    own = folder / OWN_PRESET
    if own.is_file() or (base and base.resolve() != EMBEDDED.resolve()):
        return
    lines = (PRESETS / "infer" / "tiny.yaml").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("#", "model:"))]
    if base is None:
        width, height = cfg.world.size_wh
        kept = [f"size: {width}x{height}" if line.startswith("size:") else line for line in kept]
    own.write_text("\n".join(kept) + "\n", encoding="utf-8")


def export_pipeline(model: Path, out: Path, settings: Mapping[str, Any] | None = None) -> int:
    """Write a model as a pipeline folder of half-precision safetensors, every part in it: the form that ships.

    Args:
        model: a run's `model` folder.
        out: folder to write.
        settings: of the pipeline (`SETTINGS`), over the model's own.

    Returns:
        Parameters in all.
    """
    parts = load_base(model)
    modules: dict[str, Any] = dict(parts.modules())
    for module in modules.values():
        module.to(torch.float16)
    parts.dynamics_adapter.detach()
    index = json.loads((model / INDEX).read_text(encoding="utf-8")) if (model / INDEX).is_file() else {}
    kept = {key: index[key] for key in SETTINGS if key in index}
    pipeline = XDynaPipeline(
        **modules, scheduler=parts.scheduler, **{"size_limits": SIZE_LIMITS, **kept, **(settings or {})}
    )
    pipeline.save_pretrained(out)
    _forget_origin(out)
    parts.dynamics_adapter.detach()
    return count_parameters(*modules.values())


def _forget_origin(folder: Path) -> None:
    """Drop the folders that the parts were loaded from out of their configs, and let everyone read the weights."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in folder.rglob("*.safetensors"):
        if not path.is_symlink():
            path.chmod(0o644)
