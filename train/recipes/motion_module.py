"""Recipe `motion_module`: the motion modules alone, as AnimateDiff trains them: every spatial weight stays frozen.

The adapter and the pose ControlNet run as they are in the base, so that the modules learn what is left to them: how
pixels move from frame to frame.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from xdyna.configs.recipes import MotionModuleConfig, Part
from xdyna.data.source import build_source
from xdyna.train.export import save_model
from xdyna.train.parts import load_base, load_init, renew
from xdyna.train.run import Run
from xdyna.train.samples import Sampler
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem

RECIPE = "motion_module"
TRAINS: tuple[Part, ...] = ("motion",)


def train(cfg: MotionModuleConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the motion modules; return the folder of the model (`<out>/model`), a whole pipeline."""
    torch.manual_seed(cfg.seed)
    parts = load_base(cfg.base)  # every part frozen
    cfg = started_as_base(cfg, parts)
    renew(parts, cfg.renew)
    if cfg.init:
        load_init(parts, cfg.init, TRAINS)
    system = ClipSystem(parts, cfg, TRAINS)  # thaws the motion modules
    source = build_source(cfg, frames=cfg.frames)
    sampler = Sampler(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()
    return run.finish(partial(save_model, system))
