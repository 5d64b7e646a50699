"""Recipe `bring_up`: a small model's UNet, Dynamics-Adapter and ControlNets from nothing, or any of them further.

For a model of official size SD1.5, AnimateDiff and a pose ControlNet give the start; `tiny` has nothing to start from,
so here the same network is trained at once: on pairs of unrelated moments of a clip first, then on consecutive frames.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from xdyna.configs.train import BringUpConfig
from xdyna.latents import downgrade_input
from xdyna.train.loop import Run, batches, count_parameters, generator
from xdyna.train.parts import Parts, build_parts, encode, load_parts, thaw, without_motion
from xdyna.train.samples import (
    Batch,
    conditions,
    control,
    draw_group,
    evaluate,
    face_condition,
    held_out_clips,
    to_unit,
    write_sheet,
)

RECIPE = "bring_up"


def train(cfg: BringUpConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the chosen parts; return the folder of the model (`<out>/model`), one sub-folder per part."""
    torch.set_num_threads(cfg.threads)
    accelerator = Accelerator()
    torch.manual_seed(cfg.seed)
    parts = load_parts(cfg.init) if cfg.init else build_parts(cfg)
    with nullcontext() if cfg.consecutive else without_motion(parts.unet):
        parameters = thaw(parts, cfg.trains)
        optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay, betas=(0.9, 0.98))
        optimizer = accelerator.prepare(optimizer)
        run = Run(cfg, RECIPE, _trained_modules(parts, cfg), optimizer, accelerator, resume=resume, quiet=quiet)
        count, whole = sum(p.numel() for p in parameters), count_parameters(*parts.modules().values())
        run.say(f"{RECIPE}: {count:,} of {whole:,} parameters train: {', '.join(cfg.trains)}")
        first = run.step
        data = batches(partial(draw_group, cfg), run.step // cfg.reuse, -(-cfg.steps // cfg.reuse), cfg.workers)

        for step in run.steps():
            turn = step % cfg.reuse
            if turn == 0 or step == first:
                batch = next(data)
                latents = encode(parts.vae, to_unit(batch.frames)).unflatten(0, batch.frames.shape[:2])
            by = 0 if cfg.consecutive else turn % latents.shape[1]  # each turn, another frame is the reference
            run.update(_loss(cfg, parts, batch.rotated(by), latents.roll(-by, 1), generator(cfg.seed, step)))
            if cfg.sample_every and run.step % cfg.sample_every == 0:
                with run.averaged():
                    _report(cfg, run, parts)
        with run.averaged():
            _report(cfg, run, parts)
            final = _copy_out(run, parts)
    _restore(final, parts)
    parts.save(cfg.out / "model")
    return cfg.out / "model"


def _loss(cfg: BringUpConfig, parts: Parts, batch: Batch, latents: Tensor, source: torch.Generator) -> Tensor:
    """Mean squared error of the predicted clean latents of the driving frames, the figure weighted.

    Args:
        cfg: the recipe's settings.
        parts: the model.
        batch: the clips.
        latents: of all their frames, [B, 1+F, C, h, w].
        source: of timesteps and noise.
    """
    clips = len(latents)
    reference, clean = latents.transpose(1, 2).tensor_split([1], dim=2)  # [B, C, 1, h, w], [B, C, F, h, w]
    noise = torch.randn(clean.shape, generator=source)
    last = parts.scheduler.config.num_train_timesteps - 1
    timesteps = (last * torch.rand(clips, generator=source) ** (1 / cfg.early)).round().long()  # [B]
    start = torch.rand(clips, generator=source) < cfg.start
    timesteps[start] = last
    mask = torch.rand(clean.shape, generator=source) >= 0.5
    begin = torch.where(start[:, None, None, None, None], downgrade_input(reference, mask), clean)
    noisy = parts.scheduler.add_noise(begin, noise, timesteps)
    text = parts.stored_prompt(clips)
    face = face_condition(batch.face_maps[:, 1:]) if cfg.face else None
    extra = control(parts, noisy, timesteps, text, conditions(batch.pose_maps[:, 1:]), face)
    predicted = parts.unet(torch.cat([reference, noisy], 2), timesteps, text, extra.down, extra.mid).sample[:, :, 1:]
    cover = torch.as_tensor(batch.masks[:, 1:]).float() / 255  # [B, F, H, W]
    height, width = clean.shape[-2:]
    weight = 1 + cfg.figure * torch.nn.functional.adaptive_avg_pool2d(cover, (height, width))[:, None]
    return (weight * (predicted - clean) ** 2).mean()


def _trained_modules(parts: Parts, cfg: BringUpConfig) -> dict[str, torch.nn.Module]:
    names = {"motion": "unet"}
    chosen = {names.get(part, part) for part in cfg.trains}
    # The attached adapter's layers are part of the UNet's module tree: saved with it when the UNet trains.
    if "unet" in chosen:
        chosen.discard("dynamics_adapter")
    return {name: module for name, module in parts.modules().items() if name in chosen}


def _copy_out(run: Run, parts: Parts) -> dict[str, Tensor]:
    """The averaged weights of all modules, to be put back once the averages are taken out again."""
    return {f"{n}.{k}": v.detach().clone() for n, m in parts.modules().items() for k, v in m.state_dict().items()}


@torch.no_grad()
def _restore(values: dict[str, Tensor], parts: Parts) -> None:
    for name, module in parts.modules().items():
        for key, value in module.state_dict().items():
            if f"{name}.{key}" in values:
                value.copy_(values[f"{name}.{key}"])


def _report(cfg: BringUpConfig, run: Run, parts: Parts) -> None:
    """Figures on held-out clips in `report.txt` and a contact sheet beside it."""
    batch = held_out_clips(cfg, count=6, frames=cfg.frames if cfg.consecutive else 6)
    values, made = evaluate(parts, batch, cfg.sample_steps, face=cfg.face)
    text = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    with (run.folder / "report.txt").open("a") as report:
        report.write(f"step {run.step}: PSNR dB {text}\n")
    write_sheet(run.folder / f"sample-{run.step:06d}.png", batch, made, clips=5, frames=6)
