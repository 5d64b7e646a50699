"""Recipe `pose_controlnet`: the pose ControlNet alone, on a model whose other parts stay as they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from xdyna.configs.recipes import Part, PoseControlNetConfig
from xdyna.data.source import build_source
from xdyna.train.export import save_model
from xdyna.train.parts import load_base, load_init, renew
from xdyna.train.run import Run
from xdyna.train.samples import Sampler
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem

RECIPE = "pose_controlnet"
TRAINS: tuple[Part, ...] = ("pose_controlnet",)


def train(cfg: PoseControlNetConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the pose ControlNet; return the folder of the model (`<out>/model`), a whole pipeline."""
    torch.manual_seed(cfg.seed)
    parts = load_base(cfg.base)  # every part frozen
    cfg = started_as_base(cfg, parts)
    renew(parts, cfg.renew)
    if cfg.init:
        load_init(parts, cfg.init, TRAINS)
    system = ClipSystem(parts, cfg, TRAINS)  # thaws the ControlNet
    source = build_source(cfg, frames=cfg.frames)
    sampler = Sampler(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()
    return run.finish(partial(save_model, system))
