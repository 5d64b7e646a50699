"""Recipe `vae`: a small AutoencoderKL from nothing, on drawn frames. Only `tiny` needs it; real models have SD1.5's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from torch import Tensor

from xdyna.configs.train import VaeConfig
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.train.loop import Run, batches, count_parameters, generator

RECIPE = "vae"


def train(cfg: VaeConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the autoencoder; return the folder of the final one (`<out>/vae`)."""
    torch.set_num_threads(cfg.threads)
    accelerator = Accelerator()
    torch.manual_seed(cfg.seed)
    vae = AutoencoderKL.from_pretrained(cfg.init) if cfg.init else build_vae(cfg)
    vae = vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(cfg.train_encoder)
    vae.quant_conv.requires_grad_(cfg.train_encoder)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay, betas=(0.9, 0.98))
    vae, optimizer = accelerator.prepare(vae, optimizer)
    run = Run(cfg, RECIPE, {"vae": accelerator.unwrap_model(vae)}, optimizer, accelerator, resume=resume, quiet=quiet)
    run.say(f"{RECIPE}: {count_parameters(vae, trainable=True):,} of {count_parameters(vae):,} parameters train")
    data = batches(partial(draw_images, cfg), run.step, cfg.steps, cfg.workers)

    for step in run.steps():
        frames, masks = next(data)
        pictures = to_unit(frames).to(accelerator.device, memory_format=torch.channels_last)  # [B, 3, H, W]
        weight = 1 + cfg.figure * masks[:, None].to(accelerator.device) / 255  # [B, 1, H, W]
        posterior = vae.encode(pictures).latent_dist
        latents = posterior.mode()
        noise = torch.randn(latents.shape, generator=generator(cfg.seed, step)).to(latents)
        decoded = vae.decode(latents + cfg.jitter * latents.std().detach() * noise).sample
        distance = (weight * (decoded - pictures).abs()).mean()
        colours = _colour_distance(decoded, pictures, weight)
        edges = _edge_distance(decoded, pictures, weight)
        kl = posterior.kl().mean() / latents[0].numel()
        loss = distance + cfg.colour * colours + cfg.edge * edges + cfg.kl * kl
        run.update(loss, l1=float(distance.detach()), edges=float(edges.detach()), kl=float(kl.detach()))
        if cfg.sample_every and run.step % cfg.sample_every == 0:
            with run.averaged():
                _report(cfg, run, vae)
    with run.averaged():
        set_scaling(cfg, vae)
        vae.save_pretrained(cfg.out / "vae")
        _report(cfg, run, vae)
    return cfg.out / "vae"


def build_vae(cfg: VaeConfig) -> AutoencoderKL:
    """An AutoencoderKL of the configured widths with random weights."""
    levels = len(cfg.widths)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=cfg.widths,
        layers_per_block=cfg.layers,
        latent_channels=cfg.latent_channels,
        norm_num_groups=cfg.norm_groups,
        sample_size=max(cfg.world.size_wh),
        mid_block_add_attention=False,
        force_upcast=False,
    )
    for block in vae.modules():  # every residual branch starts at nothing: a nearly linear network learns colours fast
        if isinstance(block, ResnetBlock2D):
            torch.nn.init.zeros_(block.conv2.weight)
            torch.nn.init.zeros_(block.conv2.bias)
    return vae


def draw_images(cfg: VaeConfig, step: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames [B, H, W, 3] and masks [B, H, W] of one step, every one of another clip."""
    world = World(**cfg.world.model_dump())
    return _images(cfg, world, range(step * cfg.batch, (step + 1) * cfg.batch))


def to_unit(frames: Any) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in -1..1."""
    return torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def set_scaling(cfg: VaeConfig, vae: AutoencoderKL) -> None:
    """Store the factor that brings the latents of held-out frames to unit variance."""
    frames, _ = held_out(cfg, 64)
    latents = vae.encode(to_unit(frames)).latent_dist.mode()
    vae.register_to_config(scaling_factor=float(1 / latents.std()))


def held_out(cfg: VaeConfig, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames and masks of clips that training never reaches."""
    return _images(cfg, World(**cfg.world.model_dump()), range(cfg.held_out, cfg.held_out + count))


def _images(cfg: VaeConfig, world: World, indices: range) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    clips = [
        render(clip_spec(world, index), np.random.default_rng([index, 2]).uniform(0, 8, 1), world.size_wh, world.fps)
        for index in indices
    ]
    return np.concatenate([clip.frames for clip in clips]), np.concatenate([clip.masks for clip in clips])


def _colour_distance(decoded: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error of 4x4-pixel means along light-dark, red-blue and green-magenta."""
    red, green, blue = F.avg_pool2d(weight.sqrt() * (decoded - wanted), 4).unbind(1)
    axes = ((red + green + blue) / 3, red - blue, 2 * green - red - blue)
    return torch.stack([axis.square().mean() for axis in axes]).sum()


def _edge_distance(decoded: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 distance between horizontal and vertical differences."""
    across = ((decoded - wanted).diff(dim=-1).abs() * weight[..., 1:]).mean()
    down = ((decoded - wanted).diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return across + down


@torch.no_grad()
def _report(cfg: VaeConfig, run: Run, vae: AutoencoderKL) -> None:
    """PSNR on held-out frames in `report.txt`, and a contact sheet: originals above their reconstructions."""
    frames, masks = held_out(cfg, 48)
    decoded = vae.decode(vae.encode(to_unit(frames)).latent_dist.mode()).sample
    pictures = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    error = (pictures.astype(float) - frames) ** 2
    whole = 10 * np.log10(255**2 / error.mean())
    figure = 10 * np.log10(255**2 / error[masks > 127].mean())
    with (run.folder / "report.txt").open("a") as report:
        report.write(f"step {run.step}: PSNR whole {whole:.2f} dB, figure {figure:.2f} dB\n")
    rows = [np.concatenate([*part[k : k + 12]], 1) for k in (0, 12) for part in (frames, pictures)]
    cv2.imwrite(str(run.folder / f"sample-{run.step:06d}.png"), np.concatenate(rows)[..., ::-1])
