"""Recipe `motion_lora`: a LoRA on the motion modules, from clips of one kind of motion.

The base stays as it is; what is trained is a small update of the temporal attention, which a file of some hundred
kilobytes (SD1.5 size: some megabytes) brings to any copy of the same base: `xdyna animate --lora FILE`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from xdyna.adapters.motion_lora import add_lora, fill_lora, lora_layers, save_lora
from xdyna.configs.lora_recipes import MotionLoraConfig
from xdyna.data.source import build_source
from xdyna.train.parts import load_base
from xdyna.train.run import Run
from xdyna.train.samples import Sampler
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem

RECIPE = "motion_lora"


def train(cfg: MotionLoraConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the LoRA; return the folder of `pytorch_lora_weights.safetensors` (`<out>/model`)."""
    torch.manual_seed(cfg.seed)
    parts = load_base(cfg.base)  # every part frozen
    cfg = started_as_base(cfg, parts)
    add_lora(parts.unet, rank=cfg.rank, alpha=cfg.alpha, parts=("motion",), targets=cfg.targets)
    if cfg.init:
        fill_lora(parts.unet, cfg.init)
    system = ClipSystem(parts, cfg, ())
    system.saved = {"lora": lora_layers(parts.unet)}
    source = build_source(cfg, frames=cfg.frames)
    sampler = Sampler(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()
    return run.finish(lambda folder: save_lora(parts.unet, folder))
