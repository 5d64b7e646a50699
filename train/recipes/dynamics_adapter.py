"""Recipe `dynamics_adapter`: X-Dyna's first stage. The adapter, the pose ControlNet and the motion modules learn
together, or each alone, on the frozen spatial UNet.

Clips of people and of scenes without people are mixed (`scene_share`): people teach how a body follows a pose, scenes
how water, fire and clouds move. Scene clips come with blank pose maps, so the ControlNet learns to say nothing there.
Some clips lose their reference (`reference_dropout`), its latents and, where the base has an image prompt, its image
tokens: the latter is what the pipeline's guidance compares with.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from xdyna.configs.recipes import DynamicsAdapterConfig
from xdyna.data.source import build_source
from xdyna.train.export import save_model
from xdyna.train.parts import load_base, load_init, renew
from xdyna.train.run import Run
from xdyna.train.samples import Sampler
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem

RECIPE = "dynamics_adapter"


def train(cfg: DynamicsAdapterConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the chosen parts; return the folder of the model (`<out>/model`), a whole pipeline."""
    torch.manual_seed(cfg.seed)
    parts = load_base(cfg.base)  # every part frozen; an adapter that the base lacks starts at zero
    cfg = started_as_base(cfg, parts)
    renew(parts, cfg.renew)
    if cfg.init:
        load_init(parts, cfg.init, cfg.trains)
    system = ClipSystem(parts, cfg, cfg.trains)  # thaws what trains
    source = build_source(cfg, frames=cfg.frames)  # people and scenes
    sampler = Sampler(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()
    return run.finish(partial(save_model, system))
