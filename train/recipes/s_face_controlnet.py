"""Recipe `s_face_controlnet`: X-Dyna's second stage. The face ControlNet alone, on clips of people.

Its face maps come from the *swapped* face: another identity that makes the same expressions. The frames to be made show
the reference's own face, so nothing is won by copying the maps' identity, and what remains to be learnt is expression.
The pose ControlNet runs as well, frozen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from xdyna.configs.recipes import Part, SFaceControlNetConfig
from xdyna.data.source import build_source
from xdyna.train.export import save_model
from xdyna.train.parts import load_base, load_init, renew
from xdyna.train.run import Run
from xdyna.train.samples import Sampler
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem

RECIPE = "s_face_controlnet"
TRAINS: tuple[Part, ...] = ("face_controlnet",)


def train(cfg: SFaceControlNetConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the face ControlNet; return the folder of the model (`<out>/model`), a whole pipeline."""
    torch.manual_seed(cfg.seed)
    parts = load_base(cfg.base)  # every part frozen
    cfg = started_as_base(cfg, parts)
    renew(parts, cfg.renew)
    if cfg.init:
        load_init(parts, cfg.init, TRAINS)
    system = ClipSystem(parts, cfg, TRAINS, face=True)  # thaws the ControlNet
    source = build_source(cfg, frames=cfg.frames, face="swapped")
    sampler = Sampler(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()
    return run.finish(partial(save_model, system))
