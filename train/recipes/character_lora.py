"""Recipe `character_lora`: a LoRA on the UNet's spatial attention, from 5 to 50 pictures of one person.

A sample is a few of the pictures: one is the reference, the others are what has to come out, each under its own pose
map. What one reference cannot show (a back, a profile, what a hat hides) the LoRA keeps. Pictures have no order in
time, so the motion modules do not run.
"""

from __future__ import annotations

from pathlib import Path

import torch

from xdyna.adapters.motion_lora import add_lora, fill_lora, lora_layers, save_lora
from xdyna.configs.lora_recipes import CharacterLoraConfig
from xdyna.data.album import AlbumSource, draw_album, read_album
from xdyna.data.synthetic.clips import World
from xdyna.train.parts import load_base
from xdyna.train.run import Run
from xdyna.train.samples import Sampler
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem

RECIPE = "character_lora"


def train(cfg: CharacterLoraConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the LoRA; return the folder of `pytorch_lora_weights.safetensors` (`<out>/model`)."""
    torch.manual_seed(cfg.seed)
    if cfg.data == "synthetic":
        album = draw_album(World(**cfg.world.model_dump()), cfg.character, cfg.pictures)
    else:
        album = read_album(Path(cfg.data).expanduser(), cfg.world.size_wh, detect=cfg.detect)
    source = AlbumSource(album, frames=cfg.frames, seed=cfg.seed)
    parts = load_base(cfg.base)  # every part frozen
    cfg = started_as_base(cfg, parts)
    add_lora(parts.unet, rank=cfg.rank, alpha=cfg.alpha, parts=("spatial",), targets=cfg.targets)
    if cfg.init:
        fill_lora(parts.unet, cfg.init)
    system = ClipSystem(parts, cfg, (), motion=False)
    system.saved = {"lora": lora_layers(parts.unet)}
    sampler = Sampler(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()
    return run.finish(lambda folder: save_lora(parts.unet, folder))
