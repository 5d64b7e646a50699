"""Recipe `image`: a small model's UNet, Dynamics-Adapter and ControlNets from nothing, or any of them further.

For a model of official size SD1.5, AnimateDiff and a pose ControlNet give the start; `tiny` has nothing to start from,
so here the same network is trained at once: on pairs of unrelated moments of a clip first, then on consecutive frames.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from xdyna.configs.recipes import ImageConfig
from xdyna.data.source import build_source
from xdyna.train.export import save_model
from xdyna.train.new_model import build_parts
from xdyna.train.parts import load_base, read_vae, renew
from xdyna.train.run import Run
from xdyna.train.samples import Sampler
from xdyna.train.system import ClipSystem

RECIPE = "image"


def train(cfg: ImageConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the chosen parts; return the folder of the model (`<out>/model`), a whole pipeline."""
    torch.manual_seed(cfg.seed)
    parts = load_base(cfg.init) if cfg.init else build_parts(cfg)  # every part frozen
    if cfg.init and cfg.vae:
        parts = replace(parts, vae=read_vae(cfg.vae, "vae="), new=parts.new | {"vae"})
    renew(parts, cfg.renew)
    system = ClipSystem(parts, cfg, cfg.trains, face=bool(cfg.face), motion=cfg.consecutive)  # thaws what trains
    source = build_source(cfg, frames=cfg.frames, consecutive=cfg.consecutive, face=cfg.face)
    sampler = Sampler(system, build_source(cfg, frames=cfg.frames, face=cfg.face), cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()
    return run.finish(partial(save_model, system))
