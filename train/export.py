"""From a run's parts to the folder that ships: an `XDynaPipeline` in half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from xdyna.pipeline import XDynaPipeline
from xdyna.train.loop import count_parameters
from xdyna.train.parts import load_parts

#: What the embedded model takes: everything from its own size to twice that.
SIZE_LIMITS: dict[str, Any] = {"min_wh": [64, 96], "max_wh": [128, 192], "multiple": 8}


def export_pipeline(model: Path, out: Path) -> int:
    """Write a model's parts as a pipeline folder of half-precision safetensors.

    Args:
        model: folder of a `bring_up` run's final parts.
        out: folder to write.

    Returns:
        Parameters in all.
    """
    parts = load_parts(model)
    modules: dict[str, Any] = dict(parts.modules())
    for module in modules.values():
        module.to(torch.float16)
    parts.dynamics_adapter.detach()
    pipeline = XDynaPipeline(**modules, scheduler=parts.scheduler, size_limits=SIZE_LIMITS)
    pipeline.save_pretrained(out)
    _forget_origin(out)
    parts.dynamics_adapter.detach()
    return count_parameters(*modules.values())


def _forget_origin(folder: Path) -> None:
    """Drop the folders that the parts were loaded from out of their configs, and let everyone read the weights."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
