"""Recipe `reference_net`: the baseline whose reference is read by a trained copy of the whole UNet.

The same loop, data and loss as `dynamics_adapter`; in the adapter's place stands a `ReferenceNet`, in the pipeline that
is written too (its folder keeps the name `dynamics_adapter`), so every command and measurement takes either.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from xdyna.configs.lora_recipes import ReferenceNetConfig
from xdyna.data.source import build_source
from xdyna.train.baselines import with_reference_net
from xdyna.train.export import save_model
from xdyna.train.parts import load_base, load_init, renew
from xdyna.train.run import Run
from xdyna.train.samples import Sampler
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem

RECIPE = "reference_net"


def train(cfg: ReferenceNetConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the chosen parts; return the folder of the model (`<out>/model`), a whole pipeline."""
    torch.manual_seed(cfg.seed)
    parts = load_base(cfg.base)  # every part frozen
    cfg = started_as_base(cfg, parts)
    renew(parts, cfg.renew)
    parts = with_reference_net(parts)
    trains = tuple("dynamics_adapter" if name == "reference_net" else name for name in cfg.trains)  # the part's slot
    if cfg.init:
        load_init(parts, cfg.init, trains)
    system = ClipSystem(parts, cfg, trains)  # thaws what trains
    system.running["reference_net"] = parts.dynamics_adapter  # unlike an adapter's layers, no child of the UNet
    system.saved = {"reference_net" if name == "dynamics_adapter" else name: x for name, x in system.saved.items()}
    source = build_source(cfg, frames=cfg.frames)  # people and scenes
    sampler = Sampler(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()
    return run.finish(partial(save_model, system))
