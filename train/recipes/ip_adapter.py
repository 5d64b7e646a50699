"""Recipe `ip_adapter`: the baseline whose reference is read as a few image tokens in the cross-attention.

The same loop, data and loss as `dynamics_adapter`, without that adapter. The reference goes through an image encoder,
CLIP's where there is one. A base without one, such as `tiny`, gets a small encoder of the same interface, which trains
along with the tokens.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from xdyna.configs.lora_recipes import IpAdapterConfig
from xdyna.data.source import build_source
from xdyna.train.baselines import freeze_unread, save_image_prompt_model, with_image_prompt
from xdyna.train.parts import load_base, load_init, renew
from xdyna.train.run import Run
from xdyna.train.samples import Sampler
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem

RECIPE = "ip_adapter"


def train(cfg: IpAdapterConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the chosen parts; return the folder of the model (`<out>/model`), a whole pipeline."""
    torch.manual_seed(cfg.seed)
    parts = load_base(cfg.base)  # every part frozen
    cfg = started_as_base(cfg, parts)
    renew(parts, cfg.renew)
    parts = with_image_prompt(parts, cfg.image_encoder, cfg.tokens)
    trains: tuple[str, ...] = cfg.trains
    if "image_prompt" in trains and "image_encoder" in parts.new and cfg.image_encoder is None:
        trains = (*trains, "image_encoder")  # a new one, good for nothing yet
    if cfg.init:
        load_init(parts, cfg.init, trains)
    system = ClipSystem(parts, cfg, trains)  # thaws what trains
    freeze_unread(parts.image_encoder)
    source = build_source(cfg, frames=cfg.frames)  # people and scenes
    sampler = Sampler(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()
    return run.finish(partial(save_image_prompt_model, system))
